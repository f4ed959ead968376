"""The directory of a run: what is in it, and who is at work in it.

Knows file names and locks; not how a run is made. A directory with a
summary holds a finished run, one with a configuration and no summary a run that was stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from gpta_local.config import Config, load
from gpta_local.errors import ConfigError, GptaError, InputError, OutputError
from gpta_local.schema import ExampleText
from gpta_local.system.files import write_whole

RUNS = Path("runs")
CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.sqlite"
LOCK_FILE = "run.lock"
METRICS_FILE = "metrics.jsonl"
EXAMPLES_FILE = "examples.jsonl"
PREDICTIONS_FILE = "predictions.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
ADAPTERS_FOLDER = "adapters"
MODEL_FOLDER = "model"
REPORT_FILE = "report.html"
ROWS_REPORT_FILE = "report-with-rows.html"
"""Private: it holds texts of rows. Beside each of the two lies the same as Markdown."""
REPORTS = "report*"
DRAFT = ".summary.json"
"""The summary as long as the audit log has no end, whose hash belongs into it."""
SUMMARY_FILE = "summary.json"
SUMMARY_KEYS = {
    "arms",
    "card",
    "cost",
    "data",
    "differences",
    "evaluated_on",
    "prefix",
    "product",
    "seconds",
    "selection",
}
"""Some of those that a summary has."""
BEFORE_A_RUN = (LOCK_FILE, f".{CONFIG_FILE}.partial")
"""All that is in the directory of a run that was stopped before it began."""

State = Literal["nothing", "stopped", "finished"]
T = TypeVar("T")


def state_of(folder: Path) -> State:
    """What is there: no run, one that was stopped (or is going on), or one that is whole."""
    held, history = (folder / LOCK_FILE).is_file(), (folder / HISTORY_FILE).is_file()
    if (folder / SUMMARY_FILE).is_file() and history and not held:
        return "finished"
    begun = held or history
    return "stopped" if begun and (folder / CONFIG_FILE).is_file() else "nothing"


def check(folder: Path, config: Config, *, resume: bool) -> State:
    """What is there, if a run of this configuration can begin, or (`resume`) go on, in the folder.

    Raises:
        OutputError: it cannot; or another process is at work in it.
        ConfigError: the run that was stopped there has another configuration.
    """
    refuse_others(folder)
    state = state_of(folder)
    if state == "finished" and not resume:
        raise OutputError("a finished run is in this directory", where=str(folder), fix="Choose another")
    if state == "stopped":
        try:
            keys = differences(load(folder / CONFIG_FILE), config)
        except ConfigError as exc:
            keys = [f"which cannot be read here: {exc}"]
        if keys and resume:
            what = f"the run that was stopped in {folder} has another configuration: {', '.join(keys)}"
            raise ConfigError(what, fix=f"Give {folder / CONFIG_FILE}, or begin a new run")
        if keys:
            what = f"a run of another configuration was stopped in this directory ({', '.join(keys)})"
            raise OutputError(what, where=str(folder), fix="Choose another")
        if not resume:
            what = "a run of this configuration was stopped in this directory"
            raise OutputError(what, where=str(folder), fix="Give --resume to go on with it, or choose another")
    return state


def new(config: Config) -> Path:
    """The folder of a run for which the user names none: runs/NAME-DATE-TIME."""
    return RUNS / f"{_name(config)}-{datetime.now():%Y%m%d-%H%M%S}"


def of_seeds(config: Config) -> Path:
    """The folder of the runs of several seeds for which the user names none."""
    return RUNS / f"{_name(config)}-seeds"


def newest_stopped(config: Config) -> Path | None:
    """The newest such folder in which a run of this configuration was stopped."""
    for folder in sorted(RUNS.glob(f"{_name(config)}-*"), reverse=True):
        try:
            if state_of(folder) == "stopped" and check(folder, config, resume=True):
                return folder
        except GptaError:
            continue
    return None


def _name(config: Config) -> str:
    return re.sub(r"[^\w.-]+", "-", config.card.name or "run").strip(".-")[:80]


def summary(folder: Path) -> dict[str, Any]:
    """What a finished run found.

    Raises:
        InputError: there is no finished run, or its summary is broken.
    """
    path = folder / SUMMARY_FILE
    if not path.is_file():
        raise InputError("no finished run here", where=str(folder), fix="Give the directory of a finished run")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise InputError("broken summary", where=str(path), fix="The file was changed; take it from a copy") from exc
    if not isinstance(found, dict) or not found.keys() >= SUMMARY_KEYS:
        raise InputError(
            "not the summary of a run of this version", where=str(path), fix="Use the gpta-local that made the run"
        )
    return found


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configurations differ; the order of the labels, which numbers them, counts."""
    first, second = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    keys = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    if list(one.card.labels or ()) != list(other.card.labels or ()):
        keys.add("card.labels")
    return sorted(keys)


