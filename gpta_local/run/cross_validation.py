"""What a recipe is worth where no rows are left to measure it on: each training row is labelled by a model that was
trained without it.

Knows parts of the training rows; not what is compared, nor why. Nothing is kept of the models but what they say of the
rows that they did not see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpta_local.data.examples import Example
from gpta_local.downstream.model import DownstreamModel
from gpta_local.metrics import macro_f1
from gpta_local.run.fine_tuning import OF_CONTROL, FineTuner
from gpta_local.schema import ExampleText
from gpta_local.tasks.base import Evaluation


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is made. `start`: the model before training. `prefix`: in front of its inputs. `texts`: example texts
    among its rows; with them the model is averaged with one that begins as `control` and has none."""

    start: Callable[[], DownstreamModel]
    prefix: str = ""
    texts: Sequence[ExampleText] = ()
    control: Callable[[], DownstreamModel] | None = None


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """What the models of all parts together say of all training rows, in their order, and the seconds spent."""

    evaluation: Evaluation
    training_seconds: float
    evaluation_seconds: float


def parts_of(rows: Sequence[Example], wanted: int) -> list[int]:
    """The part of each row, from 0: dealt in turn, class after class, so that the classes are spread over all parts.
    Rows of the same text are in one part, or a model would have seen what it is measured on."""
    labels = {row.texts: row.label for row in rows}
    ordered = sorted(labels, key=labels.__getitem__)
    parts = {texts: number % wanted for number, texts in enumerate(ordered)}
    return [parts[row.texts] for row in rows]


def cross_validated(fine_tuner: FineTuner, recipes: Mapping[str, Recipe]) -> dict[str, CrossValidated]:
    """Each recipe's figures over all training rows; the same parts for all, so that they are paired. Empty where the
    rows cannot be parted."""
    plan = fine_tuner.plan
    parts = parts_of(plan.splits.train, plan.config.finish.folds)
    numbers = range(max(parts) + 1)
    if len(numbers) < 2:
        return {}
    fine_tuner.observer.stage("cross-validation", len(numbers) * len(recipes))
    found: dict[str, list[tuple[Evaluation, list[float]]]] = {name: [] for name in recipes}
    for number in numbers:
        for name, recipe in recipes.items():
            found[name].append(_of_part(fine_tuner, parts, number, name, recipe))
            fine_tuner.observer.advance()
    targets, classes = [row.label for row in plan.splits.train], len(plan.task.label_names)
    return {name: _together(results, parts, targets, classes) for name, results in found.items()}


def _of_part(
    fine_tuner: FineTuner, parts: Sequence[int], number: int, name: str, recipe: Recipe
) -> tuple[Evaluation, list[float]]:
    """What a model that was trained on the other parts says of this one; seconds of the training and of this."""
    plan = fine_tuner.plan
    rows = list(zip(plan.splits.train, parts, strict=True))
    others, own = [row for row, part in rows if part != number], [row for row, part in rows if part == number]
    part_of_plan = replace(plan, splits=replace(plan.splits, train=others))

    def work() -> tuple[Evaluation, list[float]]:
        model = recipe.start()
        training = part_of_plan.training(model, texts=recipe.texts)
        training.run(recipe.prefix, training.steps)
        spent = training.seconds
        if recipe.texts and recipe.control:
            control = recipe.control()
            without = part_of_plan.training(control)
            without.run("", without.steps)
            model.average_with(control, OF_CONTROL)
            spent += without.seconds
        started = time.monotonic()
        evaluation = plan.task.evaluate(model, own, recipe.prefix)
        return evaluation, [spent, time.monotonic() - started]

    return fine_tuner.once(f"part-{number}-{name}", work)


def _together(
    found: Sequence[tuple[Evaluation, list[float]]], parts: Sequence[int], targets: Sequence[int], classes: int
) -> CrossValidated:
    """The results of all parts, back in the order of the rows."""
    places = np.argsort(np.array(parts), kind="stable")  # of the rows, part after part

    def joined(of: Callable[[Evaluation], Any]) -> Any:
        whole = np.concatenate([of(evaluation) for evaluation, _ in found])
        return whole[places.argsort()]

    scores, losses, logits = joined(lambda e: e.scores), joined(lambda e: e.losses), joined(lambda e: e.logits)
    f1 = macro_f1(logits.argmax(axis=1).tolist(), targets, classes)
    summary = {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
    training, evaluating = np.sum([seconds for _, seconds in found], axis=0).tolist()
    return CrossValidated(Evaluation(scores, losses, logits, np.array(targets), summary), training, evaluating)
