"""Files that must be kept, refused or checked: secrets, private outputs, pickles, manifests.

Knows bytes, modes and names. Does not know configurations, models or runs, and reads no rows. Needs
the standard library only. It never unpickles: pickles are recognised by their opcodes.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import pickletools
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from gpta_local.errors import ConfigError, ModelError


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and of its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ── secrets and private outputs ─────────────────────────────────────────────────────────────────

SECRET_BYTES = 8192
"""A longer file is no key."""


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


# ── pickles ─────────────────────────────────────────────────────────────────────────────────────

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
HEAD = 2**18
"""Bytes of a file, and of each member of an archive, in which a pickle must begin."""
CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
"""Opcodes that call what the pickle names."""
NPY_OBJECTS = re.compile(rb"\x93NUMPY.{4,6}\{[^}]*'descr':[^}]*'[|<>=]?O\d*'", re.DOTALL)
DAMAGED = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x78\x01": zlib.decompressobj,
    b"\x78\x5e": zlib.decompressobj,
    b"\x78\x9c": zlib.decompressobj,
    b"\x78\xda": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
}


def find_pickles(folder: Path) -> list[Path]:
    """Files below `folder` that run code where they are loaded: pickles, by their content or name.

    Seen by content are pickles of every protocol, also compressed (gzip, zlib, bzip2, xz) and as members
    of a zip or tar archive, as `torch.save` and joblib write them, and arrays of Python objects in .npy
    and .npz. Nothing is loaded.
    """
    return [path for path in files_below(folder) if path.suffix.lower() in PICKLE_SUFFIXES or _holds_pickle(path)]


def _holds_pickle(path: Path) -> bool:
    return any(_is_pickle(head) or NPY_OBJECTS.match(head) is not None for head in _heads(path))


def _heads(path: Path) -> Iterator[bytes]:
    """The beginnings of a file, of what it is when decompressed, and of what is packed in it."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    yield head
    for magic, decompressor in DECOMPRESSORS.items():
        if head.startswith(magic):
            with suppress(*DAMAGED):
                head = decompressor().decompress(head, HEAD)
                yield head
    if zipfile.is_zipfile(path):
        with suppress(*DAMAGED), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with suppress(*DAMAGED), archive.open(info) as member:
                    yield member.read(HEAD)
    if head[257:262] == b"ustar":
        with suppress(*DAMAGED), tarfile.open(path) as packed:
            for entry in packed:
                content = packed.extractfile(entry) if entry.isreg() else None
                if content is not None:
                    yield content.read(HEAD)


def _is_pickle(head: bytes) -> bool:
    """Whether an unpickler would get anywhere with this.

    After the header of protocol 2 and later, three opcodes that can be read are enough: a safetensors
    file whose length happens to begin with the same bytes has none. Earlier protocols are letters, which
    text has too: there a call must be reached, or the end, with what they need on the stack.
    """
    with_header = len(head) > 1 and head[0] == 0x80 and head[1] <= 5
    depth, marks = 0, list[int]()
    with suppress(ValueError, IndexError, OverflowError):
        for number, (opcode, _, _) in enumerate(pickletools.genops(head), start=1):
            needed = len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                needed = opcode.stack_before.index(pickletools.markobject)
                depth = marks.pop()
            if opcode.name == "MARK":
                marks.append(depth)
            elif depth < needed:
                return False
            elif opcode.name in CALLS or (with_header and number == 3) or opcode.name == "STOP":
                return True
            else:
                depth += len(opcode.stack_after) - needed
    return False


# ── manifests ───────────────────────────────────────────────────────────────────────────────────

MANIFEST = "SHA256SUMS"
LOADED = {".safetensors", ".json", ".jinja", ".model", ".txt"}
"""Endings of the files that a model is loaded from: weights, configuration, tokenizer."""
REMAKE = (
    "Do not use the folder. If you changed it yourself, list it anew, inside of it: "
    f"find . -type f ! -name {MANIFEST} -exec sha256sum {{}} + > {MANIFEST}"
)
ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
"""As coreutils writes names with a line break or a backslash; such a line begins with a backslash."""


def verify_manifest(folder: Path) -> None:
    """Check a model folder against its `SHA256SUMS`, in the format of `sha256sum`; without one, do nothing.

    The list must name every file that a model is loaded from; of others it may. Files are hashed once in
    a process, unless they change.

    Raises:
        ModelError: naming the file that differs, is missing or is not listed, or the line that is wrong.
    """
    if (folder / MANIFEST).is_file():
        states = tuple(
            (path, state.st_ino, state.st_size, state.st_mtime_ns)
            for path in files_below(folder)
            for state in [path.stat()]
        )
        _verify(folder, states)


@lru_cache(maxsize=16)
def _verify(folder: Path, states: tuple[tuple[Path, int, int, int], ...]) -> None:
    """`states` tell when to hash again."""
    listed = read_manifest(folder / MANIFEST)
    present = {path.relative_to(folder).as_posix() for path, *_ in states}
    for name in sorted(present - set(listed) - {MANIFEST}):
        if PurePosixPath(name).suffix in LOADED:
            raise ModelError(f"{name!r} is not listed in {MANIFEST}", where=str(folder), fix=REMAKE)
    for name, digest in listed.items():
        if name not in present:
            raise ModelError(f"{name!r} is listed in {MANIFEST} and missing", where=str(folder), fix=REMAKE)
        if sha256(folder / name) != digest:
            raise ModelError(f"{name!r} is not the file that {MANIFEST} lists", where=str(folder), fix=REMAKE)


def write_manifest(folder: Path) -> None:
    """List all files of a folder in its `SHA256SUMS`: `sha256sum --check SHA256SUMS` checks them too."""
    paths = [path for path in files_below(folder) if path != folder / MANIFEST]
    text = manifest_text({path.relative_to(folder).as_posix(): sha256(path) for path in paths})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def manifest_text(digests: Mapping[str, str]) -> str:
    """The text of a `SHA256SUMS`, out of name → digest."""
    lines = []
    for name, digest in digests.items():
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
    return "".join(lines)


def read_manifest(path: Path) -> dict[str, str]:
    """Name → digest. What the list says of itself, which it cannot know, is left out.

    Raises:
        ModelError: naming the line that is wrong.
    """
    listed: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelError("cannot be read as UTF-8 text", where=str(path), fix=REMAKE) from exc
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        parts = re.fullmatch(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)", line)
        if parts is None:
            fix = "Each line is a SHA-256 in hexadecimal, two blanks and a name, as sha256sum writes it"
            raise ModelError("not a line of sha256sum", where=f"{path}:{number}", fix=fix)
        escaped, digest, name = parts.groups()
        if escaped:
            name = re.sub(r"\\[\\nr]", lambda match: ESCAPES[match[0]], name)
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ModelError("the name leads out of the folder", where=f"{path}:{number}", fix=REMAKE)
        if listed.setdefault(relative.as_posix(), digest.lower()) != digest.lower():
            raise ModelError("the file is listed twice with different sums", where=f"{path}:{number}", fix=REMAKE)
    listed.pop(MANIFEST, None)
    if not listed:
        raise ModelError("lists no file", where=str(path), fix=REMAKE)
    return listed


def sha256(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
