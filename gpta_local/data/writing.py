"""Rows → files: CSV, TSV and JSON lines, row after row, so that nothing is held in memory.

Knows formats; neither what a row means nor where it goes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gpta_local.errors import DataError, OutputError

SEPARATED = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")

Write = Callable[[Mapping[str, Any]], None]


def written_format(path: Path, otherwise: str) -> str:
    """The format that a file's name asks for: .csv, .tsv or .jsonl.

    Args:
        otherwise: for names without an ending, as those of pipes and devices.

    Raises:
        OutputError: rows are not written in this format.
    """
    kind = path.suffix.lower() or otherwise
    if kind not in (*SEPARATED, *LINES):
        fix = "Name a file that ends with .csv, .tsv or .jsonl"
        raise OutputError(f"rows are not written as {kind}", where=str(path), fix=fix)
    return kind


def row_writer(file: TextIO, kind: str, columns: Sequence[str] = ()) -> Write:
    """Writes a row each time it is called. The first row's names make the header of a CSV file.

    Args:
        kind: as `written_format` gives it.
        columns: the header of a CSV file that is gone on with.
    """
    return _separated(file, SEPARATED[kind], columns) if kind in SEPARATED else _lines(file)


def _lines(file: TextIO) -> Write:
    def write(row: Mapping[str, Any]) -> None:
        plain = {name: None if value != value else value for name, value in row.items()}  # JSON has no NaN
        file.write(json.dumps(plain, ensure_ascii=False, default=str) + "\n")

    return write


def _separated(file: TextIO, delimiter: str, columns: Sequence[str]) -> Write:
    header = list(columns)
    out = csv.writer(file, delimiter=delimiter, lineterminator="\n")

    def write(row: Mapping[str, Any]) -> None:
        if not header:
            header.extend(row)
            out.writerow(header)
        if more := [name for name in row if name not in header]:
            fix = "Write JSON lines: --output FILE.jsonl"
            raise DataError(f"a row has the column {more[0]!r}, which the first row has not", fix=fix)
        out.writerow([_cell(row.get(name)) for name in header])

    return write


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
