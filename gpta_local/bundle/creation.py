"""Make a bundle on a connected machine: wheels, models and configurations in one archive.

Knows pip (which alone decides where wheels come from), wheel metadata, the catalogue of models, and
CycloneDX. Reads no data file: a bundle holds no rows. The form of the archive is `bundle`'s.

The same inputs give the same bytes: nothing depends on the time, the user or the order of folders.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.markers import default_environment
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from gpta_local.bundle import install
from gpta_local.config import load
from gpta_local.errors import InputError, ModelError, OutputError
from gpta_local.system.catalogue import KnownModel, known_folder, read_catalogue, recognise
from gpta_local.system.manifests import MANIFEST, manifest_text
from gpta_local.system.models import checked_folder
from gpta_local.system.network import GUARD

OWN = "gpta-local"
MODEL_FILE = re.compile(
    r".*\.(safetensors|safetensors\.index\.json|jinja|model)|(vocab|merges|prefix)\.txt|README\.md|(LICENSE|NOTICE).*"
    r"|(\w*config\w*|tokenizer|tekken|params|vocab|special_tokens_map|added_tokens|chat_template|modules|gpta)\.json"
)
"""Name of a file of a model folder that goes into a bundle: no pickles, no rows, no histories. JSON goes by its name,
since it may be rows; those are what transformers, sentence-transformers, peft, vLLM and this package read."""

Contents = dict[str, Path | bytes]
"""Path in the archive → the file, or what it holds."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, and what its metadata says."""

    path: Path
    name: str
    version: str
    licence: dict[str, Any]
    """As CycloneDX has it."""
    requirements: tuple[Requirement, ...]
    extras: frozenset[str]


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
        own, needs = _wheels(folder, platform, python, extras, constraints, wheels, say)
        contents |= {f"wheels/{wheel.path.name}": wheel.path for wheel, _ in needs.values()}
        about = install.About(own.version, python, platform)
        contents[install.ABOUT] = _json({"format": install.FORMAT, **about._asdict()})
        files = {name: _file(source) for name, source in contents.items()}
        for model in chosen:
            digests = {name: files[f"models/{model.name}/{name}"].sha256 for name in model.files}
            path = f"models/{model.name}/{MANIFEST}"
            contents[path] = manifest_text(digests).encode()
            files[path] = _file(contents[path])
        contents[install.SBOM] = _json(_bill_of_materials(about, own, needs, chosen, files))
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
    if known := read_catalogue().get(given):
        return Model(known.name, known_folder(known), tuple(known.files), known)
    folder = checked_folder(given, "--model")
    if known := recognise(folder):
        return Model(known.name, folder, tuple(known.files), known)
    there = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = tuple(path.as_posix() for path in there if _is_of_a_model(path))
    skipped = tuple(path.as_posix() for path in there if not _is_of_a_model(path) and path != Path(MANIFEST))
    name = folder.resolve().name
    if name in read_catalogue():
        raise ModelError(
            f"has the name of a model of the catalogue, and other files than {name}",
            where=f"--model {given}",
            fix="Rename the folder",
        )
    return Model(name, folder, files, skipped=skipped)


def _is_of_a_model(path: Path) -> bool:
    """`path` is relative to the model's folder."""
    return bool(MODEL_FILE.fullmatch(path.name)) and not any(part.startswith(".") for part in path.parts)


# ── wheels ──────────────────────────────────────────────────────────────────────────────────────


