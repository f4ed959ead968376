"""Several seeds of one configuration: a run of its own for each, and what they found together.

Knows which runs are there and how their figures are joined; not where they are made, nor how one goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gpta_local.config import Config, load
from gpta_local.errors import OutputError
from gpta_local.metrics import mean_interval
from gpta_local.observer import Observer
from gpta_local.record import folder as run_folder
from gpta_local.report.summary import nothing_usable
from gpta_local.system.engines import Engine
from gpta_local.system.files import owner_only, write_whole
from gpta_local.system.worker import Call

SEEDS_FILE, LOG = "seeds.json", "libraries.log"
TRAIN = "gpta_local.run.seeds:train"


class _Listener(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def train(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Make a run, or go on with the one that was stopped in the folder; what it warned of."""
    from gpta_local.run.loop import Run

    listener = _Listener()
    run = Run(config, listener)
    with closing(run.assistant):
        run.run(folder, resume=True)
    return [{"warnings": listener.warnings}]


class Seeds:
    """The runs of some seeds, each in a folder of its own below `folder`. Those that are finished are not made again.

    Raises:
        OutputError: something else is in the folder, or a run of another configuration.
    """

    def __init__(self, config: Config, seeds: Sequence[int], folder: Path) -> None:
        self.folder = folder
        self.configs = {seed: config.model_copy(update={"seed": seed}) for seed in seeds}
        if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob("seed-*")):
            fix = "Choose another with --output"
            raise OutputError("there is something in this directory already", where=str(folder), fix=fix)
        self.left = [seed for seed in self.configs if not self._finished(seed)]

    def of(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    @owner_only()
    def make_folder(self) -> None:
        with run_folder.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)

    def _finished(self, seed: int) -> bool:
        folder, config = self.of(seed), self.configs[seed]
        finished = run_folder.check(folder, config, resume=True) == "finished"
        if finished and (keys := run_folder.differences(load(folder / run_folder.CONFIG_FILE), config)):
            what = f"a run of another configuration is in this directory ({', '.join(keys)})"
            raise OutputError(what, where=str(folder), fix="Choose another with --output")
        return finished

    def run(self, engine: Engine[int], observer: Observer) -> dict[int, str]:
        """Make the runs that are left; why those that failed did."""
        waiting, failed, warned = list(self.left), dict[int, str](), set[str]()
        observer.stage("runs", len(waiting))
        with engine:
            while waiting or engine.running:
                while waiting and engine.has_room:
                    seed, config = waiting[0], self.configs[waiting.pop(0)]
                    folder = self.of(seed).resolve()
                    engine.begin(seed, Call(f"seed {seed}", TRAIN, (config, folder), config.privacy.allow_hosts))
                for seed, outcome, seconds in engine.ended():
                    if isinstance(outcome, str):
                        failed[seed] = outcome
                        observer.note(f"seed {seed}: failed: {outcome}")
                    else:
                        observer.note(f"seed {seed}: finished after {seconds:.0f} s")
                        for warning in outcome[0]["warnings"]:
                            if warning not in warned:
                                observer.warn(warning)
                            warned.add(warning)
                    observer.advance()
        return failed

    @owner_only()
    def sum_up(self) -> dict[str, Any]:
        """What the finished runs found, one by one and together; kept in `seeds.json`."""
        summaries = {
            seed: run_folder.summary(self.of(seed))
            for seed in self.configs
            if run_folder.state_of(self.of(seed)) == "finished"
        }
        runs = [_figures(seed, summary) for seed, summary in summaries.items()]
        names = sorted({name for run in runs for name in run["figures"]})
        together = {name: _together([run["figures"].get(name, 0.0) for run in runs]) for name in names}
        found = {"runs": runs, "mean": together}
        write_whole(self.folder / SEEDS_FILE, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return found


def _figures(seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run: accuracy, macro-F1 and what it is better by than each control, from 0 to 1."""
    ours = summary["arms"].get("gpta", {})
    figures = {name: ours[name] for name in ("accuracy", "macro_f1") if name in ours}
    figures |= {f"less {name}": of["value"] for name, of in summary["differences"].items()}
    return {
        "seed": seed,
        "figures": figures,
        "measured_on": summary["evaluated_on"],
        "rows": ours.get("rows", 0),
        "seconds": summary["seconds"]["total"],
        "nothing_usable": nothing_usable(summary),
    }


def _together(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval over seeds, open for a single one. (A control that is the product itself in some run has
    no difference there: 0.)"""
    found = asdict(mean_interval(np.array(values, dtype=np.float64)))
    return {end: value if math.isfinite(value) else None for end, value in found.items()}
