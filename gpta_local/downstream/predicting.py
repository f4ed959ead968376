"""Rows as they stand in a file → the same rows with a label each, in constant memory.

Knows what is written of a prediction; neither files nor how a model computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gpta_local.data.examples import read_texts
from gpta_local.data.records import Record
from gpta_local.downstream.loaded import WINDOW
from gpta_local.downstream.product import Prediction, Product
from gpta_local.errors import InputError

LABEL, PROBABILITY, PROBABILITIES, TOP = "predicted_label", "probability", "probabilities", "top"
"""The columns that are put beside those of the input."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is written of a row besides its most probable label and the probability of that.

    `top`: the most probable labels, so many. `threshold`: a label that is less probable gives way to `abstain`.
    """

    probabilities: bool = False
    top: int | None = None
    threshold: float | None = None
    abstain: str = "unsure"


def texts_of(record: Record, columns: Sequence[str]) -> tuple[str, ...] | None:
    """The row's texts, checked; None if one is empty."""
    values = [record.values.get(column) for column in columns]
    if any(value is None or (isinstance(value, str) and not value.strip()) for value in values):
        return None
    return read_texts(record, columns)


@dataclass(slots=True)
class Labeller:
    """Puts labels beside rows. A row without text gets an empty one; `count` and `blank` count
    all rows and these.

    Args:
        flat: for tables: a column for each probability instead of a mapping.
    """

    product: Product
    columns: Sequence[str]
    wanted: Wanted
    flat: bool
    count: int = 0
    blank: int = 0
    first_blank: str = ""

    def __post_init__(self) -> None:
        if self.wanted.threshold is not None and self.wanted.abstain in self.product.labels:
            fix = "Give another word for rows without a clear label"
            raise InputError(f"{self.wanted.abstain!r} is a label of the model", where="--abstain", fix=fix)

    def rows(self, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
        model, records = self.product.load(), iter(records)
        while window := list(islice(records, WINDOW)):
            self.count += len(window)
            texts = [self._texts(record) for record in window]
            there = [row for row in texts if row]
            found = self.product.predictions(model.logits_of_window(there)) if there else iter(())
            for row, record in zip(texts, window, strict=True):
                yield {**record.values, **self._shown(next(found) if row else None)}

    def _texts(self, record: Record) -> tuple[str, ...] | None:
        texts = texts_of(record, self.columns)
        if texts is None:
            self.first_blank = self.first_blank or record.where
            self.blank += 1
        return texts

    def _shown(self, prediction: Prediction | None) -> dict[str, Any]:
        """The columns of a prediction; of a row without text they are there and empty."""
        wanted, labels = self.wanted, self.product.labels
        chances = prediction.probabilities if prediction else {}
        ranked = sorted(chances.items(), key=lambda item: -item[1])
        best, probability = ranked[0] if ranked else ("", None)
        if wanted.threshold is not None and probability is not None and probability < wanted.threshold:
            best = wanted.abstain
        shown: dict[str, Any] = {LABEL: best, PROBABILITY: probability}
        if self.flat:
            for place in range(min(wanted.top or 0, len(labels))):
                label, chance = ranked[place] if ranked else ("", None)
                shown |= {f"{TOP}_{place + 1}": label, f"{TOP}_{place + 1}_{PROBABILITY}": chance}
            return shown | {f"{PROBABILITY}_{name}": chances.get(name) for name in labels if wanted.probabilities}
        if wanted.top:
            shown[TOP] = [{"label": label, PROBABILITY: p} for label, p in ranked[: wanted.top]]
        return shown | ({PROBABILITIES: chances} if wanted.probabilities else {})
