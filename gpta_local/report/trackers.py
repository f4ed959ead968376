"""A finished run for the trackers that people compare runs in: TensorBoard, MLflow, Weights & Biases.

Knows Accelerate's trackers and what a report knows of a run. Everything goes into files below the run; no text of the
assistant and no row is among it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpta_local.errors import first_line
from gpta_local.report.record import RunRecord, read_record
from gpta_local.system.extras import extra_module
from gpta_local.system.network import OFFLINE

TRACKING_FOLDER = "tracking"
FIGURES = ("accuracy", "macro_f1", "loss")
"""Of each model that was measured."""
NO_REPORTS = (
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "OTEL_SDK_DISABLED",
    "SCARF_NO_ANALYTICS",
    "WANDB_ERROR_REPORTING",
)
"""Variables that keep the trackers from reporting on themselves, from Python too, where there is no guard."""


def check_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        InputError: one of them is not installed.
    """
    _no_reports()
    for name in names:
        extra_module(name, name)


def track(run: Path, names: Sequence[str], warn: Callable[[str], None]) -> None:
    """Write the settings, losses and figures of a finished run for each of these trackers. What one of them cannot do
    is no reason to fail a run that is whole: `warn` is told."""
    for name in names:
        try:
            _track(read_record(run), name, run.resolve())
        except Exception as exc:  # libraries of others: many kinds
            warn(f"nothing is written for {name}: {first_line(exc)}")


def _track(record: RunRecord, name: str, run: Path) -> None:
    _no_reports()
    folder = run / TRACKING_FOLDER / name
    if folder.is_dir():
        shutil.rmtree(folder)  # of the same run, which was killed there
    folder.mkdir(parents=True)
    tracker = _tracker(name, run.name, folder)
    tracker.start()
    tracker.store_init_configuration(dict(record.settings))
    for values, step in _values(record):
        tracker.log(values, step=step)
    tracker.finish()


def _no_reports() -> None:
    os.environ.update({name: OFFLINE[name] for name in NO_REPORTS})


def _tracker(name: str, run: str, folder: Path) -> Any:
    from accelerate import PartialState, tracking

    PartialState()  # its trackers ask whether this is the first process
    if name == "tensorboard":
        return tracking.TensorBoardTracker("", folder)
    if name == "mlflow":
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # files, of which its newer versions want to be asked
        extra_module("mlflow", "mlflow").set_tracking_uri(folder.as_uri())
        return tracking.MLflowTracker("gpta-local", run_name=run)
    quiet = extra_module("wandb", "wandb").Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True, x_disable_stats=True
    )
    return tracking.WandBTracker("gpta-local", name=run, dir=folder, mode="offline", settings=quiet)


def _values(record: RunRecord) -> Iterator[tuple[dict[str, float], int]]:
    """Losses step by step, all trainings together, then the figures."""
    losses = {_name(number, title): values for number, (title, values) in enumerate(record.losses.items(), start=1)}
    steps = max(map(len, losses.values()), default=0)
    for step in range(steps):
        yield {f"loss/{name}": values[step] for name, values in losses.items() if step < len(values)}, step + 1
    arms = record.summary["arms"].items()
    figures = {f"{arm}/{figure}": float(of[figure]) for arm, of in arms for figure in FIGURES if figure in of}
    yield figures | {"seconds": float(record.summary["seconds"]["total"])}, steps + 1


def _name(number: int, title: str) -> str:
    """A training's title in signs that all trackers take; a prefix, which the assistant wrote, is not told."""
    return re.sub(r"[^\w. -]+", "", re.sub(r'"[^"]*"', f"prefix {number}", title)).strip()
