"""Archives that must not be unpacked."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from typing import Any


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme", "words")
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes], compressed: bool = False, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w", format=kind) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def plain(name: str, content: bytes = b"words", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def special(name: str, kind: bytes, **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return plain(name, b"", type=kind, **changes)


def pax(name: str, **records: str) -> tuple[tarfile.TarInfo, bytes]:
    return plain(name, pax_headers=records)


def header(name: str, **changes: Any) -> bytes:
    """A lone header block, right in itself."""
    return plain(name, b"", **changes)[0].tobuf(tarfile.GNU_FORMAT)


def with_negative_size() -> bytes:
    block = bytearray(header("a"))
    block[124:136] = (256**12 - 2048).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


GOOD = tarred(plain("a.txt"), plain("b/c.txt"))
NOISE = os.urandom(4096)
EVIL: dict[str, bytes] = {
    "climbs out": tarred(plain("../out.txt")),
    "climbs out later": tarred(plain("a/b/../../../out.txt")),
    "climbs out by an extended name": tarred(pax("a", path="../out.txt")),
    "climbs out by a global extended name": header("g", type=tarfile.XGLTYPE, size=19)
    + b"19 path=../out.txt\n".ljust(512, b"\0")
    + GOOD,
    "climbs out by a long name": tarred(plain("x/" * 60 + "../" * 61 + "out.txt"), kind=tarfile.GNU_FORMAT),
    "absolute": tarred(plain("/tmp/out.txt")),
    "absolute with two slashes": tarred(plain("//tmp/out.txt")),
    "symbolic link": tarred(special("a", tarfile.SYMTYPE, linkname="/etc/passwd")),
    "symbolic link inside": tarred(plain("b"), special("a", tarfile.SYMTYPE, linkname="b")),
    "written through a symbolic link": tarred(special("a", tarfile.SYMTYPE, linkname=".."), plain("a/out.txt")),
    "hard link": tarred(plain("b"), special("a", tarfile.LNKTYPE, linkname="b")),
    "hard link out": tarred(special("a", tarfile.LNKTYPE, linkname="../archive")),
    "character device": tarred(special("a", tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "block device": tarred(special("a", tarfile.BLKTYPE, devmajor=8)),
    "pipe": tarred(special("a", tarfile.FIFOTYPE)),
    "contiguous file": tarred(special("a", tarfile.CONTTYPE)),
    "unknown kind": tarred(special("a", b"Z")),
    "setuid": tarred(plain("a", mode=0o4755)),
    "setgid": tarred(plain("a", mode=0o2755)),
    "sticky": tarred(special("a", tarfile.DIRTYPE, mode=0o1777)),
    "twice": tarred(plain("a"), plain("a")),
    "twice by another spelling": tarred(plain("b/a"), plain("./b//a")),
    "file over a folder": tarred(plain("a/b"), plain("a")),
    "file below a file": tarred(plain("a"), plain("a/b")),
    "line break in a name": tarred(plain("a\nb")),
    "escape sequence in a name": tarred(plain("a\x1b[2Jb")),
    "direction of writing turned in a name": tarred(plain("a\N{RIGHT-TO-LEFT OVERRIDE}txt.exe")),
    "name that is not UTF-8": header("a\udcff") + bytes(1024),
    "name too deep": tarred(plain("a/" * 20 + "b")),
    "name too long": tarred(plain("a" * 300)),
    "no name": tarred(plain("./")),
    "terabyte without bytes": header("a", type=tarfile.GNUTYPE_SPARSE, size=2**40) + bytes(1024),
    "terabyte without bytes, extended": tarred(
        pax("a", **{"GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"})
    ),
    "more than the disk": header("a", size=2**60) + bytes(4096),
    "files announced that are not there": b"".join(header(f"{n}", size=2**33 - 512) for n in range(3)),
    "folder with content": header("a", type=tarfile.DIRTYPE, size=512) + bytes(1536),
    "size below zero": with_negative_size(),
    "name of 64 MiB": gzip.compress(header("a", type=tarfile.GNUTYPE_LONGNAME, size=2**26) + bytes(2**26)),
    "extended header of 64 MiB": gzip.compress(header("a", type=tarfile.XHDTYPE, size=2**26) + bytes(2**26)),
    "64 MiB of nothing at the end": gzip.compress(GOOD + bytes(2**26)),
    "cut off in a file": tarred(plain("a", NOISE))[:2048],
    "cut off between files": GOOD[:1024],
    "second header damaged": GOOD[:1024] + b"\xff" * 512 + GOOD[1536:],
    "something after the end": GOOD + GOOD,
    "nothing inside": tarred(),
    "empty": b"",
    "no archive": NOISE,
    "zip": zipped("a", b"words"),
    "gzip cut off": gzip.compress(tarred(plain("a", NOISE)))[:-600],
    "gzip with a wrong sum": gzip.compress(GOOD)[:-8] + bytes(8),
    "gzip of no archive": gzip.compress(NOISE),
}
