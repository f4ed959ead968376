"""What a disk says while it is written to: full, broken, locked. Knows the errors of the system and SQLite."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpta_local.errors import OutputError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say clearly what the system and SQLite say while a run writes into its folder.

    Raises:
        StorageError: the disk is full, or fails; the run can go on later.
        OutputError: the history is locked by another program, or may not be written.
    """
    try:
        yield
    except sqlite3.Error as exc:
        where = str(folder / "history.sqlite")
        if "full" in str(exc):
            raise disk_full(where) from exc
        if "I/O error" in str(exc):
            fix = "Look after the disk; network file systems do this too: choose a local one with --output"
            raise StorageError(f"the disk fails ({exc})", where=where, fix=fix) from exc
        fix = "Does another program have it open? On network file systems locks may fail: choose a local disk"
        raise OutputError(f"the history cannot be used ({exc})", where=where, fix=fix) from exc
    except OSError as exc:
        if exc.errno in FULL:
            raise disk_full(str(exc.filename or folder)) from exc
        if exc.errno == errno.EIO:
            raise StorageError("the disk fails", where=str(exc.filename or folder), fix="Look after it") from exc
        raise


def disk_full(where: str) -> StorageError:
    return StorageError("the disk is full", where=where, fix="Make room, and go on with --resume")


def system_error(message: str, path: Path) -> OSError:
    """What a library that is no Python says of the system, as an OSError."""
    number = re.search(r"os error (\d+)", message)
    return OSError(int(number[1]) if number else 0, message, str(path))
