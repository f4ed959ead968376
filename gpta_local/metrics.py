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


def macro_f1(predictions: Sequence[int], targets: Sequence[int], classes: int) -> float:
    """Mean over the classes of F1; a class that is neither there nor predicted counts as 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(targets, predictions, labels=range(classes), average="macro", zero_division=0))


def by_class(predictions: Sequence[int], targets: Sequence[int], classes: int) -> list[ClassFigures]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, _, rows = precision_recall_fscore_support(
        targets, predictions, labels=range(classes), zero_division=0
    )
    return [ClassFigures(int(n), float(p), float(r)) for n, p, r in zip(rows, precision, recall, strict=True)]
