"""Make a bundle on a connected machine: wheels, models and configurations in one archive.

Knows the catalogue of models and CycloneDX. Reads no data file: a bundle holds no rows. The form of the
archive is `install`'s.

The same inputs give the same bytes: nothing depends on the time, the user or the order of folders.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from gpta_local.bundle import install
from gpta_local.bundle.wheels import OWN, Wheel, get_wheels
from gpta_local.config import load
from gpta_local.errors import InputError, ModelError, OutputError
from gpta_local.system.catalogue import KnownModel, read_catalogue, recognise
from gpta_local.system.library import known_folder
from gpta_local.system.manifests import MANIFEST, manifest_text, read_manifest
from gpta_local.system.models import checked_folder

MODEL_FILE = re.compile(
    r".*\.(safetensors|safetensors\.index\.json|jinja|model)|(vocab|merges|prefix)\.txt|README\.md|(LICENSE|NOTICE).*"
    r"|(\w*config\w*|tokenizer|tekken|params|vocab|special_tokens_map|added_tokens|chat_template|modules|gpta)\.json"
)
"""Name of a file of a model folder that goes into a bundle: no pickles, no rows, no histories. JSON goes by its name,
since it may be rows; those are what transformers, sentence-transformers, peft, vLLM and this package read."""

Contents = dict[str, Path | bytes]
"""Path in the archive → the file, or what it holds."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder, its files that go into the bundle, and its entry in the catalogue, if it has one."""

    name: str
    folder: Path
    files: tuple[str, ...]
    known: KnownModel | None = None
    skipped: tuple[str, ...] = ()
    """What else lies in the folder."""


def create(
    output: Path,
    *,
    platform: str,
    python: str,
    models: Sequence[str] = (),
    configs: Sequence[Path] = (),
    extras: Sequence[str] = (),
    constraints: Path | None = None,
    wheels: Path | None = None,
    say: Callable[[str], None],
) -> install.Verified:
    """Make the archive `output`, and `output`.sha256 beside it; both or none.

    Args:
        output: a file that does not exist yet.
        platform: of the machine it is for, as in manylinux_2_28_x86_64.
        python: of that machine, as in 3.11.
        models: names of the catalogue, or model folders.
        configs: configuration files; their data stays where it is.
        extras: of gpta-local, such as demo.
        constraints: exact versions, as pip reads them. None: the versions that are installed here.
        wheels: a folder to take all wheels from. None: pip downloads them from where it is configured to.
        say: told what is going on.

    Raises:
        InputError: if something given cannot go into a bundle, or pip does not find a wheel.
        OutputError: if the archive cannot be written.
    """
    _check_target(platform, python)
    if wheels is not None and not wheels.is_dir():
        raise InputError("no such folder", where=f"--wheels {wheels}")
    for place in (output, sidecar(output)):
        if place.exists():
            raise OutputError("is there already", where=str(place), fix="Choose another name, or remove it")
    contents: Contents = {install.INSTALLER: Path(install.__file__)}
    chosen = [_model(given) for given in models]
    for model in chosen:
        _add(contents, {f"models/{model.name}/{name}": model.folder / name for name in model.files}, model.name)
        if model.skipped:
            say(f"{model.folder}: not put in, as these are no files of a model: {', '.join(model.skipped)}")
    for config in configs:
        load(config)  # whatever else it is, such as rows, does not get in
        _add(contents, {f"configs/{config.name}": config}, config.name)
    with _writing(output), tempfile.TemporaryDirectory(prefix=".bundle-", dir=output.absolute().parent) as temporary:
        folder = Path(temporary)
        own, needs = get_wheels(folder, platform, python, extras, constraints, wheels, say)
        contents |= {f"wheels/{wheel.path.name}": wheel.path for wheel, _ in needs.values()}
        about = install.About(own.version, python, platform)
        description = json.dumps({"format": install.BUNDLE_FORMAT, **about._asdict()}, indent=1)
        contents[install.ABOUT] = f"{description}\n".encode()
        files = {name: _file(source) for name, source in contents.items()}
        for model in chosen:
            digests = {name: files[f"models/{model.name}/{name}"].sha256 for name in model.files}
            path = f"models/{model.name}/{MANIFEST}"
            contents[path] = manifest_text(digests).encode()
            files[path] = _file(contents[path])
        contents[install.SBOM] = _bill_of_materials(about, own, needs, chosen, files)
        files[install.SBOM] = _file(contents[install.SBOM])
        contents[install.BUNDLE_MANIFEST] = install.manifest(files)
        say("writing the archive, and verifying it")
        made = folder / "bundle.tar"
        _write(made, contents)
        verified = install.verify(made)
        (folder / "sha256").write_text(f"{verified.sha256}  {output.name}\n", encoding="utf-8")
        (folder / "sha256").replace(sidecar(output))
        made.replace(output)
    return verified


def sidecar(output: Path) -> Path:
    """The file beside an archive that holds its SHA-256, as `sha256sum -c` reads it."""
    return output.with_name(f"{output.name}.sha256")


