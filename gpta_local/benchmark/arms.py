"""How each arm is trained and measured. Knows tasks, trainings and the outer loop; what is compared with what is
decided elsewhere.

The test rows are measured, and nothing is chosen on them.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpta_local.benchmark.suite import CONTROLS, GPTA
from gpta_local.benchmark.trials import Job, Record, Trial
from gpta_local.config import Config
from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits
from gpta_local.downstream.model import DownstreamModel
from gpta_local.downstream.tokenization import EncodedRow
from gpta_local.downstream.training import Training
from gpta_local.knowledge import prefixes
from gpta_local.knowledge.label_texts import templated
from gpta_local.observer import Observer
from gpta_local.privacy.leak_scan import words
from gpta_local.record.folder import example_texts
from gpta_local.record.history import open_existing
from gpta_local.run.fine_tuning import OF_CONTROL
from gpta_local.run.loop import Run
from gpta_local.run.plan import Plan
from gpta_local.schema import ExampleText
from gpta_local.system.models import multiplies_in_bf16
from gpta_local.tasks.base import Evaluation
from gpta_local.tasks.classification import ClassificationTask

RANDOM_WORDS = 4
"""Words of a random prefix."""
LONGER = 5
"""Times the steps of `plain_longer`: as many as a soft prompt has, with few rows."""
SHARED_WORDS = 6
"""Words in a row that an example text may not share with a test row: public sets may be in a model's memory."""

COST = ("completions", "prompt_tokens", "completion_tokens")

Figures = dict[str, Any]
"""What a record holds besides its trial, digest and versions."""


def perform(job: Job, given: Mapping[Trial, Record], folder: Path) -> list[Figures]:
    """Do a job; the figures of its trials, in their order.

    Args:
        given: the records of the trials that the job needs.
        folder: for what a run of the outer loop keeps; made where one is.
    """
    trial, needed = job.trials[0], [given[need] for need in job.needs]
    if trial.kind == "arm" and trial.arm == GPTA:
        return gpta(job, folder)
    if trial.kind == "arm" and trial.arm not in CONTROLS:
        return variant(job, folder)
    if trial.arm == "plain_with_prefix":
        return plain_search(job, folder)
    return [Bench(job).figures(*needed)]


