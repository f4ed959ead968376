"""Verify and install a bundle: one archive with all that a machine without a network needs.

Knows the form of the archive, byte for byte, and nothing but the standard library: `bundle create` puts this
very file into every archive as `install.py`, for machines that have no gpta-local yet. Reaches no network.

The archive is a plain tar of regular files, in the order of their names:

    bundle.json       what it is for: versions of gpta-local and Python, platform
    configs/…         configurations, without their data
    install.py        this file
    manifest.json     SHA-256 and size of every other file
    models/NAME/…     model folders, each with the SHA256SUMS of its files
    sbom.cdx.json     bill of materials (CycloneDX): every wheel and model, with licence and SHA-256
    wheels/…          gpta-local and all its requirements

Everything else in it, headers, padding and end, follows from the names and sizes. So every byte is checked
against the manifest, and the manifest against its one form.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ABOUT, INSTALLER, BUNDLE_MANIFEST, SBOM = "bundle.json", "install.py", "manifest.json", "sbom.cdx.json"
BUNDLE_FORMAT = 1
PLATFORM = re.compile(r"manylinux_(\d{1,3})_(\d{1,3})_([a-z0-9_]+)")
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
LONGEST_NAME = 4096
LARGEST_DESCRIPTION = 64 << 20
"""Bytes of bundle.json, manifest.json or sbom.cdx.json, which are held in memory."""


class BundleError(Exception):
    """What was given is no bundle, or cannot be used here. The message says how to mend it."""

    exit_code = 2


class BundleDiffers(BundleError):
    """Something in the archive is not what it should be; one line for each thing."""

    exit_code = 1


class InstallationFailed(BundleError):
    """The bundle is whole, but making the virtual environment failed."""

    exit_code = 1


class File(NamedTuple):
    """A file of the archive: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


class About(NamedTuple):
    """What a bundle is for: the version of gpta-local, of Python as in "3.11", the platform of the wheels."""

    gpta_local: str
    python: str
    platform: str


class Verified(NamedTuple):
    """A bundle that is as it should be; `compared_with` says what its SHA-256 was compared with, if anything."""

    about: About
    files: dict[str, File]
    sha256: str
    compared_with: str


# ── the form of the archive ─────────────────────────────────────────────────────────────────────


def header(name: str, size: int) -> bytes:
    """The tar header of a file: the only one that a bundle can have for this name and size."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 315532800  # 1980-01-01, the first day that zip knows
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def end(offset: int) -> bytes:
    """The zeros with which a tar of `offset` bytes ends."""
    return bytes(2 * BLOCK + -(offset + 2 * BLOCK) % tarfile.RECORDSIZE)


def manifest(files: Mapping[str, File]) -> bytes:
    content = {name: file._asdict() for name, file in files.items() if name != BUNDLE_MANIFEST}
    return (json.dumps({"files": content}, indent=1, sort_keys=True) + "\n").encode()


def is_safe(name: str) -> bool:
    """Whether it names a file below the folder that a bundle is unpacked to, and nothing surprising."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)


