"""Runs in processes that are killed and resumed, and what of a run must be the same as without that.

Processes are forked from one that has loaded the libraries already: what takes seconds is done once.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpta_local.record.verification import verify
from gpta_local.system.files import files_below, sha256
from gpta_local.system.network import OFFLINE

CLOCKS = ("created", "seconds")
"""Columns and keys that tell a time."""


def start(
    arguments: Sequence[object], output: Path, writes: int = 0, threads: int | None = None
) -> multiprocessing.process.BaseProcess:
    """The command `gpta-local` in a process of its own; what it prints goes to the file `output`.

    Args:
        writes: with which flush of a file the process kills itself, before that is done; 0 for with none.
        threads: that torch computes with; None for its own choice.
    """
    context = multiprocessing.get_context("forkserver")
    os.environ.update(OFFLINE)
    context.set_forkserver_preload(
        ["gpta_local.run.loop", "gpta_local.cli.main", "gpta_local.cli.console", "trl", "peft"]
    )
    process = context.Process(
        target=_command, args=([str(argument) for argument in arguments], str(output), writes, threads)
    )
    process.start()
    return process


def _command(arguments: list[str], output: str, writes: int, threads: int | None) -> None:
    with Path(output).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from gpta_local.cli.main import main

    if threads:
        torch.set_num_threads(threads)
    done, fsync = itertools.count(1), os.fsync

    def counted(descriptor: int) -> None:
        if next(done) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted
    sys.argv = ["gpta-local", *arguments]
    main(args=arguments)


def finish(arguments: Sequence[object], output: Path, timeout: float = 300) -> float:
    """Run the command to its end; the seconds that it took."""
    started = time.monotonic()
    process = start(arguments, output)
    process.join(timeout)
    assert process.exitcode == 0, output.read_text(encoding="utf-8")[-3000:]
    return time.monotonic() - started


def killed(arguments: Sequence[object], output: Path, *, after: float = 3600.0, writes: int = 0) -> bool:
    """Start the command and kill it after so many seconds, or with a write as for `start`; False if it ended
    before."""
    process = start(arguments, output, writes)
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), output.read_text(encoding="utf-8")[-3000:]
    return process.exitcode != 0


def killed_and_resumed(arguments: Sequence[object], folder: Path, rng: random.Random, seconds: float, most: int) -> int:
    """Run the command to its end, killed at random moments at most so many times; how many times it was.

    Args:
        folder: of the run; the command resumes what is there.
        seconds: the most between a start and a kill.
    """
    output = folder.with_suffix(".out")
    command = [*arguments, "--output", folder, "--resume"]
    kills = 0
    while kills < most:
        if not killed(command, output, after=rng.uniform(0, seconds)):
            return kills
        kills += 1
    finish(command, output, timeout=1200)
    return kills


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that does not tell a time: the history row by row, the figures, the files' digests."""
    assert not (problems := verify(run).problems), problems
    found: dict[str, Any] = {}
    with sqlite3.connect(run / "history.sqlite") as db:
        db.row_factory = sqlite3.Row
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = db.execute(f"SELECT * FROM {table} ORDER BY rowid")
            found[table] = [{key: row[key] for key in row.keys() if key not in CLOCKS} for row in rows]  # noqa: SIM118
    found["summary"] = _without_clocks(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    for path in files_below(run):
        name = path.relative_to(run).as_posix()
        timed = path.name in ("step.json", "SHA256SUMS") and name.startswith("adapters/")
        if timed or name in ("report.html", "report.md"):
            found[name] = "it holds seconds"
        elif path.suffix not in (".png", ".svg") and name not in ("history.sqlite", "summary.json", "audit.jsonl"):
            found[name] = sha256(path)
    return found


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_clocks(inner) for key, inner in value.items() if "seconds" not in key and key != "audit_head"
        }
    return [_without_clocks(inner) for inner in value] if isinstance(value, list) else value
