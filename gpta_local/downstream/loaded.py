"""A product in memory: rows → logits, by the stock library, whose network may be made faster.

Knows stock models and tokenizers. Does not know labels, folders or what is done with logits.

Shapes: b rows, s tokens, d features, c classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor, nn

Array = NDArray[np.float64]
Rows = Sequence[tuple[str, ...]]
"""Rows of one or two texts each."""


WINDOW = 2048
"""Rows that are ordered by length among themselves."""
BATCH = 32
"""Of 64 a row takes 7 % longer on one core (docs/LOG.md)."""


class LoadedProduct(ABC):
    """A model that is ready. One thread at a time."""

    @abstractmethod
    def logits(self, rows: Rows) -> Array:
        """Logits (b, c) of a batch of rows in their order."""

    @abstractmethod
    def lengths(self, rows: Rows) -> list[int]:
        """Tokens of each row as the model sees them."""

    def logits_of_window(self, rows: Rows) -> Array:
        """Logits (n, c) of one row or more in their order, in batches of rows with about as many tokens. Ordered by
        characters, as sentence-transformers does it, a third of what is computed is padding (docs/LOG.md)."""
        order = sorted(range(len(rows)), key=self.lengths(rows).__getitem__)
        parts = [self.logits([rows[n] for n in order[start : start + BATCH]]) for start in range(0, len(order), BATCH)]
        found = np.concatenate(parts)
        return found[np.argsort(order)]


class LoadedTorch(LoadedProduct):
    model: nn.Module
    tokenizer: Any
    """A `transformers.PreTrainedTokenizerFast`."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """The transformers model in it."""

    def lean(self) -> Self:
        """The same with a network that costs less on a CPU; logits differ in last digits."""
        from gpta_local.downstream.lean import make_lean

        make_lean(self.network)
        self.model.eval()
        return self

    @abstractmethod
    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """The model's arguments, each (b, s), prefix and special tokens inside."""

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (b, c)."""

    def lengths(self, rows: Rows) -> list[int]:
        encoded = self.tokenizer(*(list(column) for column in zip(*rows, strict=True)), truncation=True)
        return [len(ids) for ids in encoded["input_ids"]]

    def logits(self, rows: Rows) -> Array:
        import torch

        with torch.inference_mode():
            logits: Array = self.forward(self.inputs(rows)).double().cpu().numpy()
        return logits

    def logits_and_features(self, rows: Rows) -> tuple[Array, Array]:
        """Logits (b, c), and what the last layer reads (b, d)."""
        from torch import nn

        seen: list[Tensor] = []
        head = [module for module in self.model.modules() if isinstance(module, nn.Linear)][-1]
        handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        try:
            logits = self.logits(rows)
        finally:
            handle.remove()
        return logits, seen[-1].double().cpu().numpy()


class LoadedSentences(LoadedTorch):
    def __init__(self, model: SentenceTransformer) -> None:
        self.model: Any = model.eval()
        self.tokenizer = model.tokenizer

    @property
    def network(self) -> Any:
        return self.model[0].auto_model

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        found = self.model.preprocess([row[0] if len(row) == 1 else row for row in rows])
        return {name: value.to(self.model.device) for name, value in found.items() if hasattr(value, "to")}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(dict(inputs))["sentence_embedding"]
        return logits


class LoadedSequences(LoadedTorch):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @property
    def network(self) -> Any:
        return self.model

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        return dict(self.tokenizer(*columns, truncation=True, padding=True, return_tensors="pt"))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits


class LoadedOnnx(LoadedProduct):
    """A graph in ONNX Runtime, with the `tokenizers` library: no torch.

    Args:
        session: an `onnxruntime.InferenceSession`.
    """

    def __init__(self, session: Any, tokenizer: Tokenizer) -> None:
        self.session, self.tokenizer = session, tokenizer

    def lengths(self, rows: Rows) -> list[int]:
        return [sum(row.attention_mask) for row in self._encoded(rows)]

    def _encoded(self, rows: Rows) -> list[Encoding]:
        found: list[Encoding] = self.tokenizer.encode_batch([row[0] if len(row) == 1 else row for row in rows])
        return found

    def logits(self, rows: Rows) -> Array:
        encoded = self._encoded(rows)
        given = {
            "input_ids": [row.ids for row in encoded],
            "attention_mask": [row.attention_mask for row in encoded],
            "token_type_ids": [row.type_ids for row in encoded],
        }
        names = [wanted.name for wanted in self.session.get_inputs()]
        (logits,) = self.session.run(["logits"], {name: np.array(given[name], dtype=np.int64) for name in names})
        found: Array = logits.astype(np.float64)
        return found
