"""The outer loop: propose, score, choose, train; then finish. It composes, and decides nothing
that a module below it could decide. Progress goes to an `Observer`, results to the run directory.

A run that was stopped, at whatever moment, goes through the same loop again. What is on record is not
done twice: each of the steps that ask, score, teach, train and measure looks there first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gpta_local import __version__, export, prefix, run_folder, summary
from gpta_local.assistant import open_assistant
from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.checkpoints import KEPT, Checkpoints
from gpta_local.config import Config, dump
from gpta_local.data import Example, Splits
from gpta_local.dialogue_gradient import number_of_steps, sampling_temperature
from gpta_local.dialogues import build_dialogues
from gpta_local.downstream import DownstreamModel
from gpta_local.errors import AdapterRefused, EndpointError, InputError, ModelError, TrainingError
from gpta_local.history import FORMAT, History, Verdict
from gpta_local.interrupt import Interrupt
from gpta_local.metrics import paired_mean
from gpta_local.observer import Observer
from gpta_local.plots import plot_dialogue_gradient
from gpta_local.privacy.audit import HEAD, LOG, Audit, hex_digest, history_digest
from gpta_local.privacy.files import flush, owner_only, write_whole
from gpta_local.privacy.leak_scan import scan_of, weaker_than_default
from gpta_local.prompts import label_texts_request, prefix_request, reply_room
from gpta_local.schema import (
    Completion,
    ProposalFigures,
    Regime,
    Request,
    Round,
    Sampling,
    ScoredPrefix,
    StepVerdict,
)
from gpta_local.storage import explained
from gpta_local.summary import Selection, Templates
from gpta_local.tasks import open_task
from gpta_local.tasks.base import Evaluation, Task
from gpta_local.training import Training, total_steps
from gpta_local.tuner import Tuner

FITTED_ROWS = 1000
"""Training rows at most on which a trained model is measured, for the gap to the test rows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after all its training steps, and the prefix it is used with. `slot`: of the training's checkpoints."""

    model: DownstreamModel
    prefix: str
    seconds: float
    slot: str

    @property
    def name(self) -> str:
        """For the user, among the contestants."""
        if self.slot == "plain":
            return "plain fine-tuning"
        return self.prefix or ("(no prefix), model of the search" if self.slot == "search" else "(no prefix)")


@dataclass(frozen=True, slots=True)
class Controls:
    """Trainings without any prefix: with the same label texts, and plainly. None where nothing is measured; the plain
    one also where it is not wanted or would be the same as the other."""

    no_prefix: Trained | None
    plain: Trained | None


@dataclass(frozen=True, slots=True)
class Proposals:
    """What the assistant proposed in a round: new prefixes, counts by what became of the completions,
    the verdicts on those of each adapter, the best prefix that it was shown, and whether the server had
    lost the adapters, so that the base model answered."""

    prefixes: list[str]
    counts: dict[str, int]
    verdicts: dict[str, list[Verdict]]
    best_shown: ScoredPrefix | None
    base_only: bool


