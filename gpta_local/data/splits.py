"""Which rows train, which choose, which test: shots, carving, overlaps, and the order of scoring.

Knows examples; neither files nor models.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gpta_local.data.checks import overlaps, rare_classes
from gpta_local.data.examples import Example, Rows
from gpta_local.errors import DataError

MANY_ROWS = 500
"""From this many training rows on, validation rows are carved and the search is online."""
CARVED_SHARE = 0.1
FITTED_ROWS = 1000
"""Training rows at most on which a trained model is measured, for the gap to the test rows."""


@dataclass(frozen=True, slots=True)
class Splits:
    """`validation` and `test` may be empty. `many`: whether there were at least `MANY_ROWS` training
    rows, before any were carved. `warnings` and `notes` (what was guessed of the files) are sentences for the user."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    many: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fitted(self) -> list[Example]:
        """Training rows that a trained model is measured on, evenly spread: `FITTED_ROWS` at most."""
        return self.train[:: max(1, -(-len(self.train) // FITTED_ROWS))]


def make_splits(
    rows: Rows,
    *,
    shots: int | None,
    seed: int,
    carve_few: bool = False,
) -> Splits:
    """Sample shots, carve validation rows if there are none and enough to carve from, and warn.

    Args:
        carve_few: carve also from fewer than `MANY_ROWS` training rows.

    Raises:
        DataError: if a class has no training row, or fewer than `shots`.
    """
    train, validation, label_names = rows.train, rows.validation, [label.name for label in rows.labels]
    counts = Counter(example.label for example in train)
    missing = [name for number, name in enumerate(label_names) if not counts[number]]
    if train and missing:
        raise DataError(
            f"no training row has the label {missing[0]!r}",
            where="data.train",
            fix="Drop it from card.labels or add rows",
        )
    if shots is not None:
        scarce = [(counts[number], name) for number, name in enumerate(label_names) if counts[number] < shots]
        if scarce:
            number, name = min(scarce)
            raise DataError(
                f"data.shots is {shots} but the label {name!r} has only {number} training rows",
                where="data.train",
                fix=f"Set data.shots to {number} or less",
            )
        train = sample_shots(train, shots, seed)
    warnings = [*rows.warnings, *(rare_classes(counts, label_names) if train and shots is None else ())]
    many = len(train) >= MANY_ROWS
    if validation is None and (carve_few or many):
        train, validation = carve(train, CARVED_SHARE, seed)
    splits = {"training": train, "validation": validation or [], "test": rows.test or []}
    warnings += overlaps({name: [(row.texts, row.label) for row in of] for name, of in splits.items()})
    return Splits(train, splits["validation"], splits["test"], many, tuple(warnings), rows.notes)


def sample_shots(examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """`shots` examples of each class, in random order; the same for the same seed."""
    rng = random.Random(f"shots-{seed}")
    by_label = _by_label(examples)
    sample = [example for label in sorted(by_label) for example in rng.sample(by_label[label], shots)]
    rng.shuffle(sample)
    return sample


def carve(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split off a stratified share, at least a row of each class that has two: (rest, carved)."""
    rng = random.Random(f"carve-{seed}")
    rest: list[Example] = []
    carved: list[Example] = []
    for _, members in sorted(_by_label(examples).items()):
        rng.shuffle(members)
        size = min(max(1, round(len(members) * share)), len(members) - 1)
        carved += members[:size]
        rest += members[size:]
    rng.shuffle(rest)
    rng.shuffle(carved)
    return rest, carved


def _by_label(examples: Sequence[Example]) -> dict[int, list[Example]]:
    by_label: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.label].append(example)
    return by_label


def scoring_order(labels: Sequence[int], size: int, seed: int) -> list[int]:
    """Row numbers to score on: at most `size`, random, each class spread evenly over the order, so
    that every heat holds the classes in about the proportions of the data."""
    rng = random.Random(f"scoring-{seed}")
    rows = list(range(len(labels)))
    rng.shuffle(rows)
    total, turn = Counter(labels), Counter[int]()
    keyed = []
    for row in rows:
        label = labels[row]
        keyed.append(((turn[label] + rng.random()) / total[label], row))
        turn[label] += 1
    return [row for _, row in sorted(keyed)][:size]
