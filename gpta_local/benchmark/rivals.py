"""What a user would take instead, with the defaults of its own library. Knows rows and libraries; nothing of prefixes.

These read texts, not pairs of texts: those are joined by the tokenizer's separator.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from gpta_local import metrics
from gpta_local.config import Config
from gpta_local.data.examples import Example
from gpta_local.schema import Label
from gpta_local.system.models import backbone_folder, load_sentence_transformer
from gpta_local.tasks.base import Evaluation

Probabilities = NDArray[np.float64]


def label_words(labels: Sequence[Label]) -> list[Example]:
    """What the card says of each label, as rows of that label: its name and, where it has one, its meaning."""
    said = [dict.fromkeys((label.name.replace("_", " "), label.meaning or label.name)) for label in labels]
    return [Example((text,), number) for number, texts in enumerate(said) for text in texts]


def evaluation(probabilities: Probabilities, rows: Sequence[Example]) -> Evaluation:
    """
    Args:
        probabilities: (n, c) of n rows.
    """
    targets = np.array([row.label for row in rows])
    predictions = probabilities.argmax(1)
    scores = (predictions == targets).astype(np.float64)
    losses = -np.log(probabilities[np.arange(len(targets)), targets].clip(min=1e-12))
    f1 = metrics.macro_f1(predictions.tolist(), targets.tolist(), probabilities.shape[1])
    summary = {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
    return Evaluation(scores, losses, np.log(probabilities.clip(min=1e-12)), targets, summary)


class Rival:
    """A sentence-transformers backbone that reads no further than the other arms, and a logistic regression.

    `seconds`: of training, which takes place when it is made.
    """

    def __init__(self, config: Config, rows: Sequence[Example], classes: int) -> None:
        """
        Args:
            rows: of each of so many classes at least one.
        """
        self.body = load_sentence_transformer(backbone_folder(config.downstream.backbone))
        if longest := config.downstream.max_length:
            self.body.max_seq_length = min(self.body.max_seq_length or longest, longest)
        self.classes = classes
        self._separator = f" {self.body.tokenizer.sep_token} "
        started = time.monotonic()
        self.fit(self.texts(rows), [row.label for row in rows], config.seed)
        self.seconds = time.monotonic() - started

    def fit(self, texts: Sequence[str], labels: Sequence[int], seed: int) -> None:
        raise NotImplementedError  # abstract: the subclasses say how

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """(n, c) of n texts."""
        raise NotImplementedError  # abstract: the subclasses say how

    def evaluate(self, rows: Sequence[Example]) -> Evaluation:
        return evaluation(self.probabilities(self.texts(rows)), rows)

    def texts(self, rows: Sequence[Example]) -> list[str]:
        return [self._separator.join(row.texts) for row in rows]


class EmbeddingsAndLogisticRegression(Rival):
    """The backbone as it is: what a user tries first."""

    def fit(self, texts: Sequence[str], labels: Sequence[int], seed: int) -> None:
        self._head = LogisticRegression().fit(self._embeddings(texts), labels)

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        found: Probabilities = self._head.predict_proba(self._embeddings(texts))
        return found

    def _embeddings(self, texts: Sequence[str]) -> Any:
        return self.body.encode(list(texts), show_progress_bar=False)


class SetFit(Rival):
    """SetFit (Tunstall et al. 2022), from the extra `setfit`: the backbone is trained on pairs of rows first."""

    def fit(self, texts: Sequence[str], labels: Sequence[int], seed: int) -> None:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments

        # made here, since SetFit's own way to load a model would unpickle a head that lies beside it
        self._model = SetFitModel(self.body, LogisticRegression())
        with tempfile.TemporaryDirectory() as folder:  # it is named, and nothing is saved there
            arguments = TrainingArguments(
                output_dir=folder,
                seed=seed,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            data = Dataset.from_dict({"text": list(texts), "label": list(labels)})
            Trainer(model=self._model, args=arguments, train_dataset=data).train()

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        found: Any = self._model.predict_proba(list(texts), as_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float64)
