"""A file of labelled rows that is there only when it is whole, and that a stopped command can go on with.

Until then its rows are in `NAME.partial`, and what is needed to go on in `NAME.partial.json`: how far, for which model,
inputs and options. Knows files and rows; not what is in them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from gpta_local.data.writing import row_writer
from gpta_local.errors import InputError, OutputError
from gpta_local.system.files import owner_only, write_whole


@dataclass(slots=True)
class Progress:
    """Rows that are safely on the disk, the bytes that they take, and those of them without a text."""

    rows: int = 0
    bytes: int = 0
    blank: int = 0
    first_blank: str = ""
    columns: tuple[str, ...] = ()


class Rows:
    """What rows are written into, one after the other. `begun`: what an earlier command has left. `saved`: rows that
    can be gone on with."""

    def __init__(self, file: TextIO, kind: str, begun: Progress, kept: Path | None = None, key: str = "") -> None:
        self.file, self.begun, self._kept, self._key = file, begun, kept, key
        self._columns, self.saved = begun.columns, begun.rows
        self._write = row_writer(file, kind, begun.columns)

    def write(self, row: Mapping[str, Any]) -> None:
        self._columns = self._columns or tuple(row)
        self._write(row)

    def save(self, rows: int, blank: int, first_blank: str) -> None:
        """From here on it can be gone on with, where this is a file."""
        if self._kept is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            size = os.fstat(self.file.fileno()).st_size
            progress = Progress(rows, size, blank, first_blank, self._columns)
            write_whole(self._kept, json.dumps({"of": self._key, **asdict(progress)}))
            self.saved = rows


@contextmanager
def opened(output: Path | None, kind: str, key: str, *, resume: bool = False) -> Iterator[Rows]:
    """Standard output or a device, or a file of its owner's alone.

    Args:
        kind: as `row_writer` takes it.
        key: what the rows are made of and with; only what has the same is gone on with.
        resume: go on with what is there.

    Raises:
        InputError: there is something to go on with, but not of this.
        OutputError: it cannot be written.
    """
    if output is None:
        yield Rows(sys.stdout, kind, Progress())
        sys.stdout.flush()
        return
    if output.is_dir():
        raise OutputError("a directory is there", where=str(output), fix="Name a file")
    if output.exists() and not output.is_file():  # /dev/null: another file must not take its place
        with output.open("w", encoding="utf-8", errors="replace") as file:
            yield Rows(file, kind, Progress())
        return
    partial = output.with_name(output.name + ".partial")
    kept = output.with_name(partial.name + ".json")
    try:
        begun = _left(partial, kept, key) if resume else Progress()
        if not begun.rows:
            partial.unlink(missing_ok=True)  # an existing file would keep its mode
            kept.unlink(missing_ok=True)
        with owner_only(), partial.open("a", encoding="utf-8", errors="replace") as file:
            file.truncate(begun.bytes)
            yield Rows(file, kind, begun, kept, key)
        partial.replace(output)
        kept.unlink(missing_ok=True)
    except BaseException as exc:
        if not kept.is_file():
            partial.unlink(missing_ok=True)
        if not isinstance(exc, OSError):
            raise
        raise OutputError(f"cannot be written ({exc.strerror or exc})", where=str(output)) from exc


def _left(partial: Path, kept: Path, key: str) -> Progress:
    """What an earlier command has left; nothing, where there is nothing or less than it says."""
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        of, progress = found.pop("of"), Progress(**found)
        whole = partial.stat().st_size >= progress.bytes
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Progress()
    if of != key:
        raise InputError(
            "what is here was begun with another model, other inputs or other options",
            where=str(partial),
            fix="Give those again, or leave out --resume to begin anew",
        )
    progress.columns = tuple(progress.columns)
    return progress if whole else Progress()
