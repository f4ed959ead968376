"""Files → checked splits. Knows formats, splits, shots; the only module that opens private rows.

Does not know models or assistants, and nothing on the assistant's side imports it. Messages name
file and line, never a row's text.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpta_local.errors import DataError

FORMATS = "a .jsonl, .csv, .tsv or .parquet file, or a folder saved by `datasets`"


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in the file; `where` is file and line (or row number)."""

    values: Mapping[str, Any]
    where: str


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
