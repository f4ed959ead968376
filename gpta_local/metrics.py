"""Figures and their uncertainty. Knows arrays, not models or rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
"""One loss per row, in nats: lower is better."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_mean(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of paired differences and its standard error, s / √n with n − 1 in s.

    With fewer than two rows the error is infinite: nothing can be said.
    """
    n = len(differences)
    if n < 2:
        return float(differences.mean()) if n else 0.0, float("inf")
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(n))


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Mean of independent values with its 95 % interval by Student's t (1908); without end for a single one."""
    from scipy.stats import t

    mean, error = paired_mean(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * error if len(values) > 1 else float("inf")
    return Interval(mean, mean - reach, mean + reach)


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval for a share (Wilson 1927), 95 %."""
    from scipy.stats import binomtest

    if n == 0:
        raise ValueError("no rows")
    low, high = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return Interval(successes / n, float(low), float(high))


def paired_bootstrap(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, samples: int = 5000, seed: int = 0
) -> Interval:
    """Mean of `ours − theirs` over the same rows with its percentile bootstrap interval, 95 %
    (Efron 1979). The rows are resampled; the training is not: other shots vary more than this.

    The differences have few distinct values. Drawing how often each of them occurs is the same as drawing the rows, and
    takes a millisecond where `scipy.stats.bootstrap`, which draws rows, takes seconds for thousands of them.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(differences) == 0:
        raise ValueError("no rows")
    rng = np.random.default_rng(seed)
    values, counts = np.unique(differences, return_counts=True)
    means = rng.multinomial(len(differences), counts / len(differences), size=samples) @ values / len(differences)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class. A share of nothing is 0."""

    rows: int
    precision: float
    recall: float
    f1: float


def macro_f1(predictions: Sequence[int], targets: Sequence[int], classes: int) -> float:
    """Mean over the classes of F1; a class that is neither there nor predicted counts as 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predictions, labels=range(classes), average="macro", zero_division=0))


def by_class(predictions: Sequence[int], targets: Sequence[int], classes: int) -> list[ClassFigures]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, rows = precision_recall_fscore_support(
        targets, predictions, labels=range(classes), zero_division=0
    )
    shares = zip(rows, precision, recall, f1, strict=True)
    return [ClassFigures(int(n), float(p), float(r), float(f)) for n, p, r, f in shares]


# ── how sure a classifier is ────────────────────────────────────────────────────────────────────

BINS = 10
WIDEST = 3.0
"""The logarithm of a temperature is looked for from minus to plus this."""


def softmax(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (n, c) out of logits (n, c) divided by a temperature."""
    scaled = logits / temperature
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """The temperature by which logits (n, c) are divided so that the targets (n,) are most probable (Guo et al. 2017).
    Its logarithm has a standard normal prior: a few rows that are all right do not make the model sure of everything.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(targets))

    def loss(logarithm: float) -> float:
        scaled = log_softmax(logits / np.exp(logarithm), axis=1)
        return float(-scaled[rows, targets].sum() + logarithm**2 / 2)

    found = minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of which the most probable label is about as probable: how many, its mean probability, and the share that it
    is right for."""

    rows: int
    probability: float
    accuracy: float


def reliability(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> list[Bin]:
    """Rows in `BINS` bins of equal width by the probability (n, c) of the most probable label; empty ones left out."""
    highest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    places = np.minimum((highest * BINS).astype(int), BINS - 1)
    return [
        Bin(int(inside.sum()), float(highest[inside].mean()), float(right[inside].mean()))
        for place in np.unique(places)
        for inside in [places == place]
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error (Naeini et al. 2015): the mean distance of probability and accuracy, each bin with
    the weight of its rows. 0 is best."""
    rows = sum(of.rows for of in bins)
    return sum(of.rows * abs(of.probability - of.accuracy) for of in bins) / rows
