"""Figures against known values, scipy, scikit-learn and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from gpta_local.metrics import macro_f1, paired_bootstrap, paired_mean, wilson_interval


class TestWilson:
    @pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (81, 263), (15, 148), (499, 1000)])
    def test_interval_is_that_of_scipy(self, successes: int, n: int) -> None:
        expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        interval = wilson_interval(successes, n)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)

    def test_interval_of_newcombes_example(self) -> None:
        interval = wilson_interval(81, 263)  # Newcombe 1998, table I
        assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            wilson_interval(0, 0)

    @given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_share_lies_in_its_interval(self, counts: tuple[int, int]) -> None:
        interval = wilson_interval(*counts)
        assert 0 <= interval.low <= interval.value + 1e-12
        assert interval.value - 1e-12 <= interval.high <= 1


class TestPairedMean:
    def test_standard_error_is_that_of_scipy(self) -> None:
        differences = np.random.default_rng(0).normal(0.2, 1.0, size=40)
        mean, error = paired_mean(differences)
        assert mean == pytest.approx(differences.mean())
        assert error == pytest.approx(scipy.stats.sem(differences))

    def test_equal_differences_have_no_error(self) -> None:
        assert paired_mean(np.full(5, 0.25)) == (0.25, 0.0)

    def test_one_row_says_nothing(self) -> None:
        assert paired_mean(np.array([0.5])) == (0.5, math.inf)

    def test_no_row_says_nothing(self) -> None:
        assert paired_mean(np.array([])) == (0.0, math.inf)


class TestBootstrap:
    def test_interval_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(1)
        ours, theirs = (rng.random(300) < 0.8).astype(float), (rng.random(300) < 0.7).astype(float)
        interval = paired_bootstrap(ours, theirs, samples=20_000, seed=0)
        expected = scipy.stats.bootstrap(
            (ours - theirs,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.004)

    def test_interval_is_that_of_brute_force_on_values_that_all_differ(self) -> None:
        differences = np.random.default_rng(3).normal(size=80)
        interval = paired_bootstrap(differences, np.zeros(80), samples=20_000)
        rng = np.random.default_rng(4)
        means = [rng.choice(differences, 80).mean() for _ in range(20_000)]
        assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)

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


class TestMacroF1:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
    def test_figure_is_that_of_scikit_learn(self, pairs: list[tuple[int, int]]) -> None:
        predictions, targets = [p for p, _ in pairs], [t for _, t in pairs]
        expected = sklearn.metrics.f1_score(
            targets, predictions, labels=list(range(4)), average="macro", zero_division=0
        )
        assert macro_f1(predictions, targets, 4) == pytest.approx(expected)

    def test_all_right_is_one(self) -> None:
        assert macro_f1([0, 1, 2], [0, 1, 2], 3) == 1.0

    def test_class_that_never_occurs_counts_as_zero(self) -> None:
        assert macro_f1([0, 0], [0, 0], 2) == 0.5
