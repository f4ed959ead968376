"""The search: label texts first, then rounds in which the assistant proposes prefixes, they are scored and one is
chosen; and between rounds the dialogue gradient.

Every request of a run goes through `Search.ask`. What is on record is neither asked nor scored again. Knows the history
and what to do with proposals; not rows, which are numbers here, nor how a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpta_local.assistant import Assistant
from gpta_local.assistant.prompts import (
    TEXTS_OF_A_REPLY,
    example_texts_request,
    label_texts_request,
    parts_of,
    prefix_request,
)
from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue, build_dialogues
from gpta_local.dialogue_gradient.train import number_of_steps, sampling_temperature
from gpta_local.dialogue_gradient.trial import AdapterTrials
from gpta_local.downstream.model import DownstreamModel
from gpta_local.errors import AdapterRefused, EndpointError, ModelError, ReplayExhausted, TrainingError
from gpta_local.knowledge import prefixes
from gpta_local.knowledge.example_texts import ExampleTextReader
from gpta_local.knowledge.label_texts import joined, read_label_text_sets
from gpta_local.knowledge.unusable import Judged
from gpta_local.knowledge.unusable import why as why_unusable
from gpta_local.observer import Observer
from gpta_local.privacy.leak_scan import LeakScan
from gpta_local.record.folder import ADAPTERS_FOLDER
from gpta_local.record.history import Outcome
from gpta_local.record.journal import Journal
from gpta_local.run.plan import Plan
from gpta_local.schema import (
    Ask,
    Completion,
    DatasetCard,
    ExampleText,
    ProposalFigures,
    Request,
    RequestKind,
    Round,
    ScoredPrefix,
    StepVerdict,
)


@dataclass(frozen=True, slots=True)
class Proposals:
    """What the assistant proposed in a round: new prefixes, counts by what became of the completions,
    the name of each adapter with the new prefixes of each of its completions, the best prefix that it was shown, and
    whether the server had lost the adapters, so that the base model answered."""

    prefixes: list[str]
    counts: dict[str, int]
    found: list[tuple[str, list[list[str]]]]
    best_shown: ScoredPrefix | None
    base_only: bool


class Search:
    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        observer: Observer,
        assistant: Assistant,
        adapters: AdapterTrials,
        leak_scan: LeakScan,
    ) -> None:
        self.plan, self.journal, self.observer = plan, journal, observer
        self.config = plan.config
        self.assistant, self.adapters, self.leak_scan = assistant, adapters, leak_scan
        self.hinted: set[str] = set()
        self.reader = ExampleTextReader(plan.card, plan.own_example_texts)
        adapters.folder = journal.folder / ADAPTERS_FOLDER
        adapters.resume(journal.steps())
        if isinstance(assistant, ReplayAssistant):
            assistant.skip(journal)

    def choose_label_texts(self) -> list[dict[str, str]]:
        """Ask the assistant for label texts, and keep those that start the model better than the card's
        own texts do alone."""
        if (known := self.journal.label_texts()) is not None:
            return known
        task, parts, n = self.plan.task, self.plan.label_text_parts, self.plan.label_text_samples
        asked, sets = n * len(parts), list[dict[str, str]]()
        if asked:
            self.observer.stage("asking for label texts", 1)
            start = self.adapters.start("label-texts")
            try:
                self.assistant.use_adapter(start)
                answered = self.ask_all(0, [*map(label_texts_request, parts)], n, start)
            except (AdapterRefused, EndpointError, ModelError) as exc:
                self.observer.advance()
                self.observer.warn(f"no label texts: {exc}. The head starts from the card's own")
                asked = 0
            else:
                sets = self.read_label_texts(parts, answered)
        chosen, scored = task.choose_label_texts(sets, self.config.search.scoring_rows)
        self.journal.add_label_texts(scored, chosen)
        added = len(chosen) - len(task.own_label_texts())
        self.observer.label_texts(chosen, added, len(sets), asked)
        return chosen

    def read_label_texts(
        self, parts: Sequence[DatasetCard], answered: Sequence[tuple[int, list[Completion]]]
    ) -> list[dict[str, str]]:
        """The usable sets, from the replies to the requests for each part of the labels."""
        sets, received, verdicts = list[list[dict[str, str]]](), list[Completion](), list[Outcome]()
        for part, (number, completions) in zip(parts, answered, strict=True):
            of_part, outcomes = read_label_text_sets(completions, part, self.leak_scan.find_personal)
            self.journal.judge_completions(number, outcomes)
            sets.append(of_part)
            received += completions
            verdicts += outcomes
        self.explain("label texts", received, verdicts)
        return joined(sets, self.plan.task.own_label_texts()[-1])

    def example_texts(self) -> list[ExampleText]:
        """Texts for each label: those of the user, then those that the assistant makes up."""
        texts = [*self.plan.own_example_texts, *(self.made_up(0, self.adapters.start("example-texts")) or [])]
        if texts and (missing := sorted({*self.plan.card.label_names} - {text.label for text in texts})):
            self.observer.warn(f"no example texts: none for the label {missing[0]!r} can be used")
            return []
        return texts

    def made_up(self, number: int, adapter: Path | None) -> list[ExampleText] | None:
        """Texts that the assistant makes up for each label, cleaned; in the order of the labels. They differ from those
        of the user and of the askings before. None: it was not asked, or does not answer.

        Args:
            number: of the asking; 0 for the first, then above those of all rounds.
        """
        card, lines = self.plan.card, self.lines_asked(number)
        failed_before = not number and self.journal.gone_on(0) and not self.journal.completions("example-texts")
        if not lines or failed_before:
            return None
        self.observer.stage("asking for example texts", 1)
        requests = [example_texts_request(part, label) for part in parts_of(card) for label in part.labels]
        try:
            if not number or adapter == self.adapters.trial:  # others have answered before
                self.assistant.use_adapter(adapter)
            answered = self.ask_all(number, requests, lines // TEXTS_OF_A_REPLY // len(card.labels), adapter)
        except (AdapterRefused, EndpointError, ModelError, ReplayExhausted) as exc:
            self.observer.advance()
            self.observer.warn(f"no{' further' if number else ''} example texts: {exc}")
            return None
        texts, received, verdicts = list[ExampleText](), list[Completion](), list[Outcome]()
        for label, (asking, completions) in zip(card.labels, answered, strict=True):
            found, outcomes = self.reader.read(completions, label.name)
            self.journal.judge_completions(asking, outcomes)
            texts += found[: self.plan.example_texts]
            received += completions
            verdicts += outcomes
        self.explain("example texts", received, verdicts)
        self.observer.example_texts(texts, lines)
        return texts

    def lines_asked(self, number: int) -> int:
        """How many example texts of all labels are asked for at once: whole replies, for each label alike."""
        labels, wanted = len(self.plan.card.labels), self.plan.example_texts
        spent = 0 if number else len(self.journal.completions("label-texts"))
        most = labels * -(-wanted // TEXTS_OF_A_REPLY)
        replies = max(0, self.affordable("calls", number, spent + most) - spent) // labels
        return replies * TEXTS_OF_A_REPLY * labels

    def round(self, number: int, model: DownstreamModel, current: str) -> Round | None:
        """One round, on record when this returns; at the current θ. None: the search has ended before it."""
        if known := self.journal.round(number):
            return known
        if self.journal.ended_by() or self.budget_reached(number):
            return None
        started = self.journal.elapsed()
        try:
            proposals = self.propose(number, model)
        except EndpointError as exc:
            self.end(number, exc)
            return None
        scored = self.score(number, model, current, proposals)
        figures, verdict = self.judge(proposals, scored)
        chosen = prefixes.choose(scored, current)
        seconds = self.journal.elapsed() - started
        entry = Round(number, proposals.counts, figures, tuple(scored), chosen, None, seconds=seconds)
        self.journal.add_round(entry, verdict, base_only=proposals.base_only)
        if not self.plan.online:
            self.observer.round(entry)
        return entry

    def propose(self, number: int, model: DownstreamModel) -> Proposals:
        """Ask for prefixes, showing a part of the history; clean what comes back. An adapter on trial
        gives half of them."""
        search = self.config.search
        known = self.journal.scored()
        shown = prefixes.shown_history(known, search.history_shown, f"{self.config.seed}-{number}")
        request = prefix_request(self.plan.card, shown)
        self.observer.stage(f"round {number}: asking for prefixes", 1 + (self.adapters.trial is not None))
        proposals = self.affordable("trials", number, self.affordable("calls", number, search.proposals))
        asked, base_only = [], False
        try:
            for folder, count in self.adapters.shares(proposals):
                self.assistant.use_adapter(folder)
                asked.append((folder.name if folder else "", *self.ask(number, request, count, folder)))
        except AdapterRefused as exc:  # after a new start of the server
            base_only = True
            self.adapters.go_back_to_base()
            self.observer.warn(f"round {number}: {exc}. From here on the base model answers")
            asked = [("", *self.ask(number, request, proposals, None))]
        # in turns, so that neither of two adapters is the first to say what both say
        turns = sorted(
            (place / len(reply), who) for who, (*_, reply) in enumerate(asked) for place in range(len(reply))
        )
        replies = [iter(reply) for *_, reply in asked]
        in_turns = [next(replies[who]) for _, who in turns]
        candidates = prefixes.clean(
            in_turns,
            [*(scored.text for scored in known), *self.own_prefixes(number)],
            embed=lambda texts: model.embed(texts).cpu().numpy(),
            read=self.plan.prefix_reader(model, self.leak_scan.find),
            fill=len(asked) == 1,  # two adapters are compared by what each says first
        )
        self.explain(f"round {number}", in_turns, candidates.verdicts)
        found = []
        for who, (adapter, asking, _) in enumerate(asked):
            own = [place for place, (_, turn) in enumerate(turns) if turn == who]
            self.journal.judge_completions(asking, [candidates.verdicts[place] for place in own])
            found.append((adapter, [candidates.found[place] for place in own]))
        # a gain on more rows stands firmer; where θ moves, the best runs again
        best_shown = max(shown, key=lambda s: (0 if self.plan.online else s.rows, s.gain), default=None)
        return Proposals(candidates.prefixes, candidates.counts, found, best_shown, base_only)

    def explain(self, what: str, completions: Sequence[Completion], verdicts: Sequence[Outcome]) -> None:
        """Say why, where most replies cannot be used; what may be wrong is said once."""
        judged = [Judged(*verdict, reply.finish_reason) for verdict, reply in zip(verdicts, completions, strict=True)]
        causes, hint = why_unusable(judged)
        if causes:
            self.observer.warn(f"{what}: {causes}" if hint in self.hinted else f"{what}: {causes}. {hint}")
            self.hinted.add(hint)

    def ask(self, round_number: int, request: Request, n: int, adapter: Path | None) -> tuple[int, list[Completion]]:
        """As `ask_all`, for one request."""
        return self.ask_all(round_number, [request], n, adapter)[0]

    def ask_all(
        self, round_number: int, requests: Sequence[Request], n: int, adapter: Path | None
    ) -> list[tuple[int, list[Completion]]]:
        """Scan the requests, record them, then send them and record what comes back; the number of each in the
        history, and its `n` completions.

        Raises:
            PrivacyError: private words or personal data are in one; none is recorded or sent.
        """
        asks = []
        for request in requests:
            self.leak_scan.check(request)
            sampling = self.plan.sampling(round_number, request)
            temperature = sampling.temperature * (sampling_temperature(adapter) if request.kind == "prefix" else 1.0)
            asks.append(Ask(request, n, replace(sampling, temperature=temperature)))
        answered = self.journal.exchange(round_number, asks, adapter, self.assistant.complete_all)
        self.observer.advance()
        kept = "replies are kept from an earlier asking (assistant.cache: false asks anew)"
        if kept not in self.hinted and any(reply.cached for _, replies in answered for reply in replies):
            self.hinted.add(kept)
            self.observer.note(kept)
        return answered

    def end(self, number: int, why: EndpointError) -> None:
        """Go on with the prefixes known so far, and say so; without any, there is nothing to go on with."""
        known = len(self.journal.scored())
        if not known:
            raise why
        reason = f"The assistant failed in round {number} of {self.config.search.rounds}: {why}"
        self.journal.end_search(reason)
        self.observer.warn(f"{reason}. The search ends here, with the {known} prefixes known so far")

    def score(self, number: int, model: DownstreamModel, current: str, proposals: Proposals) -> list[ScoredPrefix]:
        """Race the new prefixes at the current θ. Where θ moves, the current and the best known
        prefixes run again, on new rows: gains at different θ do not compare."""
        known: list[str] = []
        if self.plan.online:
            best_shown = [proposals.best_shown.text] if proposals.best_shown else []
            known = [current, *best_shown, *self.plan.finalists(self.journal.comparable(self.plan.regime))]
        runners = [text for text in dict.fromkeys([*known, *self.own_prefixes(number), *proposals.prefixes]) if text]
        self.observer.stage(f"round {number}: scoring prefixes", len(runners))
        return prefixes.race(
            runners,
            self.plan.task.scorer(model, self.plan.splits.train).losses,
            self.plan.scoring_rows(number),
            first_heat=self.plan.first_heat,
            kept=current,
            on_scored=self.observer.advance,
        )

    def judge(
        self, proposals: Proposals, scored: Sequence[ScoredPrefix]
    ) -> tuple[tuple[ProposalFigures, ...], tuple[str, StepVerdict] | None]:
        """The hit rate of each adapter that proposed; one on trial is kept or rolled back."""
        best = proposals.best_shown
        if best is not None and self.plan.online:
            best = next(s for s in scored if s.text == best.text)
        figures = tuple(prefixes.figures(name, found, scored, best) for name, found in proposals.found)
        if self.adapters.trial is None:
            return figures, None
        verdict = self.adapters.judge(figures)
        self.observer.judged(figures[0], figures[1], verdict)
        return figures, (figures[1].adapter, verdict)

    def teach(self, number: int) -> None:
        """The dialogue gradient: fine-tune the assistant on the history, and put the new adapter on
        trial for the next round."""
        config = self.config.dialogue_gradient
        if config is None or number % config.every or number == self.config.search.rounds:
            return
        if set(config.taught) == {"example-texts"} or self.journal.taught(number):
            return
        dialogues = build_dialogues(
            self.plan.card,
            self.journal.comparable_groups(self.plan.regime),
            self.journal.label_text_scores(),
            [],  # they have steps of their own, after the rounds
            config,
            shown=self.config.search.history_shown,
            seed=self.config.seed,
        )
        self.learn(number, "prefix", dialogues, config)

    def learn(
        self, number: int, kind: RequestKind, dialogues: Sequence[Dialogue], config: DialogueGradientConfig
    ) -> bool:
        """Train an adapter on dialogues and put it on trial; whether it answers.

        Args:
            number: of the round or asking that the step has on record.
            kind: of the requests that it is on trial with.
        """
        when = f"round {number}" if kind == "prefix" else "example texts"
        dialogues = [dialogue for dialogue in dialogues if not self.says_a_row(dialogue)]
        if not dialogues:
            self.observer.warn(f"{when}: nothing did better than something else; the assistant has nothing to learn")
            return False
        for dialogue in dialogues:
            self.leak_scan.check_dialogue(dialogue.request, dialogue.reply)
            if dialogue.rival:
                self.leak_scan.check(dialogue.rival)
        self.observer.stage(f"{when}: teaching the assistant", number_of_steps(config, len(dialogues)))
        try:
            step, refused = self.adapters.step(dialogues, kind, self.observer.advance)
        except (ModelError, TrainingError) as exc:  # the run goes on without what it would have learnt
            self.observer.warn(f"{when}: the assistant stays as it is: {exc}")
            return False
        self.journal.add_step(number, step, "saved only" if refused else "on trial")
        self.observer.taught(step, refused)
        return not refused

    def says_a_row(self, dialogue: Dialogue) -> bool:
        """Whether label texts or example texts happen to say words of a row: they are not taught. (Prefixes that do are
        not kept.)"""
        return dialogue.request.kind != "prefix" and any(map(self.leak_scan.find, dialogue.reply.splitlines()))

    def own_prefixes(self, number: int) -> list[str]:
        """Those of the user, where they have their turn."""
        return self.config.search.own_prefixes if number == 1 else []

    # ── budgets ─────────────────────────────────────────────────────────────────────────────────

    def affordable(self, limit: Literal["calls", "trials"], number: int, wanted: int) -> int:
        """As many as the budget has left before a round, if fewer than are wanted."""
        budget: int | None = getattr(self.config.budget, limit)
        return wanted if budget is None else max(0, min(wanted, budget - self.journal.spent(number)[limit]))

    def budget_reached(self, number: int) -> bool:
        """Whether a budget leaves no room for a round; a round that has begun has its room."""
        if self.journal.asked(number) is not None or not (name := self.reached(number)):
            return False
        limit = getattr(self.config.budget, name)
        self.observer.warn(f"budget.{name} ({limit:g}) is reached before round {number}: the search ends")
        self.journal.end_search(f"budget.{name}")
        return True

    def reached(self, number: int) -> str:
        """The first budget that leaves nothing before a round; "" for none."""
        spent = self.journal.spent(number) | {"seconds": self.journal.keep_time()}
        limits = self.config.budget.model_dump().items()
        return next((name for name, limit in limits if limit is not None and spent[name] >= limit), "")