class _Contents:
    """What is in an archive, without trust in anything that it says."""

    def __init__(self, archive: Path) -> None:
        self.files: dict[str, File] = {}
        self.descriptions: dict[str, bytes] = {}
        self.problems: list[str] = []
        self.whole = False
        """Whether the pass came to the end of the archive."""
        with archive.open("rb") as self._stream:
            self.sha256 = hashlib.file_digest(self._stream, "sha256").hexdigest()
            self._stream.seek(0)
            self._read()

    def _read(self) -> None:
        start, last = 0, ""
        while (block := self._stream.read(BLOCK)) != bytes(BLOCK):
            try:
                info, found = self._header(block)
            except tarfile.HeaderError:
                after = f"after {last}" if last else "at the beginning"
                self.problems.append(f"no valid tar header {after} (byte {start}); what follows cannot be read")
                return
            if found != header(info.name, info.size):
                self.problems.append(f"{info.name!r}: its tar header was changed (type, mode, owner, time or padding)")
            if not is_safe(info.name) or info.name <= last:
                self.problems.append(f"{info.name!r}: a name that is unsafe, is there twice, or is out of order")
            last = info.name
            if not self._content(info):
                self.problems.append(f"{info.name!r}: the archive ends within this file")
                return
            start = self._stream.tell()
        self.whole = True
        tail = end(start)
        if block + self._stream.read(len(tail)) != tail:
            self.problems.append(f"the end of the archive was changed (after byte {start})")

    def _header(self, block: bytes) -> tuple[tarfile.TarInfo, bytes]:
        """The header that begins with `block`, and its bytes; a long name takes further blocks."""
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.type == tarfile.GNUTYPE_LONGNAME and 0 < info.size <= LONGEST_NAME:
            name = self._stream.read(info.size + -info.size % BLOCK)
            second = self._stream.read(BLOCK)
            block += name + second
            size, info = info.size, tarfile.TarInfo.frombuf(second, "utf-8", "surrogateescape")
            info.name = name[: size - 1].decode("utf-8", "surrogateescape")
        if info.size < 0:
            raise tarfile.HeaderError("negative size")
        return info, block

    def _content(self, info: tarfile.TarInfo) -> bool:
        """Read a file and its padding; False if the archive ends before."""
        described = info.name in (ABOUT, BUNDLE_MANIFEST, SBOM) and info.size <= LARGEST_DESCRIPTION
        digest, left, chunk = hashlib.sha256(), info.size, b""
        while left and (chunk := self._stream.read(info.size if described else min(left, CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        padding = self._stream.read(-info.size % BLOCK)
        if left or len(padding) != -info.size % BLOCK:
            return False
        if any(padding):
            self.problems.append(f"{info.name!r}: the padding after this file was changed")
        self.files[info.name] = File(digest.hexdigest(), info.size)
        if described:
            self.descriptions[info.name] = chunk
        return True


# ── verify ──────────────────────────────────────────────────────────────────────────────────────


def verify(archive: Path, sha256: str | None = None) -> Verified:
    """Check every byte of an archive.

    Args:
        archive: the bundle.
        sha256: what the SHA-256 of the whole archive must be. What a file ARCHIVE.sha256 beside it
            says is compared as well.

    Raises:
        BundleDiffers: with a line for everything that is missing, added or changed.
        BundleError: if it is no bundle, or cannot be read.
    """
    expected = _expected_sha256(archive, sha256)
    if not archive.is_file():
        raise BundleError(f"{archive}: no such file")
    try:
        contents = _Contents(archive)
    except OSError as exc:
        raise BundleError(f"{archive}: cannot be read ({exc.strerror or exc})") from exc
    problems = [
        f"the whole archive: its SHA-256 is {contents.sha256}, by {source} it must be {digest}"
        for source, digest in expected.items()
        if digest != contents.sha256
    ]
    if not problems and not {ABOUT, INSTALLER, BUNDLE_MANIFEST} & set(contents.files):
        raise BundleError(f"{archive}: not a bundle: not an archive that `gpta-local bundle create` made")
    problems += contents.problems
    if contents.whole or BUNDLE_MANIFEST in contents.files:
        problems += _compare(contents)
    if problems:
        raise BundleDiffers("\n".join([f"{archive}: {len(problems)} found", *(f"  {line}" for line in problems)]))
    return Verified(_about(archive, contents), contents.files, contents.sha256, " and ".join(expected))


def _expected_sha256(archive: Path, given: str | None) -> dict[str, str]:
    """Where the SHA-256 of the whole archive is known from → what it must be."""
    beside = archive.with_name(f"{archive.name}.sha256")
    expected = {} if given is None else {"--sha256": given.strip().lower()}
    if beside.is_file():
        try:
            words = beside.read_text(encoding="utf-8", errors="replace").lower().split()
        except OSError as exc:
            raise BundleError(f"{beside.name}: cannot be read ({exc.strerror})") from exc
        expected[beside.name] = words[0] if words else ""
    for source, digest in expected.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise BundleError(f"{source}: not a SHA-256: 64 hexadecimal digits are needed")
    return expected


def _compare(contents: _Contents) -> Iterator[str]:
    """What differs between the files of an archive, its manifest and its bill of materials."""
    try:
        described = json.loads(contents.descriptions[BUNDLE_MANIFEST])["files"]
        listed = {name: File(entry["sha256"], entry["size"]) for name, entry in described.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        yield f"{BUNDLE_MANIFEST}: missing, or changed so that it cannot be read"
        return
    if contents.descriptions[BUNDLE_MANIFEST] != manifest(listed):
        yield f"{BUNDLE_MANIFEST}: changed: not in the form in which it is written"
    found = {name: file for name, file in contents.files.items() if name != BUNDLE_MANIFEST}
    for name in sorted({*listed, *found}):
        if name not in found:
            if contents.whole:
                yield f"{name!r}: missing"
        elif name not in listed:
            yield f"{name!r}: added, {BUNDLE_MANIFEST} does not list it"
        elif found[name].size != listed[name].size:
            yield f"{name!r}: changed: {found[name].size} bytes, {BUNDLE_MANIFEST} says {listed[name].size}"
        elif found[name].sha256 != listed[name].sha256:
            digests = f"its SHA-256 is {found[name].sha256}, {BUNDLE_MANIFEST} says {listed[name].sha256}"
            yield f"{name!r}: changed: {digests}"
    if SBOM in found or contents.whole:
        yield from _compare_sbom(contents.descriptions.get(SBOM, b""), listed)


def _compare_sbom(text: bytes, listed: Mapping[str, File]) -> Iterator[str]:
    try:
        hashes = dict(_hashes(json.loads(text)["components"]))
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        yield f"{SBOM}: missing, or not a bill of materials as it is written for a bundle"
        return
    materials = {name: file.sha256 for name, file in listed.items() if name.startswith(("wheels/", "models/"))}
    for name in sorted({*materials, *hashes}, key=str):
        if hashes.get(name) != materials.get(name):
            yield f"{name!r}: {SBOM} and {BUNDLE_MANIFEST} do not say the same about it"


def _hashes(components: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The file and SHA-256 of every component that has one, nested ones too."""
    for component in components:
        if "hashes" in component:
            yield component["bom-ref"], component["hashes"][0]["content"]
        yield from _hashes(component.get("components", []))


def _about(archive: Path, contents: _Contents) -> About:
    try:
        content = json.loads(contents.descriptions[ABOUT])
        about = About(*(str(content[key]) for key in About._fields))
        known = content["format"] == BUNDLE_FORMAT and PLATFORM.fullmatch(about.platform) is not None
    except (KeyError, ValueError, TypeError, RecursionError):
        known = False
    if not known:
        raise BundleError(f"{archive}: {ABOUT} is not in a form known here. Use the {INSTALLER} of this bundle")
    return about


def describe(verified: Verified) -> str:
    """What is known of a verified bundle, for the screen; says whether the whole was compared."""
    size = sum(file.size for file in verified.files.values())
    wheels = sum(name.startswith("wheels/") for name in verified.files)
    compared = (
        f"as {verified.compared_with} says"
        if verified.compared_with
        else f"NOT compared: no .sha256 lies beside and no --sha256 was given. Who can change a file can\n"
        f"change {BUNDLE_MANIFEST} too: compare this number with the one that `bundle create` printed"
    )
    return (
        f"gpta-local {verified.about.gpta_local} for Python {verified.about.python}, {verified.about.platform}: "
        f"{len(verified.files)} files, {wheels} of them wheels, {size / 1e6:.1f} MB; "
        f"all as {BUNDLE_MANIFEST} and {SBOM} say\n"
        f"SHA-256 of the whole archive: {verified.sha256}\n{compared}"
    )


# ── install ─────────────────────────────────────────────────────────────────────────────────────


def install(archive: Path, target: Path, sha256: str | None = None, *, say: Callable[[str], None]) -> None:
    """Verify `archive`, unpack it to the new folder `target`, and install its wheels into target/venv.

    Nothing stays behind if it fails. pip reads no configuration, no index and no network, and checks the
    SHA-256 of every wheel once more.

    Raises:
        BundleError: if it is no bundle, not for this machine, or `target` is not new.
        BundleDiffers: as `verify` does, before anything is written.
        InstallationFailed: with what venv or pip said.
    """
    verified = verify(archive, sha256)
    say(describe(verified))
    check_machine(verified.about)
    if target.exists() or target.is_symlink():
        raise BundleError(f"{target}: is there already. Choose a folder that does not exist yet")
    target = target.absolute()
    try:
        target.mkdir()
    except OSError as exc:
        what = f"{target}: cannot be made ({exc.strerror or exc})"
        raise BundleError(f"{what}. The folder above it must be there, and be writable") from exc
    try:
        unpack_archive(archive, target)
        requirements = target / "requirements.txt"
        requirements.write_text(_requirements(verified.files), encoding="utf-8")
        say(f"making {target / 'venv'}")
        _run("the virtual environment cannot be made", sys.executable, "-I", "-m", "venv", target / "venv")
        words = ("--no-index", "--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--quiet")
        places = ("--find-links", target / "wheels", "-r", requirements)
        python = target / "venv" / "bin" / "python"
        _run("the wheels cannot be installed", python, "-I", "-m", "pip", "install", *words, *places)
        shutil.rmtree(target / "wheels")
    except BaseException as exc:  # Ctrl-C too leaves nothing half installed
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(exc, OSError):
            raise BundleError(f"{target}: cannot be written ({exc.strerror or exc})") from exc
        raise
    say(_next_commands(target))


def check_machine(about: About) -> None:
    """Raise BundleError if this machine or Python is not the one that the wheels are for."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != about.python:
        raise BundleError(
            f"the bundle is for Python {about.python}, and this is Python {here}. Run python{about.python}, "
            f"or make a bundle with --python {here}"
        )
    _, major, minor, machine = about.platform.split("_", 3)
    library, version = platform.libc_ver()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if platform.machine() != machine or library != "glibc" or numbers < (int(major), int(minor)):
        raise BundleError(
            f"the bundle is for {about.platform} (Linux, {machine}, glibc {major}.{minor} or later), and this is "
            f"{platform.machine()} with {library or 'no glibc'} {version}. Make one with the right --platform"
        )


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar below `folder`; nothing can be written anywhere else.

    Raises:
        BundleError: for links and paths that lead out of the folder, and for devices, before such a member is made.
    """
    if not hasattr(tarfile, "data_filter"):
        raise BundleError("this Python cannot unpack archives safely. Use Python 3.11.4 or later")
    try:
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as exc:
        raise BundleError(f"{archive}: {exc}; it is not unpacked") from exc


def isolated_environment() -> dict[str, str]:
    """The environment without anything that configures pip."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _requirements(files: Mapping[str, File]) -> str:
    """The wheels as pip's requirements, each with its SHA-256."""
    wheels = sorted(name for name in files if name.startswith("wheels/"))
    parts = ((*name.removeprefix("wheels/").split("-")[:2], files[name].sha256) for name in wheels)
    return "".join(f"{project}=={version} --hash=sha256:{digest}\n" for project, version, digest in parts)


def _run(what: str, *command: str | Path) -> None:
    words, environment = [str(word) for word in command], isolated_environment()
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        fix = "Install the system's package for venv (python3-venv) first. " if "ensurepip" in said else ""
        raise InstallationFailed(f"{what}. {fix}It said:\n{said[-2000:]}")


def _next_commands(target: Path) -> str:
    program = shlex.quote(str(target / "venv" / "bin" / "gpta-local"))
    configs = sorted((target / "configs").glob("*"))
    commands = [f"{program} --version", *(f"{program} train {shlex.quote(str(c))} --dry-run" for c in configs)]
    models = [f"model folder: {folder}" for folder in sorted((target / "models").glob("*"))]
    note = ["put the data beside the configurations first: a bundle holds none"] if configs else []
    return "\n".join(["installed.", *models, *note, "next:", *(f"  {command}" for command in commands)])


def main(arguments: list[str] | None = None) -> int:
    """Verify and install, where there is no gpta-local yet. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=INSTALLER, description="Verify a bundle of gpta-local and install it.")
    parser.add_argument("bundle", type=Path, help="the archive")
    parser.add_argument("target", type=Path, nargs="?", help="folder to make; not given: only verify")
    parser.add_argument("--sha256", metavar="HEX", help="what the SHA-256 of the whole archive must be")
    given = parser.parse_args(arguments)
    try:
        if given.target is None:
            _say(describe(verify(given.bundle, given.sha256)))
        else:
            install(given.bundle, given.target, given.sha256, say=_say)
    except BundleError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped. Nothing was left behind\n")
        return 3
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
