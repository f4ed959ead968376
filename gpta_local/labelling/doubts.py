"""`check`: the rows whose label a model that has not seen them doubts.

Knows the configuration of a run and the rows of its training file. Gives places and labels, never a row's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpta_local.config import load
from gpta_local.data.examples import read_examples, text_columns
from gpta_local.data.readers import read_records
from gpta_local.errors import InputError
from gpta_local.record.folder import CONFIG_FILE
from gpta_local.system.extras import extra_module

LEAST_ROWS = 4
"""Of each class: the model is fitted four times, each time without a quarter of the rows."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A row's place, its label, the label that is more likely, and the probabilities of both."""

    where: str
    label: str
    suggested: str
    probability: float
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Check:
    rows: int
    doubts: list[Doubt]


def check(run: Path) -> Check:
    """Look at all rows of the file that a run was trained on, also those that `data.shots` left out. The most
    doubtful come first.

    The model is a linear probe on the run's backbone as it was before training, its start the label names and
    meanings of the card; each row is judged by a probe that was fitted without it. Which rows are doubtful is decided
    by confident learning (Northcutt, Jiang and Chuang 2021, by cleanlab): it allows for classes that the model is less
    sure of.

    Raises:
        InputError: the folder has no configuration, or the rows are too few.
    """
    import torch

    from gpta_local.downstream.probe import probe_logits
    from gpta_local.tasks.classification import ClassificationTask

    find_label_issues = extra_module("cleanlab.filter", "check").find_label_issues
    if not (run / CONFIG_FILE).is_file():
        raise InputError("no run here", where=str(run), fix="Give the directory of a run: it names its training rows")
    config = load(run / CONFIG_FILE)
    if (train := config.data.train) is None:
        raise InputError("this run was trained without labelled rows", where=str(run), fix="There is nothing to check")
    alone = config.data.model_copy(update={"validation": None, "test": None, "shots": None})
    task = ClassificationTask(config.model_copy(update={"data": alone}))
    columns, label, names = text_columns(alone), alone.label, task.label_names
    records = read_records(train, [*columns, label], alone).records
    examples = read_examples(records, columns, label, names)
    labels = torch.tensor([example.label for example in examples])  # (n,)
    for name, count in zip(names, labels.bincount(minlength=len(names)), strict=True):
        if count < LEAST_ROWS:
            raise InputError(f"the label {name!r} has {count} rows, and {LEAST_ROWS} are needed", where=train)
    model = task.build(task.own_label_texts())
    rows = model.tokenizer.encode(model.tokenizer.tokenise([example.texts for example in examples]), "")
    logits = probe_logits(model.all_features(rows), labels.to(model.device), model.head)
    chances = logits.double().softmax(-1).cpu().numpy()  # (n, c)
    found = find_label_issues(
        labels.numpy(), chances, return_indices_ranked_by="self_confidence", filter_by="low_self_confidence", n_jobs=1
    )
    return Check(len(labels), [_doubt(records[row].where, names, int(labels[row]), chances[row]) for row in found])


def _doubt(where: str, names: Sequence[str], label: int, chances: NDArray[np.float64]) -> Doubt:
    best = int(chances.argmax())
    return Doubt(where, names[label], names[best], round(float(chances[label]), 6), round(float(chances[best]), 6))
