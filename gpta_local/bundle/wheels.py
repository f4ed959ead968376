"""Gets the wheels of a bundle: gpta-local's own and all that it needs on the other machine.

Knows pip, which alone decides where wheels come from, wheel metadata and markers.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from packaging.markers import default_environment
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from gpta_local.bundle import install
from gpta_local.errors import InputError
from gpta_local.system.network import GUARD

OWN = "gpta-local"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, and what its metadata says."""

    path: Path
    name: str
    version: str
    licence: License
    requirements: tuple[Requirement, ...]
    extras: frozenset[str]


def get_wheels(
    folder: Path,
    platform: str,
    python: str,
    extras: Sequence[str],
    constraints: Path | None,
    source: Path | None,
    say: Callable[[str], None],
) -> tuple[Wheel, dict[str, tuple[Wheel, list[str]]]]:
    """gpta-local's own wheel; and by name every wheel that it needs, with the names of those it needs."""
    own = _read_wheel(own_wheel(folder, source))
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


def own_wheel(folder: Path, source: Path | None) -> Path:
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


def _licence(metadata: Mapping[str, Any]) -> License:
    """What the metadata says: an SPDX expression, else a short text or the classifiers, in its own words."""
    if expression := metadata.get("license_expression"):
        return LicenseExpression(expression)
    text = metadata.get("license", "").strip()
    classified = [c.split(" :: ")[-1] for c in metadata.get("classifiers", []) if c.startswith("License :: ")]
    names = [text] if text and len(text.splitlines()) == 1 else classified
    return DisjunctiveLicense(name=", ".join(names) or "unknown")


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