class Bench:
    """The rows and models of a job, as a run of the outer loop has them."""

    def __init__(self, job: Job) -> None:
        self.job, self.config, self.task = job, job.config, MeasuredTask(job.config)
        self.splits = with_test_rows(self.task.splits(), job.settings["test_rows"])
        self.plan = Plan(self.config, self.task, self.splits, self.task.card())

    def figures(self, *needed: Record) -> Figures:
        """Of a trial that is one training.

        Args:
            needed: records of `gpta` on the same rows and, for a transfer, on those of the other set.
        """
        trial = self.job.trials[0]
        match trial.kind, trial.arm, needed:
            case "curve", _, _:
                return self.curve(*needed)
            case "transfer", _, (own, other):
                return self.transferred(own, other)
            case _, "logistic_regression" | "setfit" | "setfit_label_words", _:
                return self.rival()
            case _, "zero_shot", _:
                return self.zero_shot()
            case _, "example_texts_only", (found,):
                return self.without_rows(found, filtered=True)
            case _, "example_texts_only_unfiltered", (found,):
                return self.without_rows(found, filtered=False)
            case _, "soft_prompt", _:
                return self.soft_prompt()
            case _, "plain_longer", _:
                return self.fine_tune(self.task.build_plain(), "", LONGER)
            case _, "best_prefix", (found,):
                return self.with_prefix(found, found["best_prefix"])
            case _, "fixed_prefix", (found,):
                return self.with_prefix(found, self.job.settings["fixed_prefix"])
            case _, "random_prefix", (found,):
                return self.with_prefix(found, self.random_words())
        raise AssertionError(f"no such trial: {trial}")

    def with_prefix(self, found: Record, text: str) -> Figures:
        """As `found`, a record of `gpta` on the same rows, and another prefix in front."""
        if text == found["prefix"]:
            return figures_of(found)  # the same training
        return self.with_texts(self.head_of(found), text, found, found["label_texts"])

    def without_rows(self, found: Record, *, filtered: bool) -> Figures:
        """Trained on example texts alone, from the card's own label texts: no labelled row has a part in it.

        Args:
            found: a record of `gpta`, for the texts that its assistant made up.
            filtered: as a run without labelled rows has it. Otherwise trained on all texts.
        """
        own, texts, seconds = self.task.own_label_texts(), made_up(found), 0.0
        untrained = judge = self.task.build(own)
        self.plan = replace(self.plan, splits=replace(self.splits, train=[]))

        def trained(on: Sequence[ExampleText]) -> DownstreamModel:
            nonlocal seconds
            model = self.task.build(own)
            if on:
                training = self.plan.training(model, texts=on)
                training.run("", training.steps)
                seconds += training.seconds
            return model

        if filtered:
            judge = trained([text for text in self.task.judged(judge, texts) if text.kept])
            texts = [text for text in self.task.judged(judge, texts) if text.kept]
        model = trained(texts)
        if filtered:
            model.average_with(untrained, OF_CONTROL)
        return self.measure(model, "", seconds) | {"texts": len(texts)}

    def head_of(self, found: Record) -> DownstreamModel:
        """The model before training as the run of a record had it."""
        if found["product_is_plain"]:
            return self.task.build_plain()
        return self.task.build(templated(found["label_texts"], found["templates"]))

    def transferred(self, own: Record, other: Record) -> Figures:
        """The best prefix and the templates of another set; its label texts too where it has one for each label of
        this set. The prefix alone where this set's own model has started from no label texts."""
        if own["product_is_plain"]:
            return {**self.fine_tune(self.task.build_plain(), other["best_prefix"]), "with_label_texts": False}
        names = self.task.label_names
        theirs = [{fold(name): text for name, text in texts.items()} for texts in other["label_texts"]]
        fits = all(fold(name) in texts for texts in theirs for name in names)
        label_texts = [{name: texts[fold(name)] for name in names} for texts in theirs] if fits else own["label_texts"]
        head = self.task.build(templated(label_texts, other["templates"]))
        figures = self.with_texts(head, other["best_prefix"], own, label_texts)
        return {**figures, "with_label_texts": fits}

    def fine_tune(self, model: DownstreamModel, text: str, times: int = 1) -> Figures:
        """All steps with one prefix, or so many times as many, then measured."""
        training = self.plan.training(model, times)
        training.run(text, training.steps)
        return self.measure(model, text, training.seconds)

    def with_texts(
        self, model: DownstreamModel, text: str, found: Record, label_texts: Sequence[Mapping[str, str]]
    ) -> Figures:
        """As `fine_tune`, with the example texts of a record as its run used them, if it did."""
        if not (texts := trained_on(found)):
            return self.fine_tune(model, text)
        training = self.plan.training(model, texts=texts)
        training.run(text, training.steps)
        control = self.task.build(label_texts)
        of_control = self.plan.training(control)
        of_control.run("", of_control.steps)
        model.average_with(control, OF_CONTROL)
        return self.measure(model, text, training.seconds + of_control.seconds)

    def measure(self, model: DownstreamModel, text: str, training_seconds: float) -> Figures:
        return self.measured_by(lambda rows: self.task.evaluate(model, rows, text), text, training_seconds)

    def measured_by(
        self, evaluate: Callable[[Sequence[Example]], Evaluation], text: str, training_seconds: float
    ) -> Figures:
        started = time.monotonic()
        tested, fitted = evaluate(self.splits.test), evaluate(self.splits.fitted)
        figures = {**tested.summary, "rows": len(tested.scores), "prefix": text, "train": fitted.summary}
        return figures | {"seconds": seconds(training_seconds, time.monotonic() - started)}

    def rival(self) -> Figures:
        from gpta_local.benchmark.rivals import EmbeddingsAndLogisticRegression, SetFit, label_words

        arm, rows, labels = self.job.trials[0].arm, self.splits.train, self.task.labels
        kind = EmbeddingsAndLogisticRegression if arm == "logistic_regression" else SetFit
        model = kind(self.config, [*rows, *label_words(labels)] if arm == "setfit_label_words" else rows, len(labels))
        return self.measured_by(model.evaluate, "", model.seconds)

    def zero_shot(self) -> Figures:
        """The assistant reads the test rows: see `zero_shot.py`."""
        from gpta_local.benchmark.zero_shot import ROWS, label_by_assistant

        started, rows = time.monotonic(), with_test_rows(self.splits, ROWS).test
        result = label_by_assistant(self.config, self.task.card(), rows)
        told = {**result.summary, "rows": len(rows), "prefix": "", "train": result.summary}
        return told | {"seconds": seconds(0.0, time.monotonic() - started)}

    def soft_prompt(self) -> Figures:
        from gpta_local.benchmark.soft_prompt import SoftPromptClassifier, settings

        model = SoftPromptClassifier(self.task.build_plain(), self.config.search.max_prefix_tokens, self.config.seed)
        rows = self.splits.train
        config = settings(self.config.training, len(rows))
        training = Training(model, rows, config, seed=self.config.seed, weight_decay=0.0)
        training.run("", training.steps)
        return self.measure(model, "", training.seconds)

    def curve(self, found: Record | None = None) -> Figures:
        """Accuracy and loss on training and test rows before, while and after all steps are taken; of a training with
        example texts before its average with the control."""
        model = self.head_of(found) if found else self.task.build_plain()
        text = found["prefix"] if found else ""
        texts = trained_on(found) if found else []
        training = self.plan.training(model, texts=texts)
        rows_of_an_epoch = len(self.task.mixed(self.splits.train, texts) if texts else self.splits.train)
        splits = self.splits.fitted, self.splits.test
        count = min(self.job.settings["points"], training.steps + 1)
        points = []
        for at in (training.steps * place // (count - 1) for place in range(count)):
            if at > training.done:
                training.run(text, at - training.done)
            with training.as_if_ended():
                fitted, tested = (self.task.evaluate(model, rows, text).summary for rows in splits)
            epoch = at * training.batch_size / rows_of_an_epoch
            points.append({"epoch": epoch, "train": fitted, "test": tested})
        return {"prefix": text, "points": points, "rows": len(self.splits.test)}

    def random_words(self) -> str:
        """A prefix of whole words of the backbone's vocabulary, another for each arm, set and seed."""
        trial, tokenizer = self.job.trials[0], self.task.build_plain().tokenizer.tokenizer
        vocabulary = sorted(tokenizer.get_vocab())
        whole = [token for token in vocabulary if token.isascii() and token.isalpha() and token.islower()]
        whole = [token for token in whole if len(token) > 2]
        rng = random.Random(f"{trial.arm}-{trial.set}-{self.config.seed}")
        return " ".join(rng.sample(whole, RANDOM_WORDS))


class MeasuredTask(ClassificationTask):
    """The task as it is measured: its features in bfloat16 where training has them so, which takes a third of the time
    and changes about one prediction in a thousand (docs/LOG.md); and without example texts that look like test rows.

    `left_out`: those example texts.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.left_out: set[str] = set()

    def judged(self, model: DownstreamModel, texts: Sequence[ExampleText]) -> list[ExampleText]:
        tested = set[tuple[str, ...]]().union(
            *(runs_of_words(text) for row in self.splits().test for text in row.texts)
        )
        self.left_out |= {text.text for text in texts if runs_of_words(text.text) & tested}
        return super().judged(model, [text for text in texts if text.text not in self.left_out])

    @torch.inference_mode()
    def logits(self, model: DownstreamModel, rows: Sequence[EncodedRow]) -> Tensor:
        bf16 = multiplies_in_bf16(self._config.training.precision, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            features = model.all_features(rows)
        logits: Tensor = model.head(features)
        return logits


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Every `SHARED_WORDS` words in a row; of fewer, all of them."""
    found = words(text)
    return {tuple(found[at : at + SHARED_WORDS]) for at in range(max(1, len(found) - SHARED_WORDS + 1))}


class PlainHead(MeasuredTask):
    """The same task when nothing but a random head can start a model."""

    uses_label_texts = False

    def build(self, label_texts: Sequence[Mapping[str, str]]) -> DownstreamModel:
        return self.build_plain()


def gpta(job: Job, folder: Path) -> list[Figures]:
    """The run, and its own controls: the same label texts without prefixes, and plain."""
    plan, result = outer_loop(with_plain(job, True), folder)
    arms = result["arms"]
    nearest = "plain" if "plain" in arms else "no_prefix"  # without label texts they are the same
    against = {name: [d["value"], d["low"], d["high"]] for name, d in result["differences"].items()}
    product = {
        **product_figures(plan, result),
        "against_plain": against.get(nearest, [0.0, 0.0, 0.0]),
        "made_up": [[text.label, text.text, text.kept] for text in result["made_up"]],
    }
    return [product, control_figures(arms["no_prefix"]), control_figures(arms[nearest])]


def variant(job: Job, folder: Path) -> list[Figures]:
    """The run with other settings, and its control of the same label texts. Its plain control would be that of `gpta`;
    it is trained where it takes part in the choice."""
    job = job if Bench(job).plan.online else with_plain(job, False)
    plan, result = outer_loop(job, folder)
    return [product_figures(plan, result), control_figures(result["arms"]["no_prefix"])]


def plain_search(job: Job, folder: Path) -> list[Figures]:
    """The run where every model has a random head and no label texts, the paper's setting: what its rule chose, and
    the prefix that ranked best in any case."""
    chosen = product_figures(*outer_loop(job, folder, PlainHead(job.config)))
    if chosen["best_prefix"] == chosen["prefix"]:
        best = figures_of(chosen)
    else:
        bench = Bench(job)
        best = bench.fine_tune(bench.task.build_plain(), chosen["best_prefix"])
    before = chosen["seconds"]["total"] - chosen["seconds"]["training"]
    best["seconds"] |= {"search": chosen["seconds"]["search"], "total": before + best["seconds"]["training"]}
    return [chosen, {**best, **{name: chosen[name] for name in COST}}]


def with_plain(job: Job, wanted: bool) -> Job:
    """With plain fine-tuning as a control, or without; that of the card's own label texts is a variant of its own."""
    finish = job.config.finish.model_copy(update={"plain_control": wanted, "card_control": False})
    return replace(job, config=job.config.model_copy(update={"finish": finish}))


def outer_loop(job: Job, folder: Path, task: MeasuredTask | None = None) -> tuple[Plan, dict[str, Any]]:
    """A run as by `gpta-local train`: its plan, and its summary with its warnings, the seconds of its assistant, the
    prefix that ranked best and the example texts. Its weights are removed; what it found stays in the folder."""
    shutil.rmtree(folder, ignore_errors=True)  # of a trial that was stopped
    listener, task = Listener(), task or MeasuredTask(job.config)
    run = Run(job.config, listener, task=task)
    splits = with_test_rows(run.plan.splits, job.settings["test_rows"])
    run.plan = replace(run.plan, splits=splits, all_controls=True)
    with closing(run.assistant):
        result = run.run(folder)
    result |= {"warnings": listener.warnings, "best_prefix": best_ranked(run.plan, folder)}
    result["seconds"]["assistant"] = listener.asking
    result["example_texts"]["left_out"] = len(task.left_out)
    result["made_up"] = example_texts(folder)
    for weights in ("model", "adapters"):
        shutil.rmtree(folder / weights, ignore_errors=True)
    return run.plan, result


def product_figures(plan: Plan, result: Mapping[str, Any]) -> Figures:
    """Of a run's product. Its seconds are those of search, choice and training, its controls that no user needs
    and all measuring left out; those of the assistant, a part of them, are told apart."""
    whole, cost = result["seconds"], result["cost"]
    measured = {name: a for name, a in result["arms"].items() if name == "gpta" or name in result["differences"]}
    beside = sum(a["evaluation_seconds"] for a in measured.values())
    judge = plan.splits.validation or not result["templates"] or result["made_up"]
    chosen_from = {"gpta": True, "no_prefix": judge, "card": plan.judges_label_texts, "plain": plan.online}
    beside += sum(a["training_seconds"] for name, a in measured.items() if not chosen_from[name])
    figures = control_figures(result["arms"]["gpta"])
    figures["seconds"] |= {name: whole[name] for name in ("search", "assistant")} | {"total": whole["total"] - beside}
    names = ("best_prefix", "label_texts", "templates", "example_texts", "product_is_plain", "warnings")
    return {**figures, **cost, **{name: result[name] for name in names}}


def control_figures(arm: Mapping[str, Any]) -> Figures:
    """Of an arm in the summary of a run."""
    figures = {name: arm[name] for name in ("accuracy", "macro_f1", "loss", "rows", "prefix")}
    spent = seconds(arm["training_seconds"], arm["evaluation_seconds"])
    return figures | {"train": arm["on_training_rows"], "seconds": spent}


def figures_of(record: Record) -> Figures:
    """The figures of a finished trial, for another one that is the same training; without the search's cost."""
    figures = {name: record[name] for name in ("accuracy", "macro_f1", "loss", "rows", "prefix", "train")}
    return figures | {"seconds": seconds(record["seconds"]["training"], record["seconds"]["evaluation"])}


def seconds(training: float, evaluation: float) -> dict[str, float]:
    """Of a trial that is one training."""
    return {"total": training, "training": training, "evaluation": evaluation}


def made_up(found: Record) -> list[ExampleText]:
    """The example texts of a record of `gpta`."""
    return [ExampleText(label, text, kept=kept) for label, text, kept in found["made_up"]]


def trained_on(found: Record) -> list[ExampleText]:
    """Those that its product was trained on."""
    used = found["example_texts"]["used"] and not found["product_is_plain"]
    return [text for text in made_up(found) if text.kept] if used else []


def best_ranked(plan: Plan, folder: Path) -> str:
    """The prefix with the best lower bound, whether or not that is above 0; "" if none was scored."""
    with closing(open_existing(folder)) as history:
        scored = history.comparable(plan.regime)
    ranked = prefixes.ranked(scored, prefixes.margin(len(scored)))
    return ranked[0].text if ranked else ""


def with_test_rows(splits: Splits, size: int | None) -> Splits:
    """At most so many test rows, the same for all arms and samples."""
    if size is None or size >= len(splits.test):
        return splits
    return replace(splits, test=random.Random("test-rows").sample(splits.test, size))


def fold(label: str) -> str:
    return label.replace("_", " ").casefold()


class Listener(Observer):
    """Hears a run and says nothing: what it finds is in its results. Warnings are kept.

    `asking`: seconds that the assistant took to answer.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.asking = 0.0
        self._asked: float | None = None

    def stage(self, title: str, steps: int) -> None:
        self._asked = time.monotonic() if "asking for" in title else None

    def advance(self) -> None:
        if self._asked is not None:
            now = time.monotonic()
            self.asking, self._asked = self.asking + now - self._asked, now

    def warn(self, text: str) -> None:
        self.warnings.append(text)
