"""The dialogue gradient on example texts, after the rounds: the assistant learns from those that were kept, and is
asked for as many again.

Each step trains an adapter from where the run began, on all texts so far. One judge, which was trained on what was kept
of the first asking, says what is taught and whether the adapter is better; what becomes of the texts is judged later.
What is on record is not done again. Knows askings, verdicts and adapters; neither rows nor how a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpta_local.dialogue_gradient.dialogues import example_text_dialogues
from gpta_local.run.judging import LEAST_AGREEMENT, Judges
from gpta_local.run.search import Search
from gpta_local.schema import ExampleText, ProposalFigures

GOES_ON = ("", "budget.trials")
"""Why a search may have ended where more example texts are asked for."""


class TextSteps:
    def __init__(self, search: Search, judges: Judges) -> None:
        self.search, self.judges = search, judges
        self.plan, self.journal, self.observer = search.plan, search.journal, search.observer

    def grown(self, texts: list[ExampleText]) -> list[ExampleText]:
        """The texts of the first asking, and those of an assistant that has learnt from them, whatever the verdict on
        it. It learns only where they could not be used as they are: an assistant whose texts mostly have their label
        writes more of the obvious afterwards (docs/LOG.md)."""
        made_up = any(not text.own for text in texts)
        if not made_up or not self.plan.text_steps or self.journal.ended_by() not in GOES_ON:
            return texts
        first = self.judges.by_control(texts)
        if first.agreement(len(self.plan.card.labels)) >= LEAST_AGREEMENT:
            self.observer.note(
                f"example texts are not taught: a model of the rows labels {len(first.kept)} of {len(texts)} as was "
                "asked for, so they are trained on as they are"
            )
            return texts
        judge = self.judges.second(first).model
        judged = self.plan.task.judged(judge, texts)
        start = self.search.adapters.start("example-texts")
        best = self.figures(0, start.name if start else "", judged)
        if not self.journal.askings():
            self.journal.add_asking(0, [best])
        rounds = self.plan.config.search.rounds
        for number in range(rounds + 1, rounds + 1 + self.plan.text_steps):
            adapter = self.adapter(number, judged)
            if adapter is None:
                break
            found = self.search.made_up(number, adapter)
            if found is None:
                self.journal.add_asking(number, [], (adapter.name, "saved only"))
                break
            of_step = self.plan.task.judged(judge, found) if found else []
            best = self.better(number, best, self.figures(number, adapter.name, of_step))
            texts, judged = [*texts, *found], [*judged, *of_step]
        return texts

    def adapter(self, number: int, judged: Sequence[ExampleText]) -> Path | None:
        """The adapter that a step has trained, or trains now. None: it does not answer, or there is none."""
        for known, step, verdict in self.journal.steps():
            if known == number:
                return None if verdict == "saved only" else self.search.adapters.folder / step.adapter
        config = self.plan.config.dialogue_gradient
        if config is None or self.journal.example_texts_are_final or self.budget_reached(number):
            return None
        find = self.search.leak_scan.find
        dialogues = example_text_dialogues(
            self.plan.card,
            [text for text in judged if not find(text.text)],
            per_label=config.dialogues_per_winner,
            seed=self.plan.config.seed,
        )
        learnt = self.search.learn(number, "example-texts", dialogues, config)
        return self.search.adapters.trial if learnt else None

    def better(self, number: int, best: ProposalFigures, after: ProposalFigures) -> ProposalFigures:
        """The figures that the next step has to reach: those of the adapter on trial, if it is kept."""
        verdict = next(verdict for known, _, verdict in self.journal.steps() if known == number)
        if verdict == "on trial":
            verdict = self.search.adapters.judge((best, after))
            self.journal.add_asking(number, [after], (after.adapter, verdict))
            self.observer.texts_judged(best, after, verdict)
        return after if verdict == "kept" else best

    def figures(self, number: int, adapter: str, judged: Sequence[ExampleText]) -> ProposalFigures:
        made_up = [text for text in judged if not text.own]
        kept = sum(bool(text.kept) for text in made_up)
        return ProposalFigures(adapter, self.search.lines_asked(number), len(made_up), kept, None)

    def budget_reached(self, number: int) -> bool:
        name = self.search.reached(number)
        if name in ("", "trials"):
            name = "" if self.search.lines_asked(number) else "calls"
        if name:
            self.observer.warn(f"budget.{name} is reached: no more example texts are asked for")
        return bool(name)
