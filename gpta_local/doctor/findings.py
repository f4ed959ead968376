"""What checks look at and what they find, and how they write numbers and paths.

Grades: "error": the run would fail, would not do what the configuration asks, or lays something open
to other machines. "warning": it runs, but look at it. "ok".
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpta_local.config import Config

if TYPE_CHECKING:
    from gpta_local.assistant import Assistant
    from gpta_local.privacy.leak_scan import LeakScan
    from gpta_local.tasks.base import Task

Grade = Literal["ok", "warning", "error"]
Outcome = tuple[Grade, str] | tuple[Grade, str, str]
"""What a check yields: grade, finding and, maybe, what to do."""

RUNS = Path("runs")
"""Where `train` puts a run if it is not told otherwise."""
PATHS_NAMED = 4
"""Paths that a finding names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is the name of the check, `fix` what to do; empty where there is nothing to do."""

    check: str
    grade: Grade
    finding: str
    fix: str = ""


@dataclass
class Case:
    """What the checks look at: the configuration, its file, and what earlier checks have opened."""

    config: Config
    path: Path
    task: Task | None = None
    """With its data read; None where that failed."""
    scan: LeakScan | None = None
    """That found nothing in the card; None where there is none, or it found something."""
    assistant: Assistant | None = None
    """Open, and where it is served, found to answer; None where it is not."""


def nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def short(path: Path) -> str:
    """Relative to the working directory, where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def named(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - PATHS_NAMED} more" if len(paths) > PATHS_NAMED else ""
    return ", ".join(map(short, paths[:PATHS_NAMED])) + more


def quoted(paths: Sequence[Path]) -> str:
    return " ".join(shlex.quote(short(path)) for path in paths)
