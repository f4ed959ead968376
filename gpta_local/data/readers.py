"""Files → checked splits. Knows formats, splits, shots; the only module that opens private rows.

Does not know models or assistants, and nothing on the assistant's side imports it. Messages name
file and line, never a row's text.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpta_local.errors import DataError

MANY_ROWS = 500
"""From this many training rows on, validation rows are carved and the search is online."""
CARVED_SHARE = 0.1
FITTED_ROWS = 1000
"""Training rows at most on which a trained model is measured, for the gap to the test rows."""

FORMATS = "a .jsonl, .csv, .tsv or .parquet file, or a folder saved by `datasets`"


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in the file; `where` is file and line (or row number)."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A checked row: one text or a pair, and the number of its label. Its repr hides the text."""

    texts: tuple[str, ...]
    label: int

    def __repr__(self) -> str:
        return f"Example(<{len(self.texts)} text(s)>, label={self.label})"


@dataclass(frozen=True, slots=True)
class Splits:
    """`validation` and `test` may be empty. `many`: whether there were at least `MANY_ROWS` training
    rows, before any were carved. `warnings` are sentences for the user."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    many: bool
    warnings: tuple[str, ...]

    @property
    def fitted(self) -> list[Example]:
        """Training rows that a trained model is measured on, evenly spread: `FITTED_ROWS` at most."""
        return self.train[:: -(-len(self.train) // FITTED_ROWS)]


def read_records(path: str) -> list[Record]:
    """All rows of a file or folder.

    Raises:
        DataError: if it is missing, empty or broken; names file and line.
    """
    location = Path(path)
    if not location.exists():
        raise DataError("no such file or folder", where=path, fix="Paths are relative to the configuration file")
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = _read_saved_folder if location.is_dir() else readers.get(location.suffix.lower())
    if reader is None:
        raise DataError(f"the format {location.suffix!r} is not known", where=path, fix=f"Give {FORMATS}")
    try:
        records = list(reader(location))
    except UnicodeDecodeError as exc:
        raise DataError(f"not UTF-8 text (byte {exc.start})", where=path, fix="Convert the file to UTF-8") from exc
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror or exc})", where=path) from exc
    if not records:
        raise DataError("no rows", where=path)
    return records


def make_splits(
    train: list[Example],
    validation: list[Example] | None,
    test: list[Example] | None,
    label_names: Sequence[str],
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
    counts = Counter(example.label for example in train)
    missing = [name for number, name in enumerate(label_names) if not counts[number]]
    if missing:
        raise DataError(
            f"no training row has the label {missing[0]!r}",
            where="data.train",
            fix="Drop it from card.labels or add rows",
        )
    if shots is not None:
        scarce = [(counts[number], name) for number, name in enumerate(label_names) if counts[number] < shots]
        if scarce:
            rows, name = min(scarce)
            raise DataError(
                f"data.shots is {shots} but the label {name!r} has only {rows} training rows",
                where="data.train",
                fix=f"Set data.shots to {rows} or less",
            )
        train = sample_shots(train, shots, seed)
    many = len(train) >= MANY_ROWS
    if validation is None and (carve_few or many):
        train, validation = carve(train, CARVED_SHARE, seed)
    splits = {"training": train, "validation": validation or [], "test": test or []}
    return Splits(train, splits["validation"], splits["test"], many, tuple(_overlaps(splits)))


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


def _overlaps(splits: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """A sentence for each pair of splits that share rows (case and white space folded)."""
    keys = {
        name: [tuple(" ".join(text.casefold().split()) for text in row.texts) for row in rows]
        for name, rows in splits.items()
    }
    for first, second in (("training", "test"), ("validation", "test"), ("training", "validation")):
        other = set(keys[second])
        shared = sum(key in other for key in keys[first])
        if shared:
            rows = "row is" if shared == 1 else "rows are"
            yield f"{shared} {first} {rows} also in {second}: results on {second} are too good; remove them"


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as exc:
                if isinstance(exc, json.JSONDecodeError):
                    detail = f"{exc.msg} at column {exc.colno}"
                else:
                    detail = "nested too deep" if isinstance(exc, RecursionError) else "a number is too long"
                raise DataError(f"broken JSON: {detail}", where=where, fix="Each line must be one JSON object") from exc
            if not isinstance(values, dict):
                raise DataError(
                    f"a JSON {type(values).__name__}, not an object",
                    where=where,
                    fix='Each line must be like {"text": "...", "label": "..."}',
                )
            yield Record(values, where)


def _read_csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            repeated = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if repeated:
                raise DataError(f"the column {repeated[0]!r} is there twice", where=f"{path}:1")
            for row in reader:
                where = f"{path}:{reader.reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"not the {len(reader.fieldnames or [])} fields of the header",
                        where=where,
                        fix="Quote fields that hold commas or line breaks",
                    )
                yield Record(row, where)
        except csv.Error as exc:
            raise DataError(f"broken CSV: {exc}", where=f"{path}:{reader.line_num + 1}") from exc


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno:  # the system's; arrow's own has no number
            raise
        raise DataError("not a readable parquet file", where=str(path)) from exc
    for number, values in enumerate(rows, start=1):
        yield Record(values, f"{path} row {number}")


def _read_saved_folder(path: Path) -> Iterator[Record]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as exc:  # datasets and arrow raise many kinds for a folder that is not theirs
        raise DataError("not a folder saved by `datasets`", where=str(path), fix=f"Give {FORMATS}") from exc
    if isinstance(saved, datasets.DatasetDict):
        raise DataError(
            "a folder of several splits",
            where=str(path),
            fix=f"Name one of them, as in {path / next(iter(saved), 'train')}",
        )
    named = {name: feature for name, feature in saved.features.items() if isinstance(feature, datasets.ClassLabel)}
    for number, row in enumerate(saved, start=1):
        values = dict(row)
        for name, feature in named.items():
            if values[name] is not None and 0 <= values[name] < feature.num_classes:
                values[name] = feature.int2str(values[name])
        yield Record(values, f"{path} row {number}")
