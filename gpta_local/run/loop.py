"""The outer loop: propose, score, choose, train; then finish. It composes, and decides nothing
that a module below it could decide. Progress goes to an `Observer`, results to the run directory.

A run that was stopped, at whatever moment, goes through the same loop again. What is on record is not
done twice: each of the steps that ask, score, teach, train and measure looks there first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpta_local.assistant import open_assistant
from gpta_local.config import Config
from gpta_local.data.facts import facts
from gpta_local.dialogue_gradient.plots import plot_dialogue_gradient
from gpta_local.dialogue_gradient.trial import AdapterTrials
from gpta_local.downstream.product import library_of, write_product
from gpta_local.downstream.team import Team
from gpta_local.downstream.tokenization import PrefixTokenizer, unfit_texts
from gpta_local.errors import GptaError, TrainingError
from gpta_local.knowledge.unusable import Judged
from gpta_local.knowledge.unusable import why as why_unusable
from gpta_local.observer import Observer
from gpta_local.privacy.leak_scan import scan_of, weaker_than_default
from gpta_local.record import folder as run_folder
from gpta_local.record.folder import make_folder
from gpta_local.record.journal import Journal, opened
from gpta_local.report import summary
from gpta_local.report.card import model_card
from gpta_local.report.run_report import write_report
from gpta_local.report.trackers import check_trackers, track
from gpta_local.run.fine_tuning import SEARCH, FineTuner, Trained
from gpta_local.run.finish import Contest, Finish
from gpta_local.run.judging import Judges
from gpta_local.run.plan import Plan
from gpta_local.run.search import Search
from gpta_local.run.shares import compared_on_shares
from gpta_local.run.text_steps import TextSteps
from gpta_local.system.disk import explained
from gpta_local.system.files import owner_only
from gpta_local.system.interrupt import Interrupt
from gpta_local.tasks import open_task
from gpta_local.tasks.base import Task


def take_part(load: Callable[[], Config], team: Team) -> None:
    """What the other processes of a launch do of a run: their share of each training that the main one orders. What is
    wrong with the configuration, the data or a training the main one says.

    Args:
        load: the configuration.
    """
    try:
        config = load()
        task = open_task(config)
        plan = Plan(config, task, task.splits(), task.card(), team)
    except GptaError:
        if team.next_order() is None:
            return
        raise  # the main one found nothing wrong
    with suppress(TrainingError):
        while order := team.next_order():
            training = plan.training(task.build_plain(), part=order.part)
            training.load(order.state)
            training.run(order.prefix, order.steps)


class Run:
    """One run of `gpta-local train`. Making it reads and checks the data, builds the untrained
    model and asks the assistant whether it can answer; nothing is written before `run`."""

    def __init__(
        self,
        config: Config,
        observer: Observer,
        interrupt: Interrupt | None = None,
        task: Task | None = None,
        team: Team | None = None,
    ) -> None:
        self.observer, self.interrupt = observer, interrupt or Interrupt()
        check_trackers(config.tracking)
        task = task or open_task(config)
        self.plan = Plan(config, task, task.splits(), task.card(), team)
        if team:
            what = "share its trainings" if self.plan.online else "few rows are trained on by one of them"
            observer.note(f"{team.size} processes: {what}")
        for note in self.plan.splits.notes:
            self.observer.note(note)
        self.leak_scan = scan_of(config, task.texts(), self.plan.card)
        observer.note(f"leak scan: {self.leak_scan}")
        if weakness := weaker_than_default(config.privacy.leak_scan):
            observer.warn(weakness)
        model = task.build_plain()
        known = [row.texts for row in self.plan.splits.fitted or self.plan.splits.test]
        self.warnings = [*self.plan.splits.warnings, *unfit_texts(model.tokenizer, known)]
        for warning in self.warnings:
            observer.warn(warning)
        if unused := self.plan.check_own_texts():
            observer.warn(unused)
        self.plan.check_own_prefixes(model, self.leak_scan.find)
        self.weights = sum(p.numel() * p.element_size() for p in model.parameters())  # bytes
        self.assistant = open_assistant(config.assistant)
        first = self.plan.first_ask()
        self.leak_scan.check(first.request)
        observer.stage("waiting for the assistant", 1)
        observer.note(f"assistant: {self.assistant.check(first, observer.warn)}")
        self.adapters = AdapterTrials(self.assistant, config)
        if config.dialogue_gradient is not None and not self.assistant.takes_adapters:
            observer.warn(f"{self.assistant.adapters_refused}. Adapters are trained and saved, but do not answer")
        observer.advance()

    @owner_only()
    def run(self, folder: Path, *, resume: bool = False) -> dict[str, Any]:
        """Search, train, choose, evaluate once on test, export. Returns what `summary.json` holds.

        Args:
            resume: go on with the run that was stopped in `folder`, if there is one.
        """
        state = run_folder.check(folder, self.plan.config, resume=resume)
        if state == "finished":
            return run_folder.summary(folder)
        if state == "nothing":
            make_folder(folder, self.plan.room(self.weights))
        with explained(folder), run_folder.locked(folder), self.opened(folder) as journal:
            result = journal.sum_up() if journal.ended else self.outer_loop(journal)
            write_report(folder)
            track(folder, self.plan.config.tracking, self.observer.warn)
        return result

    def outer_loop(self, journal: Journal) -> dict[str, Any]:
        plan = self.plan
        search = Search(plan, journal, self.observer, self.assistant, self.adapters, self.leak_scan)
        fine_tuner = FineTuner(plan, journal, self.observer, self.interrupt)
        finish = Finish(plan, journal, fine_tuner, self.observer)

        if not plan.searches:
            contest = compared_on_shares(finish, search)
            self.assistant.close()
            return self.end(journal, finish, contest)
        label_texts = search.choose_label_texts()
        example_texts = search.example_texts()
        model = plan.task.build(label_texts)
        training = fine_tuner.training(model, SEARCH) if plan.online else None
        current, number = "", 1
        for number in range(1, plan.config.search.rounds + 1):
            entry = search.round(number, model, current)
            if entry is None:
                break
            if training is not None:
                current = entry.chosen.text
                fine_tuner.take_share(training, entry)
            search.teach(number)
        if training is not None and (journal.ended_by() or not plan.config.search.rounds):
            fine_tuner.take_rest(training, current, number - 1)
        searched = Trained(model, current, journal.search_seconds(), SEARCH)
        judges = Judges(fine_tuner, label_texts)
        example_texts = TextSteps(search, judges).grown(example_texts)
        self.assistant.close()

        return self.end(journal, finish, finish.contest(judges, example_texts, searched))

    def end(self, journal: Journal, finish: Finish, contest: Contest) -> dict[str, Any]:
        """Choose, evaluate once on test, export."""
        plan = self.plan
        selection = finish.select(contest.contestants)
        product = contest.contestants[selection.chosen].train()
        result = summary.describe_run(
            plan.card, plan.regime, contest.label_texts, contest.templates, contest.example_texts, selection
        )
        result["example_texts"]["askings"] = summary.askings(journal.askings(), journal.steps())
        result["shares"] = [asdict(share) for share in contest.shares]
        if plan.measured:
            result |= finish.evaluate(product, contest.controls)
        else:
            result |= finish.cross_validate(product, contest)
        result["cost"] = journal.cost()
        result["training_rows"] = len(plan.splits.train)
        result["data"] = self.data_facts(product.model.tokenizer)
        result["ended_by"] = journal.ended_by() or None
        judged = [Judged(*one) for one in journal.judged()]
        result["replies"] = {"read": len(judged), "usable": sum(one.outcome != "unusable" for one in judged)}
        result["unusable"] = ". ".join(filter(None, why_unusable(judged))) or None
        result["seconds"] = {"search": journal.search_seconds(), "total": journal.elapsed()}
        self.write(journal, product, result)
        return journal.end(result)

    def data_facts(self, tokenizer: PrefixTokenizer) -> dict[str, Any]:
        splits = self.plan.splits
        cut, unknown = tokenizer.cut_and_unknown([row.texts for row in splits.fitted or splits.test])
        return {
            "splits": facts(splits, self.plan.task.label_names),
            "tokens": {"most": tokenizer.max_length, "cut": cut, "unknown": unknown},
            "warnings": self.warnings,
        }

    def opened(self, folder: Path) -> AbstractContextManager[Journal]:
        plan = self.plan
        return opened(folder, plan.config, plan.card, plan.regime, self.observer, self.assistant.checked)

    def write(self, journal: Journal, product: Trained, result: Mapping[str, Any]) -> None:
        """The product, before the summary that says it is whole."""
        folder, steps, task = journal.folder, journal.steps(), self.plan.task
        run_folder.clear_product(folder)
        place, columns = folder / run_folder.MODEL_FOLDER, self.plan.config.data
        temperature = result["product"] and result["product"]["calibration"]["temperature"]
        write_product(
            place,
            product.model,
            product.prefix,
            task.name,
            task.label_names,
            columns,
            temperature=temperature,
            card=model_card(result, library_of(product.model), Path(self.plan.config.downstream.backbone).name),
        )
        if steps:
            askings = [figures for _, figures in journal.askings()]
            plot_dialogue_gradient(journal.proposal_figures(), askings, [step for _, step, _ in steps], folder)