class Run:
    """One run of `gpta-local train`. Making it reads and checks the data, builds the untrained
    model and asks the assistant whether it can answer; nothing is written before `run`."""

    def __init__(
        self, config: Config, observer: Observer, interrupt: Interrupt | None = None, task: Task | None = None
    ) -> None:
        self.config, self.observer, self.interrupt = config, observer, interrupt or Interrupt()
        self.task = task or open_task(config)
        self.splits, self.card = self.task.splits(), self.task.card()
        for warning in self.splits.warnings:
            observer.warn(warning)
        self.leak_scan = scan_of(config, self.task.texts(), self.card)
        observer.note(f"leak scan: {self.leak_scan}")
        if weakness := weaker_than_default(config.privacy.leak_scan):
            observer.warn(weakness)
        self.regime = regime_of(config, self.splits)
        self.online = self.regime == "online"
        label_texts = self.task.uses_label_texts and label_texts_go_along(config, self.splits)
        self.steps = total_steps(config.training, len(self.splits.train), label_texts=label_texts)
        self.weights = sum(p.numel() * p.element_size() for p in self.task.build_plain().parameters())  # bytes
        self.latest: Sequence[ScoredPrefix] = []  # of the latest race
        self.last_asked = 0  # in the history
        self.first_heat = max(prefix.FIRST_HEAT, 4 * len(self.card.labels))
        self.assistant = open_assistant(config.assistant)
        observer.stage("waiting for the assistant", 1)
        observer.note(f"assistant: {self.assistant.check()}")
        self.tuner = Tuner(self.assistant, config)
        if config.dialogue_gradient is not None and not self.assistant.takes_adapters:
            observer.warn(f"{self.assistant.adapters_refused}. Adapters are trained and saved, but do not answer")
        observer.advance()

    @owner_only()
    def run(self, folder: Path, *, resume: bool = False) -> dict[str, Any]:
        """Search, train, choose, evaluate once on test, export. Returns what `summary.json` holds.

        Args:
            resume: go on with the run that was stopped in `folder`, if there is one.
        """
        state = run_folder.check(folder, self.config, resume=resume)
        if state == "finished":
            return run_folder.summary(folder)
        if state == "nothing":
            export.make_folder(folder, self.room())
        with explained(folder), run_folder.locked(folder), self.opened(folder):
            if self.audit.last_event == "finished":
                return self.sum_up()  # all that was left to do
            label_texts = self.choose_label_texts()
            model = self.task.build(label_texts)
            training = self.training(model, "search") if self.online else None
            current = ""
            for number in range(1, self.config.search.rounds + 1):
                entry = self.history.round(number) or self.search(number, model, current)
                if entry is None:
                    break
                self.latest = entry.scored
                if training is not None:
                    current = entry.chosen.text
                    self.train(training, entry)
                self.teach(number, model)
            ended_by = self.history.ended_by()
            if training is not None and ended_by:
                first = self.steps * (number - 1) // self.config.search.rounds
                self.take_steps(training, current, self.steps, "training to the end", "search", first)
            self.assistant.close()
            searched = Trained(model, current, self.history.search_seconds(), "search")
            controls, templates, contestants = self.contestants(label_texts, searched)
            selection = self.select(contestants)
            product = contestants[selection.chosen]
            result = summary.describe_run(self.card, self.regime, label_texts, templates, selection)
            result |= self.evaluate(product, controls)
            result["ended_by"] = ended_by or None
            result["seconds"] = {"search": searched.seconds, "total": self.elapsed()}
            self.write(product, result)
            return result

    # ── search ──────────────────────────────────────────────────────────────────────────────────

    def choose_label_texts(self) -> list[dict[str, str]]:
        """Ask the assistant for label texts, and keep those that start the model better than the card's
        own texts do alone."""
        if (known := self.history.label_texts()) is not None:
            return known
        asked = self.affordable("calls", 0, self.config.search.label_text_samples if self.task.uses_label_texts else 0)
        sets: list[dict[str, str]] = []
        if asked:
            self.observer.stage("asking for label texts", 1)
            request = label_texts_request(self.card)
            try:
                asking, completions = self.ask(0, request, asked, self.tuner.trusted)
            except (AdapterRefused, EndpointError) as exc:
                self.observer.advance()
                self.observer.warn(f"no label texts: {exc}. The head starts from the card's own")
                asked = 0
            else:
                sets, verdicts = prefix.read_label_text_sets(completions, self.card.label_names, self.leak_scan.find)
                self.history.judge_completions(asking, verdicts)
        chosen, scored = self.task.choose_label_texts(sets, self.config.search.scoring_rows)
        self.history.add_label_texts(scored, chosen)
        joined = len(chosen) - len(self.task.own_label_texts())
        self.observer.label_texts(chosen, joined, len(sets), asked)
        return chosen

    def search(self, number: int, model: DownstreamModel, current: str) -> Round | None:
        """One round, on record when this returns; at the current θ. None: the search has ended before it."""
        if self.history.ended_by() or self.budget_reached(number):
            return None
        started = self.elapsed()
        try:
            proposals = self.propose(number, model)
        except EndpointError as exc:
            self.end_search(number, exc)
            return None
        scored = self.score(number, model, current, proposals)
        figures, verdict = self.judge(proposals, scored)
        chosen = prefix.choose(scored, current)
        entry = Round(number, proposals.counts, figures, tuple(scored), chosen, None, seconds=self.elapsed() - started)
        self.history.add_round(entry, verdict, base_only=proposals.base_only)
        self.history.add_seconds(self.elapsed())
        if not self.online:
            self.observer.round(entry)
        return entry

    def propose(self, number: int, model: DownstreamModel) -> Proposals:
        """Ask for prefixes, showing a part of the history; clean what comes back. An adapter on trial
        gives half of them."""
        search = self.config.search
        known = self.history.scored()
        shown = prefix.shown_history(known, search.history_shown, f"{self.config.seed}-{number}")
        request = prefix_request(self.card, shown)
        self.observer.stage(f"round {number}: asking for prefixes", 1 + (self.tuner.trial is not None))
        proposals = self.affordable("trials", number, self.affordable("calls", number, search.proposals))
        asked, base_only = [], False
        try:
            for folder, count in self.tuner.shares(proposals):
                self.assistant.use_adapter(folder)
                asked.append((folder.name if folder else "", *self.ask(number, request, count, folder)))
        except AdapterRefused as exc:  # after a new start of the server
            base_only = True
            self.tuner.go_back_to_base()
            self.observer.warn(f"round {number}: {exc}. From here on the base model answers")
            asked = [("", *self.ask(number, request, proposals, None))]
        # in turns, so that neither of two adapters is the first to say what both say
        turns = sorted(
            (place / len(reply), who) for who, (*_, reply) in enumerate(asked) for place in range(len(reply))
        )
        replies = [iter(reply) for *_, reply in asked]
        candidates = prefix.clean(
            [next(replies[who]) for _, who in turns],
            [scored.text for scored in known],
            embed=lambda texts: model.embed(texts).cpu().numpy(),
            tokens=lambda text: len(model.tokenizer.prefix_ids(text)),
            max_tokens=search.max_prefix_tokens,
            near_duplicate=search.near_duplicate,
            leak=self.leak_scan.find,
        )
        verdicts: dict[str, list[Verdict]] = {}
        for who, (adapter, asking, _) in enumerate(asked):
            verdicts[adapter] = [v for v, (_, turn) in zip(candidates.verdicts, turns, strict=True) if turn == who]
            self.history.judge_completions(asking, verdicts[adapter])
        best_shown = max(shown, key=lambda s: s.gain, default=None)
        return Proposals(candidates.prefixes, candidates.counts, verdicts, best_shown, base_only)

    def end_search(self, number: int, why: EndpointError) -> None:
        """Go on with the prefixes known so far, and say so; without any, there is nothing to go on with."""
        known = len(self.history.scored())
        if not known:
            raise why
        reason = f"The assistant failed in round {number} of {self.config.search.rounds}: {why}"
        self.history.end_search(reason)
        self.observer.warn(f"{reason}. The search ends here, with the {known} prefixes known so far")

    def score(self, number: int, model: DownstreamModel, current: str, proposals: Proposals) -> list[ScoredPrefix]:
        """Race the new prefixes at the current θ. Where θ moves, the current and the best known
        prefixes run again, on new rows: gains at different θ do not compare."""
        best_shown = [proposals.best_shown.text] if proposals.best_shown else []
        known = [current, *best_shown, *self.finalists()] if self.online else []
        runners = [text for text in dict.fromkeys([*known, *proposals.prefixes]) if text]
        self.observer.stage(f"round {number}: scoring prefixes", len(runners))
        return prefix.race(
            runners,
            self.task.scorer(model, self.splits.train).losses,
            self.rows(number),
            first_heat=self.first_heat,
            kept=current,
            on_scored=self.observer.advance,
        )

    def rows(self, number: int) -> list[int]:
        """The scoring rows of a round: the same in all rounds unless θ moves."""
        seed = self.config.seed + (number if self.online else 0)
        return self.task.scoring_rows(self.splits.train, self.config.search.scoring_rows, seed)

    def judge(
        self, proposals: Proposals, scored: Sequence[ScoredPrefix]
    ) -> tuple[tuple[ProposalFigures, ...], tuple[str, StepVerdict] | None]:
        """The hit rate of each adapter that proposed; one on trial is kept or rolled back."""
        best = proposals.best_shown
        if best is not None and self.online:
            best = next(s for s in scored if s.text == best.text)
        figures = tuple(prefix.figures(name, verdicts, scored, best) for name, verdicts in proposals.verdicts.items())
        if self.tuner.trial is None:
            return figures, None
        verdict = self.tuner.judge(figures)
        self.observer.judged(figures[0], figures[1], verdict)
        return figures, (figures[1].adapter, verdict)

    def teach(self, number: int, model: DownstreamModel) -> None:
        """The dialogue gradient: fine-tune the assistant on the history, and put the new adapter on
        trial for the next round."""
        config = self.config.dialogue_gradient
        if config is None or number % config.every or number == self.config.search.rounds:
            return
        if self.history.taught(number):
            return
        dialogues = build_dialogues(
            self.card,
            self.history.comparable_groups(self.regime),
            self.history.label_text_scores(),
            winners=config.winners,
            per_winner=config.dialogues_per_winner,
            shown=self.config.search.history_shown,
            seed=self.config.seed,
        )
        if not dialogues:
            self.observer.warn(
                f"round {number}: no prefix gained more than another; the assistant has nothing to learn"
            )
            return
        for dialogue in dialogues:
            self.leak_scan.check_dialogue(dialogue)
        self.observer.stage(f"round {number}: teaching the assistant", number_of_steps(config, len(dialogues)))
        reward = self.reward(number, model)
        try:
            step, refused = self.tuner.step(number // config.every, dialogues, reward, self.observer.advance)
        except (ModelError, TrainingError) as exc:  # the search goes on without what it would have learnt
            self.observer.warn(f"round {number}: the assistant stays as it is: {exc}")
            return
        self.audit.wrote(self.tuner.folder / step.adapter)
        # where θ has moved since, what was found does not compare with the round's scores
        found = [] if self.online else reward.found
        self.history.add_step(number, step, "saved only" if refused else "on trial", found)
        self.observer.taught(step, refused)

    def reward(self, number: int, model: DownstreamModel) -> prefix.GainReward:
        """The gain of what `grpo` samples, on the rows of the round (online: of its first heat)."""
        rows = self.rows(number)
        return prefix.GainReward(
            [] if self.online else self.history.scored(),
            self.task.scorer(model, self.splits.train).losses,
            rows if len(rows) <= 2 * self.first_heat else rows[: self.first_heat],
            tokens=lambda text: len(model.tokenizer.prefix_ids(text)),
            max_tokens=self.config.search.max_prefix_tokens,
            leak=self.leak_scan.find,
        )

    def train(self, training: Training, entry: Round) -> None:
        """This round's share of the steps, which is none where there are more rounds than steps; the
        last round takes what is left."""
        rounds, started = self.config.search.rounds, self.elapsed()
        first, until = self.steps * (entry.number - 1) // rounds, self.steps * entry.number // rounds
        loss = None
        if until > first:
            title = f"round {entry.number}: training"
            loss = self.take_steps(training, entry.chosen.text, until, title, "search", first)
        if entry.training_loss is None:
            seconds = entry.seconds + self.elapsed() - started
            self.history.add_training(entry.number, loss, seconds)
            self.observer.round(replace(entry, training_loss=loss, seconds=seconds))

    def affordable(self, limit: Literal["calls", "trials"], number: int, wanted: int) -> int:
        """As many as the budget has left before a round, if fewer than are wanted."""
        budget: int | None = getattr(self.config.budget, limit)
        return wanted if budget is None else max(0, min(wanted, budget - self.history.spent(number)[limit]))

    def budget_reached(self, number: int) -> bool:
        """Whether a budget leaves no room for a round; a round that has begun has its room."""
        if self.history.asked(number) is not None:
            return False
        elapsed = self.elapsed()
        self.history.add_seconds(elapsed)
        spent = self.history.spent(number) | {"seconds": elapsed}
        for name, limit in self.config.budget.model_dump().items():
            if limit is not None and spent[name] >= limit:
                self.observer.warn(f"budget.{name} ({limit:g}) is reached before round {number}: the search ends")
                self.history.end_search(f"budget.{name}")
                return True
        return False

    # ── finish ──────────────────────────────────────────────────────────────────────────────────

    def contestants(
        self, label_texts: Sequence[dict[str, str]], searched: Trained
    ) -> tuple[Controls, Templates, list[Trained]]:
        """The controls; the templates; and the trained models to choose from, of which the first has no prefix in
        front of its inputs. Online it is the plain one unless label texts are clearly better as a start: with many rows
        they can be worse."""
        templates = Templates(tuple(self.best_prefixes()))
        control = bare = plain = None
        if self.measured or not templates.texts:
            control = bare = self.fine_tune(self.task.build(label_texts), "", "without a prefix", "no-prefix")
        if templates.texts:
            head = self.task.build(prefix.templated(label_texts, templates.texts))
            bare = self.fine_tune(head, "", "with templates", "templates")
            if control and self.splits.validation:
                templates = self.judge_templates(templates, control, bare)
                bare = bare if templates.texts else control
        assert bare is not None  # one of the two
        if self.trains_plainly:
            plain = self.fine_tune(
                self.task.build_plain(), "", "plainly" if self.online else "plainly (control)", "plain"
            )
        if plain and self.online and not self.clearly_better(bare, plain):
            self.observer.note("on validation rows label texts are not clearly better as a start than a random head")
            bare = plain
        contestants = [bare, *self.with_prefixes(label_texts, templates, searched)]
        return Controls(control, plain), templates, contestants

    @property
    def measured(self) -> bool:
        """Whether there are rows besides those of the training."""
        return bool(self.splits.validation or self.splits.test)

    @property
    def trains_plainly(self) -> bool:
        """Whether there is a training with a random head besides: where all heads are random it is the same."""
        return self.measured and self.config.finish.plain_control and self.task.uses_label_texts

    def clearly_better(self, ours: Trained, theirs: Trained) -> bool:
        """Whether the loss on the validation rows is lower by more than its standard error."""
        losses = [self.measure(trained, "validation")[0].losses for trained in (theirs, ours)]
        gain, standard_error = paired_mean(losses[0] - losses[1])
        return gain > standard_error

    @property
    def most_templates(self) -> int:
        """How many prefixes may go before the label texts. Online θ has left its head's start behind when they are
        known."""
        return 0 if self.online or not self.task.uses_label_texts else self.config.finish.templates

    def best_prefixes(self) -> list[str]:
        """Those with the highest gains of those that ran longest in their races, for templates."""
        ranked = sorted(self.history.scored(), key=lambda s: (s.rows, s.gain), reverse=True)
        return [s.text for s in ranked[: self.most_templates]]

    def judge_templates(self, templates: Templates, without: Trained, with_them: Trained) -> Templates:
        """The templates with their gain on the validation rows; none of them, where that is clearly below 0."""
        losses = [self.measure(trained, "validation")[0].losses for trained in (without, with_them)]
        gain, standard_error = paired_mean(losses[0] - losses[1])
        if gain >= -standard_error:
            return Templates(templates.texts, gain, standard_error)
        self.observer.note(
            f"no templates: the best {len(templates.texts)} prefixes before the label texts raise the loss of the "
            f"validation rows, by {-gain:.3f} ± {standard_error:.3f} nats"
        )
        return Templates((), gain, standard_error)

    def with_prefixes(
        self, label_texts: Sequence[dict[str, str]], templates: Templates, searched: Trained
    ) -> list[Trained]:
        """Models with a prefix in front. Online, θ is there already and its prefixes compete, no prefix too. In
        low-resource runs each finalist gets a fine-tuning of its own."""
        if self.online:
            texts = dict.fromkeys([searched.prefix, *self.finalists(), ""])
            return [replace(searched, prefix=text) for text in texts]
        head = prefix.templated(label_texts, templates.texts)
        return [
            self.fine_tune(self.task.build(head), text, f'with "{text}"', f"finalist-{hex_digest(text.encode())[:8]}")
            for text in self.finalists()
        ]

    def finalists(self) -> list[str]:
        """The prefixes with the best lower bounds above 0, of those whose gains compare: measured on
        the most rows and, online, at the latest θ. Where validation rows will tell them apart, one
        standard error is enough to be among them; otherwise the best must be clear by itself."""
        scored = [s for s in (self.latest if self.online else self.history.scored()) if s.text]
        margin = 1.0 if self.splits.validation else prefix.margin(len(scored))
        size = self.config.finish.finalists if self.splits.validation else 1
        most = max((s.rows for s in scored), default=0)
        ranked = sorted((s for s in scored if s.rows == most), key=lambda s: s.bound(margin), reverse=True)
        return [s.text for s in ranked[:size] if s.bound(margin) > 0]

    def select(self, contestants: Sequence[Trained]) -> Selection:
        """Choose on the validation rows; without any, by the cross-validated gains of the search."""
        if self.splits.validation:
            results = [self.measure(contestant, "validation")[0] for contestant in contestants]
            gains = [
                ScoredPrefix(
                    c.prefix, *paired_mean(results[0].losses - r.losses), float(r.losses.mean()), len(r.losses)
                )
                for c, r in zip(contestants[1:], results[1:], strict=True)
            ]
            rows = "validation"
        else:
            known = {scored.text: scored for scored in self.history.scored()}
            gains = [known.get(c.prefix, ScoredPrefix(c.prefix, 0.0, 0.0, 0.0, 0)) for c in contestants[1:]]
            rows = "training, cross-validated"
        none = ScoredPrefix(
            "", 0.0, 0.0, gains[0].loss + gains[0].gain if gains else 0.0, gains[0].rows if gains else 0
        )
        tried = len(gains) if self.splits.validation else len(self.history.scored())
        selection = Selection(
            rows, (none, *gains), tuple(c.name for c in contestants), prefix.best([none, *gains], tried)
        )
        self.observer.selection(selection)
        return selection

    def evaluate(self, product: Trained, controls: Controls) -> dict[str, Any]:
        """The product and its controls, once, on the test rows."""
        split = "test" if self.splits.test else "validation" if self.splits.validation else ""
        candidates = {"gpta": product, "no_prefix": controls.no_prefix, "plain": controls.plain} if split else {}
        arms = {name: trained for name, trained in candidates.items() if trained is not None}
        models = list(dict.fromkeys(arms.values()))  # the product can be its own control
        self.observer.stage("evaluating", len(models))
        measured = {}
        for trained in models:
            (result, seconds), (of_fitted, more) = self.measure(trained, split), self.measure(trained, "fitted")
            measured[trained] = result, of_fitted, seconds + more
            self.observer.advance()
        results = {name: measured[trained][0] for name, trained in arms.items()}
        return {
            "product_is_plain": product is controls.plain,
            "evaluated_on": split,
            "arms": {
                name: summary.arm(*measured[trained], trained.prefix, trained.seconds) for name, trained in arms.items()
            },
            "differences": {
                name: summary.difference(results["gpta"], results[name])
                for name in results
                if arms[name] is not arms["gpta"]
            },
            "cost": self.history.cost(),
        }

    def measure(self, trained: Trained, split: str) -> tuple[Evaluation, float]:
        """The results of a trained model and its prefix, row by row, and the seconds that took.

        Args:
            split: `test`, `validation`, or `fitted`: some rows of the training.
        """
        slot = f"{split}-{trained.slot}-{hex_digest(trained.prefix.encode())[:8]}"
        if (known := self.checkpoints.newest(slot)) is None:
            rows = fitted_rows(self.splits.train) if split == "fitted" else getattr(self.splits, split)
            started = time.monotonic()
            found = self.task.evaluate(trained.model, rows, trained.prefix)
            seconds = time.monotonic() - started
            tensors = {"scores": torch.from_numpy(found.scores), "losses": torch.from_numpy(found.losses)}
            self.checkpoints.write(slot, 0, tensors, {"summary": found.summary, "seconds": seconds})
            return found, seconds
        scores, losses = (known.tensors[name].numpy() for name in ("scores", "losses"))
        return Evaluation(scores, losses, known.state["summary"]), known.state["seconds"]

    def fine_tune(self, model: DownstreamModel, text: str, name: str, slot: str) -> Trained:
        """All steps with one prefix."""
        training = self.training(model, slot)
        self.take_steps(training, text, training.steps, f"training {name}", slot)
        return Trained(model, text, training.seconds, slot)

    def training(self, model: DownstreamModel, slot: str) -> Training:
        """A training that goes on from its newest checkpoint, if there is one in its slot."""
        training = open_training(self.config, self.splits, model)
        if checkpoint := self.checkpoints.newest(slot):
            training.load(checkpoint)
        return training

    def take_steps(self, training: Training, text: str, until: int, title: str, slot: str, first: int = 0) -> float:
        """Train up to the step `until`, with checkpoints; put the losses from step `first` on into
        `metrics.jsonl`, and return their mean."""

        def on_step(_: float) -> None:
            self.observer.advance()
            ended = training.done == training.steps
            if ended or self.checkpoints.due or self.interrupt.asked:
                state = training.state()
                self.checkpoints.write(slot, training.done, state.tensors, state.state, kept=1 if ended else KEPT)
                self.history.add_seconds(self.elapsed())
            if self.interrupt.asked:
                raise KeyboardInterrupt

        if left := max(0, until - training.done):
            self.observer.stage(title, left)
            with self.interrupt.held():
                training.run(text, left, on_step)
        losses = training.losses[first:until]
        if title not in self.metrics:
            self.metrics.add(title)
            line = {"title": title, "prefix": text, "losses": [round(loss, 6) for loss in losses]}
            with (self.folder / run_folder.METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return sum(losses) / len(losses)

    # ── the assistant and the run directory ─────────────────────────────────────────────────────

    def sampling(self, round_number: int, request: Request) -> Sampling:
        assistant = self.config.assistant
        room = assistant.max_new_tokens or reply_room(request, self.card)
        return Sampling(assistant.temperature, assistant.top_p, room, seed=self.config.seed * 1000 + round_number)

    def ask(self, round_number: int, request: Request, n: int, adapter: Path | None) -> tuple[int, list[Completion]]:
        """Scan the request, record it, then send it and record what comes back; return its number in the
        history and the completions.

        Raises:
            PrivacyError: private words or personal data are in it; it is neither recorded nor sent.
        """
        self.leak_scan.check(request)
        sampling = self.sampling(round_number, request)
        sampling = replace(sampling, temperature=sampling.temperature * sampling_temperature(adapter))
        name = adapter.name if adapter else ""
        recorded = self.history.asked(round_number, name, after=self.last_asked)
        if recorded is None:
            asking = self.history.add_request(round_number, request, sampling, name)
        elif recorded.is_for(request, n, sampling):
            asking = recorded.number
        else:
            raise self.other_version(f"in round {round_number} the run had asked something else")
        self.last_asked = asking
        if asking not in self.audit.requests:
            self.audit.asked(asking, round_number, request, n, sampling, adapter)
        completions = recorded.completions if recorded else []
        if not completions:
            completions = self.assistant.complete(request, n, sampling)
            self.history.add_completions(asking, completions)
            self.history.add_seconds(self.elapsed())
        if asking not in self.audit.answered_requests:
            self.audit.answered(asking, completions)
        self.observer.advance()
        return asking, completions

    def elapsed(self) -> float:
        """Seconds since the run began, pauses left out."""
        return self.seconds_before + time.monotonic() - self.started

    def room(self) -> int:
        """Bytes of weights that a run has on the disk before its end."""
        contestants = 2 + (1 if self.online else 1 + self.config.finish.finalists)
        return (1 + contestants) * self.weights

    @contextmanager
    def opened(self, folder: Path) -> Iterator[None]:
        """Begin a run in the folder, or go on with the one that was stopped there.

        Raises:
            InputError: that run was purged, is of another version, or its files were changed.
        """
        self.folder, self.started = folder, time.monotonic()
        if not (folder / run_folder.CONFIG).is_file():
            write_whole(folder / run_folder.CONFIG, dump(self.config))
        self.history = History(folder / run_folder.HISTORY)
        if self.history.run() is None:
            self.history.add_run(self.card, self.regime)
        if self.history.written_by()[1] != FORMAT:
            raise self.other_version("the run is of another format")
        if purged := self.history.purged():
            raise InputError(f"the texts of this run were purged ({purged})", where=str(folder), fix="Begin a new run")
        self.seconds_before = self.history.seconds()
        self.audit = Audit(folder / LOG)
        self.checkpoints = Checkpoints(
            folder / run_folder.CHECKPOINTS, self.config.training.checkpoint_seconds, self.observer.warn
        )
        self.tuner.folder = folder / "adapters"
        with closing(self.history), closing(self.audit):
            if self.audit.last_event != "finished":
                self.go_on()
            yield

    def go_on(self) -> None:
        """Make sure that the run goes on from where it was stopped; begin the log of a new one."""
        for package in self.audit.start(self.config, self.history.unanswered()):
            self.observer.warn(f"{package} is of another version than when the run began: results can differ in digits")
        self.metrics = run_folder.whole_metrics(self.folder)
        self.tuner.resume(self.history.steps())
        if isinstance(self.assistant, ReplayAssistant):
            self.assistant.skip(self.history)
        if requests := self.history.requests():
            self.observer.note(f"going on with the run: {len(requests)} requests, {len(self.history.rounds())} rounds")

    def other_version(self, what: str) -> InputError:
        version, _ = self.history.written_by()
        begun = f"gpta-local {version}" if version else "an earlier gpta-local that could not resume"
        fix = f"It was begun by {begun}, this is {__version__}: resume it with that one, or begin a new run"
        return InputError(what, where=str(self.folder), fix=fix)

    def write(self, product: Trained, result: dict[str, Any]) -> None:
        """The product first, the summary after it: a run with a summary is whole."""
        run_folder.clear_product(self.folder)
        export.write_product(self.folder / "model", product.model, product.prefix, self.task, self.config.data)
        if steps := self.history.steps():
            plot_dialogue_gradient(self.history.proposal_figures(), [step for _, step, _ in steps], self.folder)
        self.audit.wrote(self.folder / "model")
        write_whole(self.folder / run_folder.DRAFT, as_json_text(result))
        self.audit.finish(result, history_digest(self.history))
        result |= self.sum_up()

    def sum_up(self) -> dict[str, Any]:
        """Leave nothing that is not for the user and, now that the log has its end, write the summary."""
        self.checkpoints.clear()
        draft = self.folder / run_folder.DRAFT
        result: dict[str, Any] = json.loads(draft.read_text(encoding="utf-8")) | {HEAD: self.audit.head}
        write_whole(draft, as_json_text(result))
        draft.replace(self.folder / run_folder.SUMMARY)
        flush(self.folder)
        return result


def fitted_rows(train: Sequence[Example]) -> Sequence[Example]:
    """Training rows that a trained model is measured on, evenly spread: `FITTED_ROWS` at most."""
    return train[:: -(-len(train) // FITTED_ROWS)]


def open_training(config: Config, splits: Splits, model: DownstreamModel, times: int = 1) -> Training:
    """A model's fine-tuning on the training rows as the configuration says, or with so many times the steps. Label
    texts go along in a low-resource search only."""
    label_texts = label_texts_go_along(config, splits)
    return Training(model, splits.train, config.training, seed=config.seed, label_texts=label_texts, times=times)


def label_texts_go_along(config: Config, splits: Splits) -> bool:
    return config.training.label_text_loss and regime_of(config, splits) == "low-resource"


def regime_of(config: Config, splits: Splits) -> Regime:
    auto: Regime = "online" if splits.many else "low-resource"
    return auto if config.search.regime == "auto" else config.search.regime


def as_json_text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"