def _wheels(
    folder: Path,
    platform: str,
    python: str,
    extras: Sequence[str],
    constraints: Path | None,
    source: Path | None,
    say: Callable[[str], None],
) -> tuple[Wheel, dict[str, tuple[Wheel, list[str]]]]:
    """gpta-local's own wheel; and by name every wheel that it needs, with the names of those it needs."""
    own = _read_wheel(_own_wheel(folder, source))
    if unknown := sorted({canonicalize_name(extra) for extra in extras} - own.extras):
        raise InputError(f"gpta-local has no extra {unknown[0]!r}", where="--extra", fix=f"It has {sorted(own.extras)}")
    say(f"looking for wheels in {source}" if source else "downloading wheels, from where pip is configured to")
    if constraints is None and source is None:
        constraints = folder / "installed.txt"
        constraints.write_text(_installed(), encoding="utf-8")
    downloads = folder / "wheels"
    _pip(
        "download",
        *("--quiet", "--dest", downloads, "--only-binary=:all:", "--python-version", python),
        *(word for tag in _platform_tags(platform) for word in ("--platform", tag)),
        *(("--constraint", constraints) if constraints else ()),
        *(("--no-index", "--find-links", source) if source else ()),
        f"{own.path}[{','.join(extras)}]" if extras else own.path,
        where=f"wheels for {platform}, Python {python}",
        isolated=source is not None,
    )
    found = {wheel.name: wheel for wheel in map(_read_wheel, sorted(downloads.glob("*.whl")))}
    return own, _needed(found, own, extras, _environment(platform, python))


def _own_wheel(folder: Path, source: Path | None) -> Path:
    """The wheel of gpta-local, out of `source` or built from this checkout; never from an index, where
    another could have taken its name."""
    given = sorted(source.glob("gpta_local-*.whl")) if source else []
    if len(given) > 1:
        names = ", ".join(path.name for path in given)
        raise InputError(f"more than one wheel of gpta-local: {names}", where=str(source), fix="Leave one")
    if given:
        return given[0]
    checkout = Path(__file__).parent.parent.parent
    if not (checkout / "pyproject.toml").is_file():
        raise InputError(
            "no wheel of gpta-local: this is an installed copy, which cannot be packed again, and none is "
            "taken from an index",
            where=str(source or "--wheels"),
            fix="Run this in a checkout, or put the wheel that you installed and those that it needs "
            "(pip download WHEEL) into a folder and give it with --wheels",
        )
    words = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    _pip("wheel", *words, checkout, where="gpta-local's own wheel, which hatchling builds")
    return next(folder.glob("gpta_local-*.whl"))


def _platform_tags(platform: str) -> list[str]:
    """What pip must accept for a platform: wheels for every glibc up to the one that is there."""
    _, major, minor, machine = platform.split("_", 3)
    tags = [f"manylinux_{major}_{below}_{machine}" for below in range(int(minor), 4, -1)]
    return [*tags, *(f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1"))]


def _installed() -> str:
    """What is installed here, as constraints: what was tried here is what goes in."""
    pins = {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()) if name != OWN)


def _pip(*arguments: str | Path, where: str, isolated: bool = False) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *(str(argument) for argument in arguments)],
        env=install.isolated_environment()
        if isolated
        else GUARD.environment_before() | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
        raise InputError(
            f"pip says: {'; '.join(errors)}",
            where=where,
            fix="Other versions can be given by --constraints, another place by --wheels or pip's configuration",
        )


def _read_wheel(path: Path) -> Wheel:
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            metadata, _ = parse_email(archive.read(name))
        return Wheel(
            path,
            canonicalize_name(metadata["name"]),
            metadata["version"],
            _licence(metadata),
            tuple(Requirement(text) for text in metadata.get("requires_dist", [])),
            frozenset(canonicalize_name(extra) for extra in metadata.get("provides_extra", [])),
        )
    except (zipfile.BadZipFile, ValueError, KeyError, InvalidRequirement) as exc:
        raise InputError("not a wheel with readable metadata", where=str(path), fix="Get it anew") from exc


