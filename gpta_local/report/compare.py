"""Runs next to each other: their models on the test rows that they share, their settings, what they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpta_local.config import load
from gpta_local.errors import InputError
from gpta_local.metrics import paired_bootstrap, wilson_interval
from gpta_local.record import folder as run_folder
from gpta_local.report.rows import measured_rows
from gpta_local.report.summary import judge


def compare_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """`rows`: shared test rows. `runs`: of each its accuracy on these with Wilson's interval, the difference from the
    first on the same rows with its paired bootstrap interval (None of the first itself), and its cost. `settings`: by
    key, the values of the runs, in their order, where they are not all the same.

    Raises:
        InputError: fewer than two runs, no finished run, one that was not measured on test rows, or no row that all
            share.
    """
    if len(runs) < 2:
        raise InputError("one run alone", fix="Give two runs or more: gpta-local compare RUN RUN")
    summaries = [run_folder.summary(run) for run in runs]
    right = [_right(run, summary["evaluated_on"]) for run, summary in zip(runs, summaries, strict=True)]
    shared = sorted(set.intersection(*map(set, right)))
    if not shared:
        fix = "Compare runs that were measured on the same rows"
        raise InputError("the runs share no test row with the same label", where=", ".join(map(str, runs)), fix=fix)
    scores = [np.array([of_run[row] for row in shared], dtype=np.float64) for of_run in right]
    return {
        "rows": len(shared),
        "runs": [
            _one(run, summary, of_run, len(measured), None if place == 0 else scores[0])
            for place, (run, summary, of_run, measured) in enumerate(zip(runs, summaries, scores, right, strict=True))
        ],
        "settings": _settings(runs),
    }


def _right(run: Path, evaluated_on: str) -> dict[tuple[str, str, int], bool]:
    """Whether the model is right, by row, label, and how many such rows came before: a row may be there twice."""
    if evaluated_on != "test":
        what = "the run was not measured on test rows"
        raise InputError(what, where=str(run), fix="Run it again, with data.test")
    found: dict[tuple[str, str, int], bool] = {}
    times: dict[tuple[str, str], int] = {}
    for row in measured_rows(run):
        key = row.row, row.label
        times[key] = times.get(key, -1) + 1
        found[*key, times[key]] = row.predicted == row.label
    return found


def _one(
    run: Path, summary: dict[str, Any], scores: NDArray[np.float64], rows: int, first: NDArray[np.float64] | None
) -> dict[str, Any]:
    accuracy = wilson_interval(round(scores.sum()), len(scores))
    difference = None
    if first is not None:
        interval = paired_bootstrap(scores, first)
        difference = {**asdict(interval), "verdict": judge(interval)}
    return {
        "run": str(run),
        "test_rows": rows,
        "accuracy": accuracy.value,
        "interval": [accuracy.low, accuracy.high],
        "difference": difference,
        "seconds": summary["seconds"]["total"],
        **summary["cost"],
    }


def _settings(runs: Sequence[Path]) -> dict[str, list[Any]]:
    configs = [run_folder.flat(load(run / run_folder.CONFIG_FILE).model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: of_runs for key, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}