def _check_target(platform: str, python: str) -> None:
    if not install.PLATFORM.fullmatch(platform):
        raise InputError(
            f"{platform!r} is not of the form manylinux_X_Y_MACHINE",
            where="--platform",
            fix="X.Y is the glibc of the machine that the bundle is for (`ldd --version`), as in manylinux_2_28_x86_64",
        )
    if not re.fullmatch(r"3\.\d{1,2}", python) or int(python[2:]) < 11:
        raise InputError(
            f"{python!r} is not a Python that gpta-local runs on", where="--python", fix="Give 3.11 or later"
        )


def _add(contents: Contents, new: Contents, name: str) -> None:
    """Put files in, under safe names, and over nothing that is in already."""
    if unsafe := [path for path in new if not install.is_safe(path)]:
        raise InputError("cannot be the name of a file of a bundle", where=repr(unsafe[0]), fix="Rename it")
    if twice := set(new) & set(contents):
        raise InputError(f"{min(twice)} would be in the bundle twice", where=name, fix="Rename one of them")
    contents |= new


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Any failure to write, as a disk that is full, becomes one clear error."""
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"cannot be written ({exc.strerror or exc})",
            where=str(exc.filename or output),
            fix=f"The folder of {output.name} must be there, be writable, and have room for the bundle twice",
        ) from exc


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def _model(given: str) -> Model:
    """A model by its name in the catalogue, or by its folder.

    Raises:
        ModelError: if it is neither, or a known one was changed.
    """
    named = {name: known for name, known in read_catalogue().items() if known.packages}
    if known := named.get(given):
        added = known_folder(known)
        return Model(known.name, added, tuple(known.files or read_manifest(added / MANIFEST)), known)
    folder = checked_folder(given, "--model")
    if known := recognise(folder):
        return Model(known.name, folder, tuple(known.files), known)
    there = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = tuple(path.as_posix() for path in there if _is_of_a_model(path))
    skipped = tuple(path.as_posix() for path in there if not _is_of_a_model(path) and path != Path(MANIFEST))
    name = folder.resolve().name
    if name in named:
        raise ModelError(
            f"has the name of a model of the catalogue, and other files than {name}",
            where=f"--model {given}",
            fix=f"Rename the folder, or give the name alone: --model {name}",
        )
    return Model(name, folder, files, skipped=skipped)


def _is_of_a_model(path: Path) -> bool:
    """`path` is relative to the model's folder."""
    return bool(MODEL_FILE.fullmatch(path.name)) and not any(part.startswith(".") for part in path.parts)


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def _bill_of_materials(
    about: install.About,
    own: Wheel,
    needs: Mapping[str, tuple[Wheel, list[str]]],
    models: Sequence[Model],
    files: Mapping[str, install.File],
) -> bytes:
    """CycloneDX 1.6. Without time and serial number, which would differ each time."""

    def component(path: str, name: str, **facts: Any) -> Component:
        sums = [HashType(alg=HashAlgorithm.SHA_256, content=files[path].sha256)] if path in files else []
        return Component(bom_ref=path, name=name, hashes=sums, **facts)

    libraries = {
        name: component(
            f"wheels/{wheel.path.name}",
            name,
            version=wheel.version,
            purl=PackageURL("generic" if name == OWN else "pypi", name=name, version=wheel.version),
            licenses=[wheel.licence],
        )
        for name, (wheel, _) in needs.items()
    }
    weights = [
        component(
            f"models/{model.name}",
            model.name,
            type=ComponentType.MACHINE_LEARNING_MODEL,
            version=model.known.revision if model.known else "unknown",
            description=f"source: {model.known.source}"
            if model.known
            else "not in the catalogue: source, revision and licence are not known to gpta-local",
            licenses=[LicenseExpression(model.known.licence) if model.known else DisjunctiveLicense(name="unknown")],
            components=[
                component(f"models/{model.name}/{name}", name, type=ComponentType.FILE)
                for name in (*model.files, MANIFEST)
            ],
        )
        for model in models
    ]
    bundle = component(
        "bundle",
        "gpta-local-bundle",
        type=ComponentType.APPLICATION,
        version=about.gpta_local,
        description=f"for Python {about.python}, {about.platform}",
    )
    bom = Bom(metadata=BomMetaData(component=bundle), components=[*libraries.values(), *weights])
    bom.serial_number = bom.metadata.timestamp = None  # type: ignore[assignment]  # CycloneDX wants neither, its types do
    bom.register_dependency(bundle, [libraries[own.name], *weights])
    for name, (_, others) in needs.items():
        bom.register_dependency(libraries[name], [libraries[other] for other in others])
    return f"{JsonV1Dot6(bom).output_as_string(indent=1)}\n".encode()


def _file(source: Path | bytes) -> install.File:
    if isinstance(source, bytes):
        return install.File(hashlib.sha256(source).hexdigest(), len(source))
    with source.open("rb") as file:
        return install.File(hashlib.file_digest(file, "sha256").hexdigest(), source.stat().st_size)


def _write(path: Path, contents: Contents) -> None:
    with path.open("xb") as archive:
        for name, source in sorted(contents.items()):
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            archive.write(install.header(name, size))
            if isinstance(source, bytes):
                archive.write(source)
            else:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, archive, install.CHUNK)
            archive.write(bytes(-size % install.BLOCK))
        archive.write(install.end(archive.tell()))
