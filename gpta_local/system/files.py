"""Files that must be kept: secrets, private outputs, and what must survive a power failure.

Knows bytes and modes. Does not know configurations, models or runs, and reads no rows.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpta_local.errors import ConfigError

SECRET_BYTES = 8192
"""A longer file is no key."""


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_secret(path: Path, key: str) -> str:
    """The secret in a file that only this user can read; white space around it is taken off.

    The opened file is checked, not its name: nobody can put another into its place in between.

    Args:
        key: of the configuration, for messages. They never hold what the file holds.

    Raises:
        ConfigError: it cannot be read, is no file, is another user's, can be read by others, is empty,
            too long or not plain text.
    """
    where = f"{key} ({path})"
    try:
        with open(path, "rb", opener=_at_once) as file:
            state, content = os.fstat(file.fileno()), file.read(SECRET_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot be read ({exc.strerror})", where=where) from exc
    if not stat.S_ISREG(state.st_mode):
        raise ConfigError("not a file", where=where, fix="Give a file that holds the key and nothing else")
    if state.st_uid != os.geteuid():
        raise ConfigError("the file belongs to another user", where=where, fix="Use a file of your own")
    if state.st_mode & 0o077:
        mode = f"{stat.S_IMODE(state.st_mode):04o}"
        fix = f"chmod 600 {path}; if others could read it, change the key"
        raise ConfigError(f"others can reach the file (mode {mode})", where=where, fix=fix)
    if len(content) > SECRET_BYTES:
        raise ConfigError(f"more than {SECRET_BYTES} bytes, which is no key", where=where)
    try:
        secret = content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError("not plain ASCII text", where=where) from None  # the cause would hold the bytes
    if not secret:
        raise ConfigError("the file is empty", where=where, fix="Write the key into it")
    return secret


def _at_once(name: str, flags: int) -> int:
    """Opens without waiting for the other end of a pipe."""
    return os.open(name, flags | os.O_NONBLOCK)


@contextmanager
def owner_only() -> Iterator[None]:
    """What is made inside is its owner's alone: folders 0700, files 0600, whatever the user's umask.

    Holds for the whole process and for the processes that it starts meanwhile. Also a decorator.
    """
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def as_umask_says(folder: Path) -> None:
    """Give a folder, and all in it, the modes that new ones get: it is there to be handed on."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def flush(path: Path) -> None:
    """Make sure that a file's content, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """`flush` a folder, and all in it."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file all or nothing: a reader, or who comes after a power failure, sees the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; moved into its place at the end, removed on a failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()  # an empty one; a full one is refused before
        flush_all(partial)
        partial.replace(folder)
        flush(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
