"""Checks of the rows and of the model that they train."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpta_local.doctor.findings import RUNS, Case, Outcome, counted, nearest_existing, short
from gpta_local.errors import ModelError, PrivacyError
from gpta_local.system.models import multiplies_in_bf16, resolve_device

if TYPE_CHECKING:
    from gpta_local.tasks.base import Task

FEW_TEST_ROWS = 100
"""With fewer, a 95 % interval of the accuracy can be wider than ± 10 points."""


def data(case: Case) -> Iterator[Outcome]:
    """The rows, read as `train` reads them."""
    from gpta_local.downstream.probe import FOLDS
    from gpta_local.tasks import open_task

    try:
        task = case.task = open_task(case.config)
    except ModelError:
        yield "warning", "not read, as the backbone cannot be opened", "Mend the backbone first"
        return
    splits, labels = task.splits(), task.label_names
    yield from _leaks(case, task)
    train, test = splits.train, splits.test
    sizes = f"{len(train)} training, {len(splits.validation)} validation, {len(test)} test rows"
    yield "ok", f"{len(labels)} labels; {sizes}"
    for sentence in splits.notes:
        yield "ok", sentence
    for sentence in splits.warnings:
        yield "warning", sentence
    counts = Counter(example.label for example in train)
    rows, label = min(((count, label) for label, count in counts.items()), default=(FOLDS, 0))
    if not train:
        yield (
            "warning",
            "no training rows: the model is trained on example texts alone",
            "Label some rows and set data.train",
        )
    elif rows < FOLDS:
        few = counted(rows, "training row")
        line = f"{few} of the label {labels[label]!r} for the {FOLDS} folds that score prefixes"
        yield "warning", line, "Add rows, or raise data.shots"
    if not test:
        yield "warning", "no test rows, so no figure of the result is unbiased", "Set data.test"
    elif len(test) < FEW_TEST_ROWS:
        width = 98 / len(test) ** 0.5
        yield "warning", f"{len(test)} test rows tell an accuracy to within ± {width:.0f} points", "Add test rows"


def _leaks(case: Case, task: Task) -> Iterator[Outcome]:
    """Whether the card, or a field of all requests, holds words of rows or personal data."""
    from gpta_local.privacy.leak_scan import scan_of, weaker_than_default

    try:
        case.scan = scan_of(case.config, task.texts(), task.card())
    except PrivacyError as exc:
        yield "error", f"{exc.where}: {exc.what}", exc.fix
    if weakness := weaker_than_default(case.config.privacy.leak_scan):
        yield "warning", weakness, "Leave privacy.leak_scan as it is by default"


def backbone(case: Case) -> Iterator[Outcome]:
    """The model before training, on its device, and room for what is made of it."""
    from gpta_local.downstream.tokenization import unfit_texts
    from gpta_local.record.folder import HISTORY_ROOM
    from gpta_local.run.plan import Plan

    training = case.config.training
    device = resolve_device(training.device, "training.device")
    if case.task is None:
        return
    model = case.task.build_plain()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    bf16 = multiplies_in_bf16(training.precision, device)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"
    numbers = "bfloat16" if bf16 else "float32"
    yield "ok", f"{size}, inputs of {model.tokenizer.max_length} tokens, on {device}, multiplies in {numbers}"
    for sentence in unfit_texts(model.tokenizer, [row.texts for row in case.task.splits().fitted]):
        yield "warning", sentence
    if bf16 and not multiplies_in_bf16("auto", device):
        yield "warning", f"{device} has no bfloat16 and is slow with it", "Set training.precision to auto"
    if not case.task.uses_label_texts:
        line = "a plain encoder: its head starts at random, not from label texts"
        yield "warning", line, "Take a sentence-transformers backbone with mean pooling, if there is one"
    plan = Plan(case.config, case.task, case.task.splits(), case.task.card())
    free, needed = shutil.disk_usage(nearest_existing(RUNS.absolute())).free, plan.room(weights) + HISTORY_ROOM
    if free < needed:
        line = f"a run needs {needed // 2**20} MiB, and the disk of {short(RUNS.absolute())} has {free // 2**20}"
        yield "error", line, "Make room, or choose another place with train --output"
