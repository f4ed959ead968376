"""Jobs → processes → results file. Knows which jobs are left and which can begin; not what they do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpta_local
from gpta_local.benchmark.trials import Job, Results, warnings
from gpta_local.errors import InputError, OutputError
from gpta_local.observer import Observer
from gpta_local.system.engines import Engine, Processes
from gpta_local.system.worker import Call, Outcome

RESULTS, LOG, RUNS = "results.jsonl", "libraries.log", "runs"
PERFORM = "gpta_local.benchmark.arms:perform"
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Of a processor, from the widest to the narrowest that a matrix product uses."""
LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "trl", "setfit")


def make_folder(folder: Path, *, must_exist: bool) -> None:
    """The directory of a benchmark, for its owner only; one that is there is gone on with.

    Raises:
        OutputError: it cannot be made, is something else, or is not there and should be.
    """
    if must_exist and not (folder / RESULTS).is_file():
        raise OutputError(f"no {RESULTS} in this directory", where=str(folder), fix="Name that of a benchmark")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULTS).is_file():
        raise OutputError(
            "there is something in this directory already, and no benchmark",
            where=str(folder),
            fix="Choose another with --output",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as exc:
        where, fix = str(folder), "Choose another place with --output"
        raise OutputError(f"cannot be made ({exc.strerror})", where=where, fix=fix) from exc


def refuse_changed(jobs: Sequence[Job], results: Results) -> None:
    """Results of other settings are none of this suite.

    Raises:
        OutputError: there are some, or some that were measured on other rows.
    """
    if changed := [job for job in jobs if results.changed(job)]:
        raise OutputError(
            f"{len(changed)} of its results were measured with other settings or rows than the suite has now. "
            f"The first: {changed[0]}",
            where=str(results.path),
            fix="Choose another --output, or give --redo-changed to measure those again",
        )


def left_to_do(jobs: Sequence[Job], results: Results, *, redo_changed: bool) -> list[Job]:
    """Jobs without a result.

    Raises:
        InputError: an arm needs a package that is not installed.
        OutputError: see `refuse_changed`; not with `redo_changed`.
    """
    if not redo_changed:
        refuse_changed(jobs, results)
    for job in filter(results.changed, jobs):
        results.forget(job)
    left = [job for job in jobs if not results.finished(job)]
    for job in left:
        results.forget(job)  # failures are tried again
    if any(job.trials[0].arm.startswith("setfit") for job in left) and importlib.util.find_spec("setfit") is None:
        raise InputError(
            "the arm 'setfit' needs the package setfit, which is not installed",
            fix="pip install 'gpta-local[setfit]', or take the arm out of the suite",
        )
    return left


def run(
    left: Sequence[Job],
    results: Results,
    output: Path,
    processes: int,
    observer: Observer,
    engine: Engine[Job] | None = None,
) -> dict[Job, str]:
    """Do the jobs, at most so many at a time, and append their results; why those that failed did.

    Args:
        engine: what does them, which is ended after; None: processes of this machine.
    """
    waiting = list(left)
    beside = {"versions": versions(), "processes": processes}
    failed: dict[Job, str] = {}
    warned: set[str] = set()

    def record(job: Job, outcome: Outcome, seconds: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"digest": job.digest, "wall_seconds": seconds, "finished": now, **beside}
        if isinstance(outcome, str):
            failed[job] = outcome
            outcome = [{"error": outcome}] * len(job.trials)
            for blocked in [other for other in waiting if set(other.needs) & set(job.trials)]:
                waiting.remove(blocked)
                failed[blocked] = "needs the outcome of another that failed"
                observer.advance()
        for trial, figures in zip(job.trials, outcome, strict=True):
            results.add(trial, {**figures, **about})
        observer.note(f"{job}: {_told(outcome[0])}, {seconds:.0f} s")
        for warning in warnings(job.trials[0], outcome[0]):
            if warning not in warned:
                observer.warn(warning)
            warned.add(warning)
        observer.advance()

    observer.stage("trials", len(waiting))
    with engine or Processes(processes, output / LOG) as engine:
        while waiting or engine.running:
            while engine.has_room and (following := _next(waiting, results)):
                waiting.remove(following)
                given = {need: results.records[need] for need in following.needs}
                arguments = (following, given, _folder(following, output))
                hosts = following.config.privacy.allow_hosts
                engine.begin(following, Call(str(following), PERFORM, arguments, hosts))
            for ended in engine.ended():
                record(*ended)
    return failed


def _next(waiting: Sequence[Job], results: Results) -> Job | None:
    """The first job whose needs are there."""
    return next((job for job in waiting if all(need in results.records for need in job.needs)), None)


def _folder(job: Job, output: Path) -> Path:
    """Where a run of the outer loop keeps its record."""
    trial = job.trials[0]
    shots = "all" if trial.shots is None else f"{trial.shots}-shots"
    return output / RUNS / _word(trial.set) / shots / f"sample-{trial.sample}" / _word(trial.arm)


def _word(name: str) -> str:
    """A name as part of a path; two names never give the same."""
    word = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60]
    return word if word == name else f"{word}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _told(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"failed: {figures['error']}"
    if "points" in figures:
        return f"{len(figures['points'])} points"
    return f"accuracy {figures['accuracy']:.3f}"


def versions() -> dict[str, str]:
    """What measures: this package with a digest of its code, the libraries that could change a figure, and the
    processor with its cores and its widest instructions, as one name can stand for several generations."""
    code = hashlib.sha256()
    for path in sorted(Path(gpta_local.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    found = {"gpta-local": f"{gpta_local.__version__} ({code.hexdigest()[:12]})", "python": platform.python_version()}
    with suppress(OSError, KeyError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        widest = next((flag for flag in INSTRUCTIONS if flag in about.get("flags", "").split()), "")
        found["processor"] = f"{about['model name']} × {os.cpu_count()} {widest}".strip()
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
