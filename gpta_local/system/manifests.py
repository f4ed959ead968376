"""The list of a model folder's files with their checksums, `SHA256SUMS`, in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from gpta_local.errors import ModelError
from gpta_local.system.files import files_below, sha256

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


def model_digest(folder: Path) -> str:
    """One SHA-256 for a model folder: of its `SHA256SUMS`, or where it has none of what that would be."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return sha256(manifest)
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files_below(folder)}
    return hashlib.sha256(manifest_text(digests).encode()).hexdigest()