def _licence(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata says: an SPDX expression, else a short text or the classifiers, in its own words."""
    if expression := metadata.get("license_expression"):
        return {"expression": expression}
    text = metadata.get("license", "").strip()
    classified = [c.split(" :: ")[-1] for c in metadata.get("classifiers", []) if c.startswith("License :: ")]
    names = [text] if text and len(text.splitlines()) == 1 else classified
    return {"license": {"name": ", ".join(names) or "unknown"}}


def _environment(platform: str, python: str) -> dict[str, str]:
    """What the markers of requirements are evaluated for."""
    machine = platform.split("_", 3)[3]
    here = {key: str(value) for key, value in default_environment().items()}
    versions = {"python_version": python, "python_full_version": f"{python}.0", "implementation_version": f"{python}.0"}
    system = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
    return here | versions | system


def _needed(
    found: Mapping[str, Wheel], own: Wheel, extras: Sequence[str], environment: dict[str, str]
) -> dict[str, tuple[Wheel, list[str]]]:
    """By name the wheels that `own` needs on the machine that the bundle is for, with the names of those
    they need. pip looks at the markers of requirements as if that machine were this one; here they
    are evaluated for it.

    Raises:
        InputError: if one is missing, so that the bundle would not install there.
    """
    needs: dict[str, set[str]] = {}
    ahead, done = [(own.name, extra) for extra in ("", *extras)], set[tuple[str, str]]()
    while ahead:
        name, extra = ahead.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        edges = needs.setdefault(name, set())
        for requirement in found[name].requirements:
            if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
                continue
            other = canonicalize_name(requirement.name)
            if other not in found or not requirement.specifier.contains(found[other].version, prereleases=True):
                raise InputError(
                    f"{name} needs {requirement} there, and pip found none here",
                    where="wheels",
                    fix="Run `bundle create` with the Python that the bundle is for, or put it among --wheels",
                )
            edges.add(other)
            ahead += [(other, extra) for extra in ("", *requirement.extras)]
    return {name: (found[name], sorted(edges)) for name, edges in sorted(needs.items())}


# ── what is written ─────────────────────────────────────────────────────────────────────────────


def _bill_of_materials(
    about: install.About,
    own: Wheel,
    needs: Mapping[str, tuple[Wheel, list[str]]],
    models: Sequence[Model],
    files: Mapping[str, install.File],
) -> dict[str, Any]:
    """CycloneDX 1.6. Without time and serial number, which would differ each time."""

    def reference(name: str) -> str:
        return f"wheels/{needs[name][0].path.name}"

    def hashes(path: str) -> list[dict[str, str]]:
        return [{"alg": "SHA-256", "content": files[path].sha256}]

    libraries = [
        {
            "type": "library",
            "bom-ref": reference(name),
            "name": name,
            "version": wheel.version,
            "purl": f"pkg:{'generic' if name == OWN else 'pypi'}/{name}@{quote(wheel.version, safe='')}",
            "licenses": [wheel.licence],
            "hashes": hashes(reference(name)),
        }
        for name, (wheel, _) in needs.items()
    ]
    weights = [
        {
            "type": "machine-learning-model",
            "bom-ref": f"models/{model.name}",
            "name": model.name,
            "version": model.known.revision if model.known else "unknown",
            "description": f"source: {model.known.source}"
            if model.known
            else "not in the catalogue: source, revision and licence are not known to gpta-local",
            "licenses": [{"expression": model.known.licence} if model.known else {"license": {"name": "unknown"}}],
            "components": [
                {"type": "file", "bom-ref": path, "name": name, "hashes": hashes(path)}
                for name in sorted((*model.files, MANIFEST))
                for path in [f"models/{model.name}/{name}"]
            ],
        }
        for model in sorted(models, key=lambda model: model.name)
    ]
    top = [reference(own.name), *(f"models/{model.name}" for model in models)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "bundle",
                "name": "gpta-local-bundle",
                "version": about.gpta_local,
                "description": f"for Python {about.python}, {about.platform}",
            }
        },
        "components": [*libraries, *weights],
        "dependencies": [
            {"ref": "bundle", "dependsOn": sorted(top)},
            *({"ref": reference(name), "dependsOn": [reference(o) for o in o_]} for name, (_, o_) in needs.items()),
        ],
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


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
