"""Figures against known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from gpta_local.metrics import (
    Bin,
    ClassFigures,
    by_class,
    calibration_error,
    fit_temperature,
    macro_f1,
    paired_bootstrap,
    paired_mean,
    reliability,
    softmax,
    wilson_interval,
)


class TestWilson:
    def test_interval_of_newcombes_example(self) -> None:
        interval = wilson_interval(81, 263)  # Newcombe 1998, table I
        assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            wilson_interval(0, 0)


@pytest.mark.parametrize(
    ("differences", "mean", "error"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1.5, math.sqrt(5 / 12)),
        ([0.25] * 5, 0.25, 0.0),
        ([0.5], 0.5, math.inf),
        ([], 0, math.inf),
    ],
)
def test_paired_mean_has_its_standard_error(differences: list[float], mean: float, error: float) -> None:
    assert paired_mean(np.array(differences)) == pytest.approx((mean, error))


class TestBootstrap:
    def test_interval_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(1)
        ours, theirs = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.7).astype(float)
        interval = paired_bootstrap(ours, theirs, samples=20_000, seed=0)
        expected = scipy.stats.bootstrap(
            (ours - theirs,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.004)

    def test_value_is_the_mean_difference(self) -> None:
        assert paired_bootstrap(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 0])).value == 0.5

    def test_equal_results_leave_no_doubt(self) -> None:
        ours = np.array([1.0, 0, 1])
        interval = paired_bootstrap(ours, ours)
        assert (interval.low, interval.value, interval.high) == (0, 0, 0)

    def test_same_seed_gives_the_same_interval(self) -> None:
        ours, theirs = np.arange(20.0), np.ones(20)
        assert paired_bootstrap(ours, theirs, seed=5) == paired_bootstrap(ours, theirs, seed=5)

    def test_rows_stay_paired(self) -> None:
        ours = np.random.default_rng(5).normal(0, 100, size=50)
        interval = paired_bootstrap(ours + 1, ours)
        assert (interval.low, interval.high) == pytest.approx((1, 1))

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            paired_bootstrap(np.array([]), np.array([]))


def test_class_that_is_neither_there_nor_predicted_counts_as_zero() -> None:
    assert macro_f1([0, 1, 2], [0, 1, 2], 3) == 1.0
    assert macro_f1([0, 0], [0, 0], 2) == 0.5
    assert by_class([0, 0, 1], [0, 1, 1], 3) == [
        ClassFigures(rows=1, precision=0.5, recall=1.0, f1=pytest.approx(2 / 3)),
        ClassFigures(rows=2, precision=1.0, recall=0.5, f1=pytest.approx(2 / 3)),
        ClassFigures(rows=0, precision=0.0, recall=0.0, f1=0.0),
    ]


class TestCalibration:
    def drawn(self, sharper: float, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
        """Logits that are `sharper` times what the labels were drawn by."""
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(rows, 4)) * 2
        chances = softmax(logits)
        targets = (chances.cumsum(1) < rng.random((rows, 1))).sum(1)
        return logits * sharper, targets

    @pytest.mark.parametrize("sharper", [0.5, 1.0, 3.0])
    def test_temperature_undoes_what_made_the_model_too_sure(self, sharper: float) -> None:
        logits, targets = self.drawn(sharper)
        assert fit_temperature(logits, targets) == pytest.approx(sharper, rel=0.05)

    def test_calibration_error_of_calibrated_probabilities_is_small(self) -> None:
        logits, targets = self.drawn(3.0)
        before, after = (calibration_error(reliability(softmax(logits, t), targets)) for t in (1.0, 3.0))
        assert after < 0.01 < 0.1 < before

    def test_few_rows_that_are_all_right_do_not_make_it_sure_of_everything(self) -> None:
        logits, targets = np.eye(3) * 2.0, np.arange(3)
        assert 0.2 < fit_temperature(logits, targets) < 1

    def test_bins_hold_each_row_once_and_their_weighted_distance_is_the_error(self) -> None:
        probabilities = np.array([[0.62, 0.38], [0.64, 0.36], [0.0, 1.0]])
        bins = reliability(probabilities, np.array([0, 1, 1]))
        assert bins == [Bin(2, pytest.approx(0.63), 0.5), Bin(1, 1.0, 1.0)]
        assert calibration_error(bins) == pytest.approx(2 / 3 * 0.13)
