"""Figures and their uncertainty. Knows arrays, not models or rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def wilson_interval(successes: float, n: int) -> Interval:
    """Wilson's score interval for a share (Wilson 1927), 95 %."""
    if n == 0:
        raise ValueError("no rows")
    z = 1.959963984540054
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def paired_bootstrap(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, samples: int = 5000, seed: int = 0
) -> Interval:
    """Mean of `ours − theirs` over the same rows with its percentile bootstrap interval, 95 %
    (Efron 1979). The rows are resampled; the training is not: other shots vary more than this."""
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(differences) == 0:
        raise ValueError("no rows")
    rng = np.random.default_rng(seed)
    # Resampling the few distinct values by their counts is the same draw at a fraction of the cost.
    values, counts = np.unique(differences, return_counts=True)
    means = rng.multinomial(len(differences), counts / len(differences), size=samples) @ values / len(differences)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


def macro_f1(predictions: Sequence[int], targets: Sequence[int], classes: int) -> float:
    """Mean over the classes of F1; a class that is neither there nor predicted counts as 0."""
    confusion = np.zeros((classes, classes), dtype=np.int64)  # (target, prediction)
    np.add.at(confusion, (np.asarray(targets), np.asarray(predictions)), 1)
    hits = np.diag(confusion)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(np.divide(2 * hits, total, out=np.zeros(classes), where=total > 0)))


Losses = NDArray[np.float64]
"""One loss per row, in nats: lower is better."""
