"""What can be said of rows without showing one: counts and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from gpta_local.data.checks import folded
from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits


def facts(splits: Splits, label_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each split that has rows: how many there are, in all and of each label, their words, how many repeat an
    earlier row of the split, and how many are among the training rows too. Case and white space count for nothing."""
    trained = {hash(folded(row.texts)) for row in splits.train}
    named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: _of(rows, label_names, trained, name) for name, rows in named.items() if rows}


def _of(rows: Sequence[Example], label_names: Sequence[str], trained: set[int], name: str) -> dict[str, Any]:
    counts = Counter(row.label for row in rows)
    words = [sum(len(text.split()) for text in row.texts) for row in rows]
    keys = [hash(folded(row.texts)) for row in rows]
    return {
        "rows": len(rows),
        "labels": {label: counts[number] for number, label in enumerate(label_names)},
        "words": {"median": median(words), "longest": max(words)},
        "repeated": len(keys) - len(set(keys)),
        "in_training": 0 if name == "training" else sum(key in trained for key in keys),
    }
