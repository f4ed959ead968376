"""Models that are trained and measured for a run, each step and measurement once, whenever the run is stopped.

Knows trainings, their shares of the rounds, checkpoints and slots; not why a model is trained with a prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from gpta_local.downstream.model import DownstreamModel
from gpta_local.downstream.training import Training
from gpta_local.metrics import Losses, paired_mean
from gpta_local.observer import Observer
from gpta_local.record.checkpoints import KEPT
from gpta_local.record.entries import hex_digest
from gpta_local.record.journal import Journal
from gpta_local.run.plan import Plan
from gpta_local.schema import ExampleText, Round
from gpta_local.system.interrupt import Interrupt
from gpta_local.tasks.base import Evaluation

SEARCH = "search"
"""The slot of the training that goes on while an online search does."""
JUDGE, TEXTS = "judge", "example-texts"
"""The slots of the trainings with example texts among the rows: of a judge, with the number of texts behind it, and of
a contestant."""
OF_CONTROL = 0.4
"""Share of the model of the rows alone in the average with one that was trained on example texts too. It costs nothing
where these help and keeps most of what they would spoil (docs/LOG.md)."""
OWN = "own-label-texts"
"""The slot of the training that starts from the card's label texts alone."""
ROW_BY_ROW = ("scores", "losses", "logits", "targets")
"""The parts of an evaluation that are arrays."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after all its training steps, and the prefix it is used with. `slot`: of the training's checkpoints."""

    model: DownstreamModel
    prefix: str
    seconds: float
    slot: str


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that may be the product; trained when that is asked for, once."""

    prefix: str
    slot: str
    train: Callable[[], Trained]

    @property
    def name(self) -> str:
        """For the user."""
        if self.slot == "plain":
            return "plain fine-tuning"
        if self.slot == TEXTS:
            return "(no prefix), example texts"
        return self.prefix or ("(no prefix), model of the search" if self.slot == SEARCH else "(no prefix)")


def contestant(prefix: str, slot: str, train: Callable[[], Trained]) -> Contestant:
    return Contestant(prefix, slot, cache(train))


def ready(trained: Trained) -> Contestant:
    return Contestant(trained.prefix, trained.slot, lambda: trained)


class FineTuner:
    def __init__(self, plan: Plan, journal: Journal, observer: Observer, interrupt: Interrupt) -> None:
        self.plan, self.journal, self.observer, self.interrupt = plan, journal, observer, interrupt

    def fine_tune(
        self,
        model: DownstreamModel,
        prefix: str,
        name: str,
        slot: str,
        texts: Sequence[ExampleText] = (),
        part: int = 1,
    ) -> Trained:
        """All steps with one prefix; none, where there is nothing to train on.

        Args:
            texts: example texts among the rows.
            part: 16 for a sixteenth of the rows.
        """
        if not (self.plan.splits.train or texts):
            return Trained(model, prefix, 0.0, slot)
        training = self.training(model, slot, texts, part)
        self.take_steps(training, prefix, training.steps, f"training {name}", slot)
        return Trained(model, prefix, training.seconds, slot)

    def with_texts(
        self,
        model: DownstreamModel,
        prefix: str,
        name: str,
        slot: str,
        texts: Sequence[ExampleText],
        control: Trained | None,
    ) -> Trained:
        """All steps with one prefix and example texts among the rows, then the average with a model that was trained
        on the rows alone; without example texts, the steps."""
        trained = self.fine_tune(model, prefix, name, slot, texts)
        if texts and control:
            trained.model.average_with(control.model, OF_CONTROL)
        return trained

    def training(self, model: DownstreamModel, slot: str, texts: Sequence[ExampleText] = (), part: int = 1) -> Training:
        """A training that goes on from its newest checkpoint, if there is one in its slot."""
        watch = () if slot.startswith(JUDGE) or part > 1 else self.plan.watched
        training = self.plan.training(model, texts=texts, watch=watch, part=part)
        if checkpoint := self.journal.checkpoint(slot):
            training.load(checkpoint)
            if (before := checkpoint.state["processes"]) != training.processes:
                self.observer.warn(
                    f"this training was begun by {before} processes and goes on with {training.processes}: figures can "
                    "differ from those of a run that was never stopped"
                )
        return training

    def take_steps(self, training: Training, prefix: str, until: int, title: str, slot: str, first: int = 0) -> float:
        """Train up to the step `until`, with checkpoints; put the losses from step `first` on into
        `metrics.jsonl`, and return their mean."""

        def on_step(_: float) -> None:
            self.observer.advance()
            ended = training.done == training.steps
            if ended or self.journal.checkpoint_due or self.interrupt.asked:
                state = training.state()
                kept = 1 if ended else KEPT
                self.journal.add_checkpoint(slot, training.done, state.tensors, state.state, kept)
            if self.interrupt.asked:
                raise KeyboardInterrupt

        if left := max(0, until - training.done):
            self.observer.stage(title, left)
            with self.interrupt.held():
                training.run(prefix, left, on_step)
        losses = training.losses[first:until]
        watched = [(step, loss) for step, loss in training.watched if step <= until and (step > first or not first)]
        self.journal.add_losses(title, slot, prefix, losses, watched)
        return sum(losses) / len(losses)

    def take_share(self, training: Training, entry: Round) -> None:
        """A round's share of the steps of an online search, with its prefix. It is none where there are more rounds
        than steps; the last round takes what is left."""
        first, until = (self.share(training, number) for number in (entry.number - 1, entry.number))
        started, loss = self.journal.elapsed(), None
        if until > first:
            title = f"round {entry.number}: training"
            loss = self.take_steps(training, entry.chosen.text, until, title, SEARCH, first)
        if entry.training_loss is None:
            seconds = entry.seconds + self.journal.elapsed() - started
            self.journal.add_training(entry.number, loss, seconds)
            self.observer.round(replace(entry, training_loss=loss, seconds=seconds))

    def take_rest(self, training: Training, prefix: str, after: int) -> None:
        """What is left of the steps when the search has ended after so many rounds."""
        first = self.share(training, after)
        self.take_steps(training, prefix, training.steps, "training to the end", SEARCH, first)

    def share(self, training: Training, rounds: int) -> int:
        """Steps of so many rounds together."""
        return training.steps * rounds // max(1, self.plan.config.search.rounds)

    def measure(self, trained: Trained, split: str) -> tuple[Evaluation, float]:
        """The results of a trained model and its prefix, row by row, and the seconds that took.

        Args:
            split: `test`, `validation`, or `fitted`: some rows of the training.
        """

        def work() -> tuple[Evaluation, list[float]]:
            started = time.monotonic()
            found = self.plan.task.evaluate(trained.model, getattr(self.plan.splits, split), trained.prefix)
            return found, [time.monotonic() - started]

        found, (seconds,) = self.once(f"{split}-{trained.slot}-{hex_digest(trained.prefix.encode())[:8]}", work)
        return found, seconds

    def validation_gain(self, ours: Trained, theirs: Trained) -> tuple[float, float]:
        """Mean loss of theirs less that of ours on the validation rows, in nats, and its standard error."""
        return paired_mean(self.validation_gains(ours, theirs))

    def validation_gains(self, ours: Trained, theirs: Trained) -> Losses:
        """The same row by row."""
        losses = [self.measure(trained, "validation")[0].losses for trained in (theirs, ours)]
        return losses[0] - losses[1]

    def once(self, slot: str, work: Callable[[], tuple[Evaluation, list[float]]]) -> tuple[Evaluation, list[float]]:
        """What `work` measures and the seconds that it says: done once, whenever the run is stopped."""
        if (known := self.journal.checkpoint(slot)) is None:
            found, seconds = work()
            tensors = {name: torch.from_numpy(getattr(found, name)) for name in ROW_BY_ROW}
            self.journal.add_checkpoint(slot, 0, tensors, {"summary": found.summary, "seconds": seconds})
            return found, seconds
        arrays = {name: known.tensors[name].numpy() for name in ROW_BY_ROW}
        return Evaluation(**arrays, summary=known.state["summary"]), known.state["seconds"]
