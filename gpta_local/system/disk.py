"""What a disk says while it is written to: full, broken, locked. Knows the errors of the system and of SQLite."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gpta_local.errors import OutputError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say clearly what the system, SQLite and safetensors say while a run writes into its folder.

    Raises:
        StorageError: the disk is full, or fails; the run can go on later.
        OutputError: the history is locked by another program, or may not be written.
    """
    try:
        yield
    except sqlite3.Error as exc:
        where = str(folder / "history.sqlite")
        if "full" in str(exc):
            raise _full(where) from exc
        if "I/O error" in str(exc):
            fix = "Look after the disk; network file systems do this too: choose a local one with --output"
            raise StorageError(f"the disk fails ({exc})", where=where, fix=fix) from exc
        fix = "Does another program have it open? On network file systems locks may fail: choose a local disk"
        raise OutputError(f"the history cannot be used ({exc})", where=where, fix=fix) from exc
    except (OSError, SafetensorError) as exc:
        number = exc.errno if isinstance(exc, OSError) else _errno(str(exc))
        where = str(getattr(exc, "filename", None) or folder)
        if number in FULL:
            raise _full(where) from exc
        if number == errno.EIO:
            raise StorageError("the disk fails", where=where, fix="Look after it") from exc
        if number and isinstance(exc, SafetensorError):
            raise OSError(number, os.strerror(number), where) from exc
        raise


def _full(where: str) -> StorageError:
    return StorageError("the disk is full", where=where, fix="Make room, and go on with --resume")


def _errno(message: str) -> int:
    """The number of the system's error in the words of a library in Rust; 0 if there is none."""
    found = re.search(r"os error (\d+)", message)
    return int(found[1]) if found else 0
