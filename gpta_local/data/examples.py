"""Records → checked rows: columns, texts and labels. Each file is read once.

Messages name file and line, never a row's text.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from gpta_local.config import Config, DataConfig
from gpta_local.data.checks import contradictions, doubtful_labels
from gpta_local.data.labels import label_key, label_name
from gpta_local.data.readers import read_records
from gpta_local.data.records import Record, Table, missing_column, tidy
from gpta_local.errors import DataError
from gpta_local.schema import Label


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A checked row: one text or a pair, and the number of its label. Its repr hides the text."""

    texts: tuple[str, ...]
    label: int

    @property
    def digest(self) -> str:
        """By which the same row is known again in another run: 64 bits of the SHA-256 of its texts, in hexadecimal."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Example(<{len(self.texts)} text(s)>, label={self.label})"


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """All rows of the data files, checked. `validation` and `test` are None where no file is named, and `train` is
    empty.

    `notes`: what was guessed of the files; `warnings`: what is wrong with the rows; a sentence each.
    """

    labels: tuple[Label, ...]
    train: list[Example]
    validation: list[Example] | None
    test: list[Example] | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def texts(self) -> Iterator[str]:
        """Every text of every row, also of those that a run does not use."""
        for example in chain(self.train, self.validation or (), self.test or ()):
            yield from example.texts


LONG_NAME = 6
"""Words from which on a label's name looks like the text of a row."""
MOST_LABELS = 200
LONGEST_SHOWN = 24
"""Characters of an unknown label that a message repeats."""


def read_rows(config: Config) -> Rows:
    """Read and check the files that the configuration names.

    Raises:
        DataError: the first problem, with file and line.
    """
    columns, label = text_columns(config.data), config.data.label

    def read(path: str) -> Table:
        return read_records(path, [*columns, label], config.data)

    table = read(config.data.train) if config.data.train else Table((), [])
    labels = read_labels(config, table.records)
    names = [label.name for label in labels]
    train = read_examples(table.records, columns, label, names)
    warnings = [
        *contradictions([example.texts for example in train], [example.label for example in train], table.records),
        *doubtful_labels(names if config.card.labels is None else ()),
    ]
    notes = list(table.notes)
    del table
    others: list[list[Example] | None] = []
    for path in (config.data.validation, config.data.test):
        other = read(path) if path else None
        others.append(read_examples(other.records, columns, label, names) if other else None)
        notes += other.notes if other else ()
    return Rows(labels, train, others[0], others[1], tuple(notes), tuple(warnings))


def text_columns(config: DataConfig) -> list[str]:
    return [config.text] if config.text_pair is None else [config.text, config.text_pair]


def read_texts(record: Record, columns: Sequence[str]) -> tuple[str, ...]:
    """The row's texts, checked: strings with at least one visible character."""
    texts = []
    for column in columns:
        if column not in record.values:
            raise missing_column(column, record.values, record.where)
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
    numbers = {label_key(name): number for number, name in enumerate(label_names)}
    seen: dict[str, int] = {}  # values as they stand in the file
    examples = []
    for record in records:
        texts = read_texts(record, columns)
        value = record.values.get(label)
        if isinstance(value, str) and value in seen:
            examples.append(Example(texts, seen[value]))
            continue
        name = label_name(record, label, numbers)
        number = numbers.get(label_key(name))
        if number is None:
            near = difflib.get_close_matches(name, label_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else "Is data.label the right column? "
            raise DataError(  # a long value is not shown: it can be the text of a row
                f"unknown label {name!r}" if near or len(name) <= LONGEST_SHOWN else "unknown label",
                where=record.where,
                fix=f"{hint}The labels are: {', '.join(label_names)[:200]}",
            )
        examples.append(Example(texts, number))
        if isinstance(value, str):
            seen[value] = number
    return examples


def read_labels(config: Config, records: Sequence[Record]) -> tuple[Label, ...]:
    """The labels of the card, or those of the training rows in alphabetical order."""
    given = config.card.labels
    if given is None:
        names = names_of([label_name(record, config.data.label) for record in records])
        meanings: Mapping[str, str] = {}
        check_label_column(names, len(records), config.data.train or "")
    else:
        names = [tidy(name) for name in given]
        meanings = {tidy(name): text for name, text in given.items()} if isinstance(given, dict) else {}
    if len(names) < 2:
        raise DataError(
            f"only one class, {names[0]!r}" if names else "no class",
            where="card.labels" if given is not None or config.data.train is None else config.data.train,
            fix="A classifier needs at least two",
        )
    if len({label_key(name) for name in names}) < len(names) or not all(names):
        raise DataError("a label is empty or given twice", where="card.labels")
    return tuple(Label(name, " ".join(meanings.get(name, "").split())) for name in names)


def names_of(labels: Sequence[str]) -> list[str]:
    """The different labels in alphabetical order; of those that are one (1 and 1.0), the most frequent, then the
    shortest spelling."""
    spellings = sorted(Counter(labels).items(), key=lambda item: (item[1], -len(item[0]), item[0]))
    return sorted({label_key(name): name for name, _ in spellings}.values())


def check_label_column(names: Sequence[str], rows: int, where: str) -> None:
    """Raise a DataError if these are too many, or too long, for labels: the assistant is told their names."""
    remedy = "Is data.label the right column? If so, list the labels in card.labels"
    if any(len(name.split()) >= LONG_NAME for name in names):
        raise DataError(f"a label has {LONG_NAME} words or more", where=where, fix=remedy)
    if len(names) > MOST_LABELS or len(names) > max(2, rows // 2):
        fix = remedy if len(names) > MOST_LABELS else f"Each label needs two rows or more. {remedy}"
        raise DataError(f"{len(names)} different labels in {rows} rows", where=where, fix=fix)


def _check_unicode(value: str, column: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise DataError(f"{column!r} is not valid Unicode (half of a surrogate pair)", where=where) from exc
