"""The interface of a task: what the outer loop, the search and the training need of it.

A task reads rows, says what the card may tell of them, builds a downstream model, and scores a
prefix and a trained model row by row. The loop never asks what a row or a target is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits
from gpta_local.downstream.model import DownstreamModel
from gpta_local.metrics import Losses
from gpta_local.schema import DatasetCard, ExampleText, ScoredLabelTexts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Per-row results on a split of n rows. `scores` (n,) is the task's metric before the mean
    (for accuracy 0 or 1): higher is better. `losses` (n,) in nats. `logits` (n, c), and `targets` (n,), the numbers of
    the right labels. `summary` holds the figures."""

    scores: NDArray[np.float64]
    losses: Losses
    logits: NDArray[np.float64]
    targets: NDArray[np.int64]
    summary: dict[str, float]


class Scorer(Protocol):
    """Row-wise losses of a prefix at one θ."""

    def losses(self, prefix: str, rows: Sequence[int]) -> Losses: ...


class Task(Protocol):
    name: str

    @property
    def uses_label_texts(self) -> bool:
        """Whether label texts can start the model."""
        ...

    @property
    def label_names(self) -> list[str]: ...
    def splits(self) -> Splits: ...
    def texts(self) -> Iterator[str]:
        """Every text of the data files, also of rows that the run does not use."""
        ...

    def card(self) -> DatasetCard: ...
    def build(self, label_texts: Sequence[dict[str, str]]) -> DownstreamModel: ...
    def build_plain(self) -> DownstreamModel: ...
    def own_label_texts(self) -> list[dict[str, str]]: ...
    def choose_label_texts(
        self, sets: Sequence[dict[str, str]], size: int
    ) -> tuple[list[dict[str, str]], list[ScoredLabelTexts]]: ...
    def mixed(self, rows: Sequence[Example], texts: Sequence[ExampleText]) -> list[Example]: ...
    def judged(self, model: DownstreamModel, texts: Sequence[ExampleText]) -> list[ExampleText]: ...
    def scoring_rows(self, examples: Sequence[Example], size: int, seed: int) -> list[int]: ...
    def scorer(self, model: DownstreamModel, examples: Sequence[Example]) -> Scorer: ...
    def evaluate(self, model: DownstreamModel, examples: Sequence[Example], prefix: str) -> Evaluation: ...
