"""What is likely to be wrong with rows that can be read: a sentence each, never a row's text."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from gpta_local.data.records import Record

Texts = tuple[str, ...]
SIGNS = re.compile(r"[\W_]+")
LOOK_MISSING = {
    "none",
    "null",
    "na",
    "n/a",
    "n.a.",
    "nil",
    "undefined",
    "unknown label",
    "missing",
    "-",
    "?",
    "#value!",
}
NEAR_WORDS = 6
"""Words from which on two rows that differ in one of them are near."""
MOST_LOOKED_AT = 20_000
"""Rows of a split that are compared with those of another, evenly spread."""
MOST_COMPARED = 50
"""Rows that one is compared with, of those that share a half with it."""
RARE_ROWS = 3
RARE_SHARE = 0.25
"""A class of so many rows at most, and of this share of the mean class at most, is very rare."""
MOST_NAMED = 3


def contradictions(texts: Sequence[Texts], labels: Sequence[int], records: Sequence[Record]) -> Iterator[str]:
    """Texts that stand under different labels."""
    first: dict[int, int] = {}
    clashes: dict[int, int] = {}
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        known = first.setdefault(key := hash(folded(text)), row)
        if labels[known] != label:
            clashes.setdefault(key, row)
    if clashes:
        key, row = next(iter(clashes.items()))
        stand = "text stands" if len(clashes) == 1 else "texts stand"
        place = records[row].where.rpartition(" row " if " row " in records[row].where else ":")[2]
        yield (
            f"{len(clashes)} {stand} under different labels, the first at {records[first[key]].where} and {place}: "
            "keep the right one of each"
        )


def doubtful_labels(names: Iterable[str]) -> Iterator[str]:
    """Labels found in the rows that may be missing values, or one label in two spellings."""
    by_fold: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_fold[name.casefold()].append(name)
        if name.casefold() in LOOK_MISSING:
            yield f"the label {name!r} looks like a missing value; it is a class here: if it is none, remove its rows"
    for spellings in by_fold.values():
        if len(spellings) > 1:
            named = " and ".join(repr(name) for name in spellings)
            yield f"the labels {named} differ in capitals alone and are different classes: write one of them"


def rare_classes(counts: Mapping[int, int], names: Sequence[str]) -> Iterator[str]:
    """Classes with next to no training rows where others have many."""
    mean = sum(counts.values()) / len(names)
    rare = [name for number, name in enumerate(names) if 0 < counts[number] <= min(RARE_ROWS, RARE_SHARE * mean)]
    if rare:
        shown = ", ".join(f"{name!r} ({counts[names.index(name)]})" for name in rare[:MOST_NAMED])
        more = f" and {len(rare) - MOST_NAMED} more" if len(rare) > MOST_NAMED else ""
        yield f"very few training rows of {shown}{more}: add some, or leave these labels and their rows out"


def overlaps(splits: Mapping[str, Sequence[tuple[Texts, int]]]) -> Iterator[str]:
    """A sentence for each pair of splits that share rows (case, white space and Unicode forms folded), and for each
    with rows that are nearly the same: the same label, and the same words but for one of six or more, or for signs."""
    keys = {name: [hash(folded(texts)) for texts, _ in rows] for name, rows in splits.items()}
    for first, second in (("training", "test"), ("validation", "test"), ("training", "validation")):
        if not splits[first] or not splits[second]:
            continue
        other = set(keys[second])
        shared = sum(key in other for key in keys[first])
        if shared:
            rows = "row is" if shared == 1 else "rows are"
            yield f"{shared} {first} {rows} also in {second}: results on {second} are too good; remove them"
        step = -(-len(splits[first]) // MOST_LOOKED_AT)
        near = Halves(splits[second])
        alike = sum(
            key not in other and _is_near(_words(row), near)
            for key, row in zip(keys[first][::step], splits[first][::step], strict=True)
        )
        if alike:
            rows = "row is" if alike == 1 else "rows are"
            some = f"of every {step}th row, " if step > 1 else ""
            yield f"{some}{alike} {first} {rows} nearly the same as one in {second}: its results may be too good"


def folded(texts: Texts) -> Texts:
    return tuple(
        " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).casefold().split()) for text in texts
    )


def _words(row: tuple[Texts, int]) -> tuple[str, ...]:
    """The label and the words of a row without signs and capitals."""
    texts, label = row
    return str(label), *(word for text in texts for word in SIGNS.sub(" ", text.casefold()).split())


class Halves:
    """Which rows could be near another: by hashes of the halves that rows of as many words, or one more or less, could
    share with them. Sorted arrays: 72 bytes a row."""

    def __init__(self, rows: Sequence[tuple[Texts, int]]) -> None:
        self._rows = rows
        halves, owners, seen = array("q"), array("i"), set[int]()
        for number, row in enumerate(rows):
            words = _words(row)
            if (whole := hash(words)) in seen:
                continue
            seen.add(whole)
            for size in (len(words) - 1, len(words), len(words) + 1):
                halves.extend(_halves(words, size))
                owners.extend((number, number))
        order = np.argsort(halves, kind="stable")
        self._halves, self._owners = np.array(halves)[order], np.array(owners)[order]

    def sharing(self, half: int) -> list[tuple[str, ...]]:
        """The words of rows with this half, at most `MOST_COMPARED`."""
        start, end = np.searchsorted(self._halves, half), np.searchsorted(self._halves, half, "right")
        return [_words(self._rows[owner]) for owner in self._owners[start:end][:MOST_COMPARED]]


def _halves(words: tuple[str, ...], size: int) -> tuple[int, int]:
    """Hashes of the first and the last words, as many as are the halves of a row of `size` words."""
    middle = size // 2
    return hash((size, words[:middle])), hash((-size, words[len(words) - (size - middle) :]))


def _is_near(words: tuple[str, ...], known: Halves) -> bool:
    """Whether a row has the same words, or, of `NEAR_WORDS` or more, all but one: added, left out or replaced. Then a
    half of them is the same."""
    return any(_differ_in_one(words, other) for half in _halves(words, len(words)) for other in known.sharing(half))


def _differ_in_one(words: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether at most one word was added, left out or replaced, and the label, which comes first, is the same."""
    if words == other:
        return True
    shorter, longer = sorted((words, other), key=len)
    if len(shorter) <= NEAR_WORDS or len(longer) - len(shorter) > 1 or words[0] != other[0]:
        return False
    same = next((i for i, pair in enumerate(zip(shorter, longer, strict=False)) if pair[0] != pair[1]), len(shorter))
    return shorter[same + (len(shorter) == len(longer)) :] == longer[same + 1 :]
