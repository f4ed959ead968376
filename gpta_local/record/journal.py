"""What a run keeps in its directory while it goes on: history, audit log, checkpoints, metrics, and its clock.

Knows these files, and that the summary comes last; not how a run is made. What is on record when a run is
stopped is there when it goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gpta_local import __version__
from gpta_local.config import dump
from gpta_local.errors import InputError
from gpta_local.observer import Observer
from gpta_local.record import folder as run_folder
from gpta_local.record.audit import HEAD_KEY, Audit, history_digest
from gpta_local.record.checkpoints import Checkpoints
from gpta_local.record.entries import LOG
from gpta_local.record.history import FORMAT, History
from gpta_local.run.plan import Plan
from gpta_local.system.files import flush, write_whole


class Journal:
    """Opened by `opened`. `ended`: the run that was stopped there is over but for its summary."""

    def __init__(
        self, folder: Path, history: History, audit: Audit, started: float, plan: Plan, observer: Observer
    ) -> None:
        self.folder, self.history, self.audit = folder, history, audit
        self.checkpoints = Checkpoints(
            folder / run_folder.CHECKPOINTS, plan.config.training.checkpoint_seconds, observer.warn
        )
        self.ended = audit.last_event == "finished"
        self._started, self._seconds_before = started, history.seconds()
        if not self.ended:
            for package in audit.start(plan.config, history.unanswered()):
                observer.warn(f"{package} is of another version than when the run began: results can differ in digits")
            self._titles = run_folder.whole_metrics(folder)
            if requests := history.requests():
                observer.note(f"going on with the run: {len(requests)} requests, {len(history.rounds())} rounds")

    def elapsed(self) -> float:
        """Seconds since the run began, pauses left out."""
        return self._seconds_before + time.monotonic() - self._started

    def keep_time(self) -> float:
        """Put the seconds on record; return them."""
        elapsed = self.elapsed()
        self.history.add_seconds(elapsed)
        return elapsed

    def add_losses(self, title: str, prefix: str, losses: Sequence[float]) -> None:
        """A line of `metrics.jsonl`, once for each title."""
        if title in self._titles:
            return
        self._titles.add(title)
        line = {"title": title, "prefix": prefix, "losses": [round(loss, 6) for loss in losses]}
        with (self.folder / run_folder.METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def end(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the end of the log, and then the summary: a run with a summary is whole."""
        write_whole(self.folder / run_folder.DRAFT, run_folder.as_text(result))
        self.audit.finish(result, history_digest(self.history))
        return self.sum_up()

    def sum_up(self) -> dict[str, Any]:
        """Leave nothing that is not for the user and, now that the log has its end, write the summary."""
        self.checkpoints.clear()
        draft = self.folder / run_folder.DRAFT
        result: dict[str, Any] = json.loads(draft.read_text(encoding="utf-8")) | {HEAD_KEY: self.audit.head}
        write_whole(draft, run_folder.as_text(result))
        draft.replace(self.folder / run_folder.SUMMARY)
        flush(self.folder)
        return result


@contextmanager
def opened(folder: Path, plan: Plan, observer: Observer) -> Iterator[Journal]:
    """Begin a run in the folder, or go on with the one that was stopped there.

    Raises:
        InputError: that run was purged, is of another version, or its files were changed.
    """
    started = time.monotonic()
    if not (folder / run_folder.CONFIG).is_file():
        write_whole(folder / run_folder.CONFIG, dump(plan.config))
    with closing(History(folder / run_folder.HISTORY)) as history:
        if history.run() is None:
            history.add_run(plan.card, plan.regime)
        if history.written_by()[1] != FORMAT:
            raise other_version(folder, history, "the run is of another format")
        if purged := history.purged():
            raise InputError(f"the texts of this run were purged ({purged})", where=str(folder), fix="Begin a new run")
        with closing(Audit(folder / LOG)) as audit:
            yield Journal(folder, history, audit, started, plan, observer)


def other_version(folder: Path, history: History, what: str) -> InputError:
    version, _ = history.written_by()
    begun = f"gpta-local {version}" if version else "an earlier gpta-local that could not resume"
    fix = f"It was begun by {begun}, this is {__version__}: resume it with that one, or begin a new run"
    return InputError(what, where=str(folder), fix=fix)
