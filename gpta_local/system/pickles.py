"""Finds pickles, which run code where they are loaded, by their opcodes and names. Never unpickles."""

from __future__ import annotations

import bz2
import lzma
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpta_local.system.files import files_below

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
PICKLE_HEAD = 2**18
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
        head = file.read(PICKLE_HEAD)
    yield head
    for magic, decompressor in DECOMPRESSORS.items():
        if head.startswith(magic):
            with suppress(*DAMAGED):
                head = decompressor().decompress(head, PICKLE_HEAD)
                yield head
    if zipfile.is_zipfile(path):
        with suppress(*DAMAGED), zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with suppress(*DAMAGED), archive.open(info) as member:
                    yield member.read(PICKLE_HEAD)
    if head[257:262] == b"ustar":
        with suppress(*DAMAGED), tarfile.open(path) as packed:
            for entry in packed:
                content = packed.extractfile(entry) if entry.isreg() else None
                if content is not None:
                    yield content.read(PICKLE_HEAD)


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
