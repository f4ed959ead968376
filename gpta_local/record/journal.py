"""The one door to what a run keeps: history, audit log, checkpoints, losses and clock, in step with each other.

Knows these files, and that the summary comes last; not how a run is made. What is on record when a run is
stopped is there when it goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from gpta_local import __version__
from gpta_local.config import Config, dump
from gpta_local.errors import InputError
from gpta_local.observer import Observer
from gpta_local.record import folder as run_folder
from gpta_local.record.audit import HEAD_KEY, Audit, history_digest
from gpta_local.record.checkpoints import KEPT, Checkpoint, Checkpoints
from gpta_local.record.entries import LOG
from gpta_local.record.history import History
from gpta_local.schema import (
    Ask,
    Checked,
    Completion,
    DatasetCard,
    DialogueGradientStep,
    ExampleText,
    MeasuredRow,
    ProposalFigures,
    Regime,
    Round,
    StepVerdict,
)
from gpta_local.system.files import flush, write_whole


class Journal(History):
    """The history of a run that is going on. What is written to it goes to the audit log and the clock at the same
    moment."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._started = time.monotonic()
        if not (folder / run_folder.CONFIG_FILE).is_file():
            write_whole(folder / run_folder.CONFIG_FILE, dump(config))
        super().__init__(folder / run_folder.HISTORY_FILE)
        self.folder, self._config = folder, config
        self._audit: Audit | None = None
        self._last_asked = 0

    def begin(self, card: DatasetCard, regime: Regime, observer: Observer, checked: Checked | None = None) -> None:
        """Put on record what runs; or, in the folder of a run that was stopped, that it goes on.

        Args:
            checked: what the assistant was sent before.
        """
        if self.run() is None:
            self.add_run(card, regime)
        if purged := self.purged():
            where = str(self.folder)
            raise InputError(f"the texts of this run were purged ({purged})", where=where, fix="Begin a new run")
        self._audit = Audit(self.folder / LOG)
        seconds = self._config.training.checkpoint_seconds
        self._checkpoints = Checkpoints(self.folder / run_folder.CHECKPOINTS_FOLDER, seconds, observer.warn)
        self._seconds_before = self.seconds()
        if not self.ended:
            for package in self.audit.start(self._config, self.unanswered()):
                observer.warn(f"{package} is of another version than when the run began: results can differ in digits")
            if checked:
                self.audit.checked(checked)
            self._titles = run_folder.whole_metrics(self.folder)
            if requests := self.requests():
                observer.note(f"going on with the run: {len(requests)} requests, {len(self.rounds())} rounds")

    @property
    def ended(self) -> bool:
        """Whether the run that was stopped here is over but for its summary and its report."""
        return self.audit.last_event == "finished"

    @property
    def audit(self) -> Audit:
        assert self._audit is not None  # `opened` begins each journal
        return self._audit

    # ── the clock ───────────────────────────────────────────────────────────────────────────────

    def elapsed(self) -> float:
        """Seconds since the run began, pauses left out."""
        return self._seconds_before + time.monotonic() - self._started

    def keep_time(self) -> float:
        """Put the seconds on record; return them."""
        elapsed = self.elapsed()
        self.add_seconds(elapsed)
        return elapsed

    # ── the search ──────────────────────────────────────────────────────────────────────────────

    def exchange(
        self,
        round_number: int,
        asks: Sequence[Ask],
        adapter: Path | None,
        complete_all: Callable[[Sequence[Ask]], list[list[Completion]]],
    ) -> list[tuple[int, list[Completion]]]:
        """The number and the completions of each request: those on record, or those that `complete_all` brings now.
        All requests are in history and audit log before the first is sent.

        Raises:
            InputError: in the place of one the run had asked something else.
        """
        numbers, known = zip(*(self._question(round_number, ask, adapter) for ask in asks), strict=True)
        found = dict(zip(numbers, known, strict=True))
        waiting = {number: ask for number, ask in zip(numbers, asks, strict=True) if not found[number]}
        if waiting:
            answers = dict(zip(waiting, complete_all(list(waiting.values())), strict=True))
            self.add_completions(answers)
            self.keep_time()
            found |= answers
        for number in numbers:
            if number not in self.audit.answered_requests:
                cached = any(c.cached for c in found[number]) if number in waiting else None
                self.audit.answered(number, found[number], cached)
        return [(number, found[number]) for number in numbers]

    def _question(self, round_number: int, ask: Ask, adapter: Path | None) -> tuple[int, list[Completion]]:
        """Put a request on record, unless it is there; its number, and its completions if they are there."""
        name = adapter.name if adapter else ""
        recorded = self.asked(round_number, ask.request.kind, name, after=self._last_asked)
        if recorded is None:
            number = self.add_request(round_number, ask.request, ask.sampling, name)
        elif recorded.is_for(ask.request, ask.n, ask.sampling):
            number = recorded.number
        else:
            raise InputError(
                f"in round {round_number} the run had asked something else",
                where=str(self.folder),
                fix=f"It was begun by gpta-local {self.written_by()}, this is {__version__}: resume it with that one, "
                "or begin a new run",
            )
        self._last_asked = number
        if number not in self.audit.requests:
            self.audit.asked(number, round_number, ask.request, ask.n, ask.sampling, adapter)
        return number, recorded.completions if recorded else []

    def add_round(
        self, entry: Round, verdict: tuple[str, StepVerdict] | None = None, *, base_only: bool = False
    ) -> None:
        super().add_round(entry, verdict, base_only=base_only)
        self.keep_time()

    def add_asking(
        self, number: int, figures: Sequence[ProposalFigures], verdict: tuple[str, StepVerdict] | None = None
    ) -> None:
        super().add_asking(number, figures, verdict)
        self.keep_time()

    def add_step(self, round_number: int, step: DialogueGradientStep, verdict: StepVerdict) -> None:
        self.audit.wrote(self.folder / run_folder.ADAPTERS_FOLDER / step.adapter)
        super().add_step(round_number, step, verdict)

    # ── fine-tunings ────────────────────────────────────────────────────────────────────────────

    def checkpoint(self, slot: str) -> Checkpoint | None:
        """The newest whole one of a slot."""
        return self._checkpoints.newest(slot)

    @property
    def checkpoint_due(self) -> bool:
        return self._checkpoints.due

    def add_checkpoint(
        self, slot: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kept: int = KEPT
    ) -> None:
        self._checkpoints.write(slot, step, tensors, state, kept=kept)
        self.keep_time()

    def add_example_texts(self, texts: Sequence[ExampleText]) -> None:
        """`examples.jsonl`: what the assistant made up, and what became of it."""
        lines = [json.dumps(asdict(text), ensure_ascii=False) + "\n" for text in texts]
        write_whole(self.folder / run_folder.EXAMPLES_FILE, "".join(lines))

    @property
    def example_texts_are_final(self) -> bool:
        """Whether all of them are judged, and trained on: no more are asked for."""
        return (self.folder / run_folder.EXAMPLES_FILE).is_file()

    def add_predictions(self, rows: Sequence[MeasuredRow]) -> None:
        """`predictions.jsonl`: what the product says of each row that it is measured on."""
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
        write_whole(self.folder / run_folder.PREDICTIONS_FILE, "".join(lines))

    def add_losses(
        self,
        title: str,
        training: str,
        prefix: str,
        losses: Sequence[float],
        watched: Sequence[tuple[int, float]],
    ) -> None:
        """A line of `metrics.jsonl`, once for each title.

        Args:
            training: of which these are steps; a search has steps in each round.
            watched: steps of the training, and the loss after each on rows that it does not see.
        """
        if title in self._titles:
            return
        self._titles.add(title)
        line = {
            "title": title,
            "training": training,
            "prefix": prefix,
            "losses": [round(loss, 6) for loss in losses],
            "watched": [(step, round(loss, 6)) for step, loss in watched],
        }
        with (self.folder / run_folder.METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def end(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Record the model, write the end of the log, and then the summary: a run with a summary is whole."""
        self.audit.wrote(self.folder / run_folder.MODEL_FOLDER)
        write_whole(self.folder / run_folder.DRAFT, run_folder.as_text(result))
        self.audit.finish(result, history_digest(self))
        return self.sum_up()

    def sum_up(self) -> dict[str, Any]:
        """Leave nothing that is not for the user and, now that the log has its end, write the summary."""
        self._checkpoints.clear()
        draft, summary = self.folder / run_folder.DRAFT, self.folder / run_folder.SUMMARY_FILE
        if not draft.is_file():  # the run was killed after this, before its report was whole
            return run_folder.summary(self.folder)
        result: dict[str, Any] = json.loads(draft.read_text(encoding="utf-8")) | {HEAD_KEY: self.audit.head}
        write_whole(draft, run_folder.as_text(result))
        draft.replace(summary)
        flush(self.folder)
        return result

    def close(self) -> None:
        if self._audit is not None:
            self._audit.close()
        super().close()


@contextmanager
def opened(
    folder: Path, config: Config, card: DatasetCard, regime: Regime, observer: Observer, checked: Checked | None = None
) -> Iterator[Journal]:
    """Begin a run in the folder, or go on with the one that was stopped there.

    Args:
        checked: what the assistant was sent before.

    Raises:
        InputError: that run was purged, is of another version, or its files were changed.
    """
    with closing(Journal(folder, config)) as journal:
        journal.begin(card, regime, observer, checked)
        yield journal
