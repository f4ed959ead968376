"""What every reader gives: records with the place where they stand, and how columns are found by name.

Messages name file and line, never a row's text.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpta_local.errors import DataError

LONGEST_NAME = 40
"""Characters of a column's name that a message shows: a longer one may be the text of a row in a file without a
header."""
NAME_WORDS = 4


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in the file, its columns in use alone; `where` is file and line (or row number)."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of a file. `columns`: all names that it has. `notes`: what was guessed, in a sentence each."""

    columns: tuple[str, ...]
    records: list[Record]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader gives while the file is open: the names of all columns, then the rows one by one."""

    columns: tuple[str, ...]
    records: Iterator[Record]
    notes: tuple[str, ...] = ()


def tidy(name: str) -> str:
    """A name as it is compared: in NFC, without blanks and byte order marks around it, white space as one blank."""
    return " ".join(unicodedata.normalize("NFC", name).replace("\ufeff", " ").replace("\u200b", "").split())


def find_columns(wanted: Sequence[str] | None, known: Sequence[str], where: str, hint: str = "") -> dict[str, int]:
    """The position of each wanted column among the known; None: of all that have a name that is there once.

    Raises:
        DataError: if one is not there, with the nearest that is, or is there twice.
    """
    names = [tidy(name) for name in known]
    if wanted is None:
        return {name: names.index(name) for name in names if name and names.count(name) == 1}
    found = {}
    for column in wanted:
        count = names.count(tidy(column))
        if count > 1:
            raise DataError(f"the column {column!r} is there twice", where=where, fix="Rename or remove one of the two")
        if not count:
            raise missing_column(column, names, where, hint)
        found[column] = names.index(tidy(column))
    return found


def missing_column(column: str, known: Iterable[str], where: str, hint: str = "") -> DataError:
    """An error that names the nearest column."""
    known = list(known)
    shown = [name for name in known if 0 < len(name) <= LONGEST_NAME and len(name.split()) <= NAME_WORDS]
    lower = {name.casefold(): name for name in shown}
    near = difflib.get_close_matches(column, shown, n=1) or [lower[c] for c in [column.casefold()] if c in lower]
    nearest = f"Did you mean {near[0]!r}? " if near else ""
    left_out = f" and {len(known) - len(shown)} without a short name" if len(shown) < len(known) else ""
    return DataError(
        f"no column {column!r}",
        where=where,
        fix=f"{nearest}The columns are: {', '.join(shown)[:200] or 'none'}{left_out}. "
        f"Name the right one in data.text, data.text_pair or data.label (--set data.text=NAME){hint}",
    )