def flat(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {above + key: value}
    return found


def as_text(summary: Mapping[str, Any]) -> str:
    """What is written into a file for a summary."""
    return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"


def whole_metrics(folder: Path) -> set[str]:
    """The titles in `metrics.jsonl`; what was not written to its end there is taken out."""
    path = folder / METRICS_FILE
    content = path.read_bytes() if path.is_file() else b""
    whole, titles = b"", set()
    for line in content.split(b"\n")[:-1]:
        try:
            titles.add(str(json.loads(line)["title"]))
        except (ValueError, LookupError, TypeError):
            break
        whole += line + b"\n"
    if whole != content:
        write_whole(path, whole.decode("utf-8"))
    return titles


def clear_product(folder: Path) -> None:
    """Delete the model that a run which was stopped had exported, or half-exported."""
    for path in (folder / MODEL_FOLDER, *folder.glob(f".{MODEL_FOLDER}-*")):
        if path.is_dir():
            shutil.rmtree(path)


# ── one process at a time ───────────────────────────────────────────────────────────────────────


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock file says who does. It ends with the process, however that
    ends, and is deleted with a run that is finished.

    Raises:
        OutputError: another process holds it, or the file system has no locks.
    """
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        _lock(file, folder)
        file.truncate(0)
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        file.write(json.dumps(owner) + "\n")
        file.flush()
        yield
        if (folder / SUMMARY_FILE).is_file():
            (folder / LOCK_FILE).unlink()


def refuse_others(folder: Path) -> None:
    """Raise what `locked` would if another process holds the folder; make nothing."""
    if (folder / LOCK_FILE).is_file():
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            _lock(file, folder)


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.seek(0)
        what = f"a run is going on in this directory: {_owner(file.read())}"
        raise OutputError(what, where=str(folder), fix="Wait for its end, or choose another directory") from exc
    except OSError as exc:
        what = f"the file system has no locks ({exc.strerror}): two runs could not be kept apart"
        raise OutputError(what, where=str(folder), fix="Choose a directory on a local disk with --output") from exc


def _owner(content: str) -> str:
    try:
        owner = json.loads(content)
        return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


HISTORY_ROOM = 2**25
"""Bytes kept free for history, metrics and summary."""


def make_folder(folder: Path, product_bytes: int) -> None:
    """Make a new directory that only its owner can read.

    Args:
        product_bytes: size of the weights that will be written at the end.

    Raises:
        OutputError: if it is there and not empty, cannot be made or written, or the disk has no
            room for the product.
    """
    check_folder(folder)
    with writing(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
        free, needed = shutil.disk_usage(folder).free, product_bytes + HISTORY_ROOM
        if free < needed:
            if made:
                folder.rmdir()
            raise OutputError(
                f"the disk has {free // 2**20} MiB left and the run needs {needed // 2**20}",
                where=str(folder),
                fix="Make room, or choose another place with --output",
            )


def check_folder(folder: Path) -> None:
    """Raise what `make_folder` would, as far as can be seen without making anything."""
    if folder.is_dir() and any(path.name not in BEFORE_A_RUN for path in folder.iterdir()):
        raise OutputError(
            "there is something in this directory already",
            where=str(folder),
            fix="Choose another, or remove it",
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError("a file, not a directory", where=str(folder), fix="Choose another place")
    nearest = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), Path("/"))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"{nearest} cannot be written", where=str(folder), fix="Choose another place")


def example_texts(folder: Path) -> list[ExampleText]:
    """What the assistant made up in a run, with its verdicts; of a run that judged none, nothing.

    Raises:
        InputError: it was changed, or is of another version.
    """
    return list(json_lines(folder / EXAMPLES_FILE, lambda line: ExampleText(**line)))


def json_lines(path: Path, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """The lines of a file that a run writes if there is something to write.

    Raises:
        InputError: it was changed, or is of another version.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            yield read(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            fix = "The file was changed, or another gpta-local made it; gpta-local audit verify RUN says which"
            raise InputError("not a line that a run writes", where=f"{path}:{number}", fix=fix) from exc


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say clearly what the system says of a place that cannot be written."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise OutputError(
            f"cannot be written ({reason})", where=str(folder), fix="Make room, or choose another place"
        ) from exc
