"""The outer loop: propose, score, choose, train; then finish. It composes, and decides nothing
that a module below it could decide. Progress goes to an `Observer`, results to the run directory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpta_local import export, prefix, summary
from gpta_local.assistant import open_assistant
from gpta_local.config import Config, dump
from gpta_local.data import Example
from gpta_local.dialogue_gradient import number_of_steps, sampling_temperature
from gpta_local.dialogues import build_dialogues
from gpta_local.downstream import DownstreamModel
from gpta_local.errors import TrainingError
from gpta_local.history import History, Verdict
from gpta_local.metrics import paired_mean
from gpta_local.observer import Observer
from gpta_local.plots import plot_dialogue_gradient
from gpta_local.privacy.audit import HEAD, LOG, Audit, history_digest
from gpta_local.privacy.files import owner_only
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
)
from gpta_local.summary import Selection
from gpta_local.tasks import open_task
from gpta_local.tasks.base import Evaluation
from gpta_local.training import Training, total_steps
from gpta_local.tuner import Tuner

FITTED_ROWS = 1000
"""Training rows at most on which a trained model is measured, for the gap to the test rows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after all its training steps, and the prefix it is used with."""

    model: DownstreamModel
    prefix: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Proposals:
    """What the assistant proposed in a round: new prefixes, counts by what became of the completions,
    the verdicts on those of each adapter, and the best prefix that it was shown."""

    prefixes: list[str]
    counts: dict[str, int]
    verdicts: dict[str, list[Verdict]]
    best_shown: ScoredPrefix | None


class Run:
    """One run of `gpta-local train`. Making it reads and checks the data, builds the untrained
    model and asks the assistant whether it can answer; nothing is written before `run`."""

    def __init__(self, config: Config, observer: Observer) -> None:
        self.config, self.observer = config, observer
        self.task = open_task(config)
        self.splits, self.card = self.task.splits(), self.task.card()
        for warning in self.splits.warnings:
            observer.warn(warning)
        self.leak_scan = scan_of(config, self.task.texts(), self.card)
        observer.note(f"leak scan: {self.leak_scan}")
        if weakness := weaker_than_default(config.privacy.leak_scan):
            observer.warn(weakness)
        self.steps = total_steps(config.training, len(self.splits.train))
        auto: Regime = "online" if self.splits.many else "low-resource"
        self.regime = auto if config.search.regime == "auto" else config.search.regime
        self.online = self.regime == "online"
        self.weights = sum(p.numel() * p.element_size() for p in self.task.build_plain().parameters())  # bytes
        self.latest: list[ScoredPrefix] = []  # of the latest race
        self.first_heat = max(prefix.FIRST_HEAT, 4 * len(self.card.labels))
        self.assistant = open_assistant(config.assistant)
        observer.note(f"assistant: {self.assistant.check()}")
        self.tuner = Tuner(self.assistant, config)
        if config.dialogue_gradient is not None and not self.assistant.takes_adapters:
            observer.warn(f"{self.assistant.adapters_refused}. Adapters are trained and saved, but do not answer")

    @owner_only()
    def run(self, folder: Path) -> dict[str, Any]:
        """Search, train, choose, evaluate once on test, export. Returns what `summary.json` holds."""
        self.open_folder(folder)
        started = time.monotonic()
        label_texts = self.propose_label_texts()
        model = self.task.build(label_texts)
        training = self.training(model) if self.online else None
        current, loss = "", None
        for number in range(1, self.config.search.rounds + 1):
            round_started = time.monotonic()
            proposals = self.propose(number, model)
            scored = self.score(number, model, current, proposals)
            figures = self.judge(proposals, scored)
            chosen = prefix.choose(scored, current)
            if training is not None:
                current, loss = chosen.text, self.train(training, chosen.text, number)
            seconds = time.monotonic() - round_started
            entry = Round(number, proposals.counts, figures, tuple(scored), chosen, loss, seconds)
            self.history.add_round(entry)
            self.observer.round(entry)
            self.teach(number, model)
        self.assistant.close()
        searched = Trained(model, current, time.monotonic() - started)
        contestants = self.contestants(label_texts, searched)
        selection = self.select(contestants)
        result = self.evaluate(contestants, selection, label_texts)
        result["seconds"] = {"search": searched.seconds, "total": time.monotonic() - started}
        self.write(contestants[selection.chosen], result)
        return result

    # ── search ──────────────────────────────────────────────────────────────────────────────────

    def propose_label_texts(self) -> list[dict[str, str]]:
        """Ask the assistant for label texts, and keep those that start the model better than the card's
        own texts do alone."""
        asked = self.config.search.label_text_samples if self.task.uses_label_texts else 0
        sets: list[dict[str, str]] = []
        if asked:
            self.observer.stage("asking for label texts", 1)
            request = label_texts_request(self.card)
            asking, completions = self.ask(0, request, asked, self.tuner.trusted)
            sets, verdicts = prefix.read_label_text_sets(completions, self.card.label_names, self.leak_scan.find)
            self.history.judge_completions(asking, verdicts)
        chosen, scored = self.task.choose_label_texts(sets, self.config.search.scoring_rows)
        self.history.add_label_text_scores(scored)
        joined = len(chosen) - len(self.task.own_label_texts())
        self.observer.label_texts(chosen, joined, len(sets), asked)
        return chosen

    def propose(self, number: int, model: DownstreamModel) -> Proposals:
        """Ask for prefixes, showing a part of the history; clean what comes back. An adapter on trial
        gives half of them."""
        search = self.config.search
        known = self.history.scored()
        shown = prefix.shown_history(known, search.history_shown, f"{self.config.seed}-{number}")
        request = prefix_request(self.card, shown)
        self.observer.stage(f"round {number}: asking for prefixes", 1 + (self.tuner.trial is not None))
        asked = []
        for folder, count in self.tuner.shares(search.proposals):
            self.assistant.use_adapter(folder)
            asked.append((folder.name if folder else "", *self.ask(number, request, count, folder)))
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
        return Proposals(
            candidates.prefixes, candidates.counts, verdicts, max(shown, key=lambda s: s.gain, default=None)
        )

    def score(self, number: int, model: DownstreamModel, current: str, proposals: Proposals) -> list[ScoredPrefix]:
        """Race the new prefixes at the current θ. Where θ moves, the current and the best known
        prefixes run again, on new rows: gains at different θ do not compare."""
        best_shown = [proposals.best_shown.text] if proposals.best_shown else []
        known = [current, *best_shown, *self.finalists()] if self.online else []
        runners = [text for text in dict.fromkeys([*known, *proposals.prefixes]) if text]
        self.observer.stage(f"round {number}: scoring prefixes", len(runners))
        self.latest = prefix.race(
            runners,
            self.task.scorer(model, self.splits.train).losses,
            self.rows(number),
            first_heat=self.first_heat,
            kept=current,
            on_scored=self.observer.advance,
        )
        return self.latest

    def rows(self, number: int) -> list[int]:
        """The scoring rows of a round: the same in all rounds unless θ moves."""
        seed = self.config.seed + (number if self.online else 0)
        return self.task.scoring_rows(self.splits.train, self.config.search.scoring_rows, seed)

    def judge(self, proposals: Proposals, scored: Sequence[ScoredPrefix]) -> tuple[ProposalFigures, ...]:
        """The hit rate of each adapter that proposed; one on trial is kept or rolled back."""
        best = proposals.best_shown
        if best is not None and self.online:
            best = next(s for s in scored if s.text == best.text)
        figures = tuple(prefix.figures(name, verdicts, scored, best) for name, verdicts in proposals.verdicts.items())
        if self.tuner.trial is not None:
            verdict = self.tuner.judge(figures)
            self.history.judge_step(figures[1].adapter, verdict)
            self.observer.judged(figures[0], figures[1], verdict)
        return figures

    def teach(self, number: int, model: DownstreamModel) -> None:
        """The dialogue gradient: fine-tune the assistant on the history, and put the new adapter on
        trial for the next round."""
        config = self.config.dialogue_gradient
        if config is None or number % config.every or number == self.config.search.rounds:
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
            step, refused = self.tuner.step(dialogues, reward, self.observer.advance)
        except TrainingError as exc:  # the search goes on without what it would have learnt
            self.observer.warn(f"round {number}: the assistant stays as it is: {exc}")
            return
        self.audit.wrote(self.tuner.folder / step.adapter)
        self.history.add_step(number, step, "saved only" if refused else "on trial")
        if not self.online:  # where θ has moved since, what was found does not compare with the round's scores
            self.history.add_scores(number, reward.found)
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

    def train(self, training: Training, text: str, number: int) -> float | None:
        """This round's share of the steps, which is none where there are more rounds than steps; the
        last round takes what is left."""
        rounds = self.config.search.rounds
        steps = self.steps * number // rounds - self.steps * (number - 1) // rounds
        return self.take_steps(training, text, steps, f"round {number}: training") if steps else None

    # ── finish ──────────────────────────────────────────────────────────────────────────────────

    def contestants(self, label_texts: Sequence[dict[str, str]], searched: Trained) -> list[Trained]:
        """Trained models to choose from; the first is the control, trained without a prefix.

        Online, θ is there already and its prefixes compete. In low-resource runs each finalist
        gets a fine-tuning of its own.
        """
        control = self.fine_tune(self.task.build(label_texts), "", "without a prefix")
        if self.online:
            texts = dict.fromkeys([searched.prefix, *self.finalists(), ""])
            return [control, *(Trained(searched.model, text, searched.seconds) for text in texts)]
        return [
            control,
            *(self.fine_tune(self.task.build(label_texts), text, f'with "{text}"') for text in self.finalists()),
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
            results = [self.task.evaluate(c.model, self.splits.validation, c.prefix) for c in contestants]
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
        selection = Selection(rows, (none, *gains), prefix.best([none, *gains], tried))
        self.observer.selection(selection)
        return selection

    def evaluate(
        self, contestants: Sequence[Trained], selection: Selection, label_texts: Sequence[dict[str, str]]
    ) -> dict[str, Any]:
        """The product and its controls, once, on the test rows."""
        split = "test" if self.splits.test else "validation" if self.splits.validation else ""
        rows = self.splits.test or self.splits.validation
        arms = {"gpta": contestants[selection.chosen], "no_prefix": contestants[0]}
        if rows and self.config.finish.plain_control and self.task.uses_label_texts:
            arms["plain"] = self.fine_tune(self.task.build_plain(), "", "plainly (control)")
        models = list(dict.fromkeys(arms.values()) if rows else ())  # the product can be its own control
        self.observer.stage("evaluating", len(models))
        measured = {}
        for trained in models:
            measured[trained] = self.measure(trained, rows)
            self.observer.advance()
        results = {name: measured[trained][0] for name, trained in arms.items() if rows}
        return {
            **summary.describe_run(self.card, self.regime, label_texts, selection),
            "evaluated_on": split,
            "arms": {
                name: summary.arm(*measured[trained], trained.prefix, trained.seconds)
                for name, trained in arms.items()
                if rows
            },
            "differences": {
                name: summary.difference(results["gpta"], results[name])
                for name in results
                if arms[name] is not arms["gpta"]
            },
            "cost": self.history.cost(),
        }

    def measure(self, trained: Trained, rows: Sequence[Example]) -> tuple[Evaluation, Evaluation, float]:
        """On `rows`, on training rows, and the seconds that took."""
        started = time.monotonic()
        fitted = self.splits.train[:: -(-len(self.splits.train) // FITTED_ROWS)]
        results = [self.task.evaluate(trained.model, examples, trained.prefix) for examples in (rows, fitted)]
        return results[0], results[1], time.monotonic() - started

    def fine_tune(self, model: DownstreamModel, text: str, name: str) -> Trained:
        """All steps with one prefix."""
        started = time.monotonic()
        self.take_steps(self.training(model), text, self.steps, f"training {name}")
        return Trained(model, text, time.monotonic() - started)

    def training(self, model: DownstreamModel) -> Training:
        return Training(model, self.splits.train, self.config.training, steps=self.steps, seed=self.config.seed)

    def take_steps(self, training: Training, text: str, steps: int, title: str) -> float:
        """Train, and append the loss of each step to `metrics.jsonl`; return the mean loss."""
        losses: list[float] = []

        def on_step(loss: float) -> None:
            losses.append(round(loss, 6))
            self.observer.advance()

        self.observer.stage(title, steps)
        mean = training.run(text, steps, on_step)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"title": title, "prefix": text, "losses": losses}, ensure_ascii=False) + "\n")
        return mean

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
        asking = self.history.add_request(round_number, request, sampling, adapter.name if adapter else "")
        self.audit.asked(asking, round_number, request, n, sampling, adapter)
        completions = self.assistant.complete(request, n, sampling)
        self.history.add_completions(asking, completions)
        self.audit.answered(asking, completions)
        self.observer.advance()
        return asking, completions

    def open_folder(self, folder: Path) -> None:
        export.make_folder(folder, self.weights)
        (folder / "config.yaml").write_text(dump(self.config), encoding="utf-8")
        self.folder, self.history = folder, History(folder / "history.sqlite")
        self.history.add_run(self.card, self.regime)
        self.tuner.folder = folder / "adapters"
        self.audit = Audit(folder / LOG)
        self.audit.start(self.config)

    def write(self, product: Trained, result: dict[str, Any]) -> None:
        """The product first, the summary after it: a run with a summary is whole."""
        export.write_product(self.folder / "model", product.model, product.prefix, self.task, self.config.data)
        if steps := self.history.steps():
            plot_dialogue_gradient(self.history.proposal_figures(), [step for _, step, _ in steps], self.folder)
        self.audit.wrote(self.folder / "model")
        result[HEAD] = self.audit.finish(result, history_digest(self.history))
        self.history.close()
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "summary.json").write_text(text, encoding="utf-8")
