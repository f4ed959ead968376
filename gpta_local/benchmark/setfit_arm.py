"""The arm of SetFit (Tunstall et al. 2022), from the extra `setfit`, with its own defaults. Knows rows and one
library; nothing of prefixes.

SetFit has no pairs of texts: those are joined by the tokenizer's separator.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

from gpta_local import metrics
from gpta_local.config import Config
from gpta_local.data.examples import Example
from gpta_local.system.models import backbone_folder, load_sentence_transformer
from gpta_local.tasks.base import Evaluation


class SetFit:
    """A model that is trained on rows when it is made. `seconds`: of pairs, backbone and head."""

    def __init__(self, config: Config, rows: Sequence[Example], classes: int) -> None:
        body = load_sentence_transformer(backbone_folder(config.downstream.backbone))
        if longest := config.downstream.max_length:
            body.max_seq_length = min(body.max_seq_length or longest, longest)
        # made here, since SetFit's own way to load a model would unpickle a head that lies beside it
        self._model = SetFitModel(body, LogisticRegression())
        self._separator, self._classes = f" {body.tokenizer.sep_token} ", classes
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:  # it is named, and nothing is saved there
            arguments = TrainingArguments(
                output_dir=folder,
                seed=config.seed,
                report_to="none",
                save_strategy="no",
                show_progress_bar=False,
            )
            data = Dataset.from_dict({"text": self._texts(rows), "label": [row.label for row in rows]})
            Trainer(model=self._model, args=arguments, train_dataset=data).train()
        self.seconds = time.monotonic() - started

    def evaluate(self, rows: Sequence[Example]) -> Evaluation:
        probabilities: Any = self._model.predict_proba(self._texts(rows), as_numpy=True, show_progress_bar=False)
        targets = np.array([row.label for row in rows])
        predictions = probabilities.argmax(1)
        scores = (predictions == targets).astype(np.float64)
        losses = -np.log(probabilities[np.arange(len(targets)), targets].clip(min=1e-12))
        f1 = metrics.macro_f1(predictions.tolist(), targets.tolist(), self._classes)
        figures = {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
        return Evaluation(scores, losses, figures)

    def _texts(self, rows: Sequence[Example]) -> list[str]:
        return [self._separator.join(row.texts) for row in rows]
