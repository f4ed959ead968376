"""A product in memory: rows → logits, by the stock library and nothing else.

Knows stock models and tokenizers. Does not know labels, folders or what is done with logits.

Shapes: b rows, s tokens, d features, c classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn


class LoadedProduct(ABC):
    """A stock model that is ready. One thread at a time."""

    model: nn.Module
    tokenizer: Any
    """A `transformers.PreTrainedTokenizerFast`."""

    @abstractmethod
    def inputs(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
        """The model's arguments, each (b, s), prefix and special tokens inside."""

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (b, c)."""

    def logits(self, rows: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
        """Logits (b, c) of a batch of rows in their order."""
        import torch

        with torch.inference_mode():
            logits: NDArray[np.float64] = self.forward(self.inputs(rows)).double().cpu().numpy()
        return logits

    def logits_and_features(self, rows: Sequence[tuple[str, ...]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


class LoadedSentences(LoadedProduct):
    def __init__(self, model: SentenceTransformer) -> None:
        self.model: Any = model.eval()
        self.tokenizer = model.tokenizer

    def inputs(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
        texts = [row[0] if len(row) == 1 else row for row in rows]
        return {
            name: value.to(self.model.device)
            for name, value in self.model.preprocess(texts).items()
            if hasattr(value, "to")  # "modality" is a word
        }

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(dict(inputs))["sentence_embedding"]
        return logits


class LoadedSequences(LoadedProduct):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def inputs(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        return dict(self.tokenizer(*columns, truncation=True, padding=True, return_tensors="pt"))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits
