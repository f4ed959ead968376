"""Checks of the machine: Python and packages, devices, disk, the shell's variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpta_local import __version__
from gpta_local.doctor import exposure
from gpta_local.doctor.findings import RUNS, Outcome, counted, nearest_existing, short
from gpta_local.system.network import OFFLINE

PACKAGE = "gpta-local"
TESTED_PYTHON = "3.11"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
INVITING = re.compile(
    r"(?i)(https?|all|ftp)_proxy"
    r"|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|HUGGINGFACE_TOKEN|HF_ENDPOINT"
    r"|WANDB_(API_KEY|BASE_URL|ENTITY|PROJECT)|MLFLOW_TRACKING_\w+|COMET_\w+|NEPTUNE_\w+|CLEARML_\w+|DVC_STUDIO_\w+"
    r"|SWANLAB_\w+|TRACKIO_\w+|SENTRY_DSN|OTEL_EXPORTER_\w+|VLLM_USAGE_STATS_SERVER|VLLM_S3_\w+"
)
"""Variables by which a user says to some library: go on the network, or report."""


def requirements(extra: str = "") -> list[Requirement]:
    """What this package needs, with an extra or without."""
    found = map(Requirement, importlib.metadata.requires(PACKAGE) or [])
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def versions() -> dict[str, str]:
    """Of this program, Python and the packages that it stands on; those that are not there are left out."""
    found = {PACKAGE: __version__, "python": platform.python_version()}
    for requirement in requirements():
        with suppress(importlib.metadata.PackageNotFoundError):
            found[requirement.name] = importlib.metadata.version(requirement.name)
    return found


def python() -> Iterator[Outcome]:
    version = platform.python_version()
    if version.startswith(f"{TESTED_PYTHON}."):
        yield "ok", version
    else:
        yield "warning", f"{version}; the tests ran with {TESTED_PYTHON}", "Keep it unless something goes wrong"


def packages() -> Iterator[Outcome]:
    """Against the ranges of the package's metadata, and against the versions of the tests."""
    constraints = _constraints_file()
    lines = re.findall(r"(?m)^[\w.-]+==\S+", constraints.read_text(encoding="utf-8"))
    tested = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    others, number = [], 0
    for requirement in requirements():
        name, fix = requirement.name, f'pip install "{requirement}"'
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield "error", f"{name} is not installed", fix
            continue
        number += 1
        pin = tested[canonicalize_name(name)]
        if not requirement.specifier.contains(version, prereleases=True):
            yield "error", f"{name} {version} is out of the range {requirement.specifier}", fix
        elif not pin.contains(version, prereleases=True):
            others.append(f"{name} {version} (tested {str(pin).removeprefix('==')})")
    if others:
        fix = f"For the tested versions: pip install -c {shlex.quote(short(constraints))} {PACKAGE}"
        yield "warning", f"{len(others)} of {number} in their range, but not as tested: {', '.join(others)}", fix
    else:
        yield "ok", f"all {number} as tested"


def devices() -> Iterator[Outcome]:
    import torch

    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    line = f"torch {torch.__version__} {build}; {counted(cores, 'core')}, {counted(threads, 'thread')}"
    if threads > cores:
        yield "warning", line, f"More threads than cores make it slow: export OMP_NUM_THREADS={cores}"
    else:
        yield "ok", line
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield "ok", f"cuda:{number} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if NVIDIA_DRIVER.exists() and not torch.cuda.is_available():
        yield "warning", "an NVIDIA driver is here, but torch sees no GPU", "Install the torch for its CUDA version"


def disk() -> Iterator[Outcome]:
    """Where `train` puts its runs."""
    from gpta_local.record.folder import HISTORY_ROOM

    place = nearest_existing(RUNS.absolute())
    free = shutil.disk_usage(place).free
    where = f"{short(RUNS.absolute())}: {free / 2**30:.1f} GiB free"
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield "error", f"{place} cannot be written, and runs go there", "Choose another place with train --output"
    elif free < HISTORY_ROOM:
        yield "error", where, "Make room, or choose another place with train --output"
    elif kind := exposure.network_file_system(place):
        fix = "Choose a place on a local disk with train --output"
        yield "warning", f"{where}, on a network file system ({kind}), where SQLite's locks may fail", fix
    else:
        yield "ok", where


def environment() -> Iterator[Outcome]:
    """What the user's shell says to libraries; only names of variables are told, never values."""
    found = sorted(name for name in os.environ if INVITING.fullmatch(name) and name not in OFFLINE)
    if found:
        line = f"set in this shell: {', '.join(found)}. gpta-local uses none of them, but other programs may"
        yield "warning", line, f"unset {' '.join(found)}"
    yield "ok", f"gpta-local itself sets {len(OFFLINE)} variables that keep libraries quiet, such as {min(OFFLINE)}"


def _constraints_file() -> Path:
    """The versions of the tests: below the package in a wheel, in `requirements/` in a checkout."""
    package = Path(__file__).parent.parent
    embedded = package / "embedded" / "constraints.txt"
    return embedded if embedded.is_file() else package.parent / "requirements" / "constraints.txt"
