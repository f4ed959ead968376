"""Records → checked rows: columns, texts and labels. Each file is read once.

Messages name file and line, never a row's text.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gpta_local.config import Config, DataConfig
from gpta_local.data.readers import Record, read_records
from gpta_local.errors import DataError
from gpta_local.schema import Label


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A checked row: one text or a pair, and the number of its label. Its repr hides the text."""

    texts: tuple[str, ...]
    label: int

    def __repr__(self) -> str:
        return f"Example(<{len(self.texts)} text(s)>, label={self.label})"


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """All rows of the data files, checked. `validation` and `test` are None where no file is named."""

    labels: tuple[Label, ...]
    train: list[Example]
    validation: list[Example] | None
    test: list[Example] | None

    def texts(self) -> Iterator[str]:
        """Every text of every row, also of those that a run does not use."""
        for example in chain(self.train, self.validation or (), self.test or ()):
            yield from example.texts


LONG_NAME = 6
"""Words from which on a label's name looks like the text of a row."""
LONGEST_SHOWN = 24
"""Characters of an unknown label that a message repeats."""


def read_rows(config: Config) -> Rows:
    """Read and check the files that the configuration names.

    Raises:
        DataError: the first problem, with file and line.
    """
    columns, label = text_columns(config.data), config.data.label

    def records(path: str) -> list[Record]:
        found = read_records(path)
        check_columns(found[0], [*columns, label])
        return found

    train = records(config.data.train)
    labels = read_labels(config, train)
    names = [label.name for label in labels]
    examples = read_examples(train, columns, label, names)
    others = (config.data.validation, config.data.test)
    validation, test = (path and read_examples(records(path), columns, label, names) for path in others)
    return Rows(labels, examples, validation or None, test or None)


def text_columns(config: DataConfig) -> list[str]:
    return [config.text] if config.text_pair is None else [config.text, config.text_pair]


def check_columns(record: Record, columns: Sequence[str]) -> None:
    """Raise a DataError that names the nearest column if one is not there."""
    for column in columns:
        if column not in record.values:
            known = [str(name) for name in record.values]
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"no column {column!r}",
                where=record.where,
                fix=f"{hint}The columns are: {', '.join(known)[:200]}. Set data.text, data.text_pair and data.label",
            )


def read_texts(record: Record, columns: Sequence[str]) -> tuple[str, ...]:
    """The row's texts, checked: strings with at least one visible character."""
    check_columns(record, columns)
    texts = []
    for column in columns:
        value = record.values[column]
        if not isinstance(value, str):
            raise DataError(f"{column!r} is {type(value).__name__}, not text", where=record.where)
        if not value.strip():
            raise DataError(f"{column!r} is empty", where=record.where, fix="Remove the row or fill it in")
        _check_unicode(value, column, record.where)
        texts.append(value)
    return tuple(texts)


def read_examples(
    records: Sequence[Record], columns: Sequence[str], label: str, label_names: Sequence[str]
) -> list[Example]:
    """Checked rows. Raises a DataError at the first row that has no text or an unknown label."""
    numbers = {name: number for number, name in enumerate(label_names)}
    examples = []
    for record in records:
        texts = read_texts(record, columns)
        name = _label_name(record, label)
        if name not in numbers:
            near = difflib.get_close_matches(name, label_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else "Is data.label the right column? "
            raise DataError(  # a long value is not shown: it can be the text of a row
                f"unknown label {name!r}" if near or len(name) <= LONGEST_SHOWN else "unknown label",
                where=record.where,
                fix=f"{hint}The labels are: {', '.join(label_names)[:200]}",
            )
        examples.append(Example(texts, numbers[name]))
    return examples


def read_labels(config: Config, records: Sequence[Record]) -> tuple[Label, ...]:
    """The labels of the card, or those of the training rows in alphabetical order."""
    given = config.card.labels
    if given is None:
        found = Counter(_label_name(record, config.data.label) for record in records)
        if len(found) > 200 or len(found) > max(2, len(records) // 2):  # the assistant is told their names
            raise DataError(
                f"{len(found)} different labels in {len(records)} rows",
                where=config.data.train,
                fix="Is data.label the right column? If so, list them in card.labels",
            )
        if any(len(name.split()) >= LONG_NAME for name in found):
            raise DataError(  # they would go to the assistant
                f"a label has {LONG_NAME} words or more",
                where=config.data.train,
                fix="Is data.label the right column? If so, list the labels in card.labels",
            )
        names: list[str] = sorted(found)
        meanings: Mapping[str, str] = {}
    else:
        names = [name.strip() for name in given]
        meanings = {name.strip(): text for name, text in given.items()} if isinstance(given, dict) else {}
    if len(names) < 2:
        raise DataError(
            f"only one class, {names[0]!r}" if names else "no class",
            where=config.data.train if given is None else "card.labels",
            fix="A classifier needs at least two",
        )
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError("a label is empty or given twice", where="card.labels")
    return tuple(Label(name, " ".join(meanings.get(name, "").split())) for name in names)


def _label_name(record: Record, column: str) -> str:
    check_columns(record, [column])
    value: Any = record.values[column]
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        raise DataError(f"{column!r} is empty or not a label", where=record.where)
    _check_unicode(str(value), column, record.where)
    return str(value).strip()


def _check_unicode(value: str, column: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise DataError(f"{column!r} is not valid Unicode (half of a surrogate pair)", where=where) from exc
