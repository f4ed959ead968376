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

from gpta_local import metrics
from gpta_local.benchmark.arms import Figures, own_figures
from gpta_local.config import Config
from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits
from gpta_local.system.models import backbone_folder, load_sentence_transformer
from gpta_local.tasks.base import Evaluation


def setfit(config: Config, splits: Splits, classes: int) -> Figures:
    """Train and measure. The seconds of the training are those of pairs, backbone and head."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    body = load_sentence_transformer(backbone_folder(config.downstream.backbone))
    if longest := config.downstream.max_length:
        body.max_seq_length = min(body.max_seq_length or longest, longest)
    # made here, since SetFit's own way to load a model would unpickle a head that lies beside it
    model = SetFitModel(body, LogisticRegression())
    started = time.monotonic()
    separator = f" {body.tokenizer.sep_token} "

    def texts(examples: Sequence[Example]) -> list[str]:
        return [separator.join(example.texts) for example in examples]

    with tempfile.TemporaryDirectory() as folder:  # it is named, and nothing is saved there
        arguments = TrainingArguments(
            output_dir=folder,
            seed=config.seed,
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        )
        rows = Dataset.from_dict({"text": texts(splits.train), "label": [example.label for example in splits.train]})
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    seconds = time.monotonic() - started

    def evaluate(examples: Sequence[Example]) -> Evaluation:
        probabilities: Any = model.predict_proba(texts(examples), as_numpy=True, show_progress_bar=False)
        targets = np.array([example.label for example in examples])
        predictions = probabilities.argmax(1)
        scores = (predictions == targets).astype(np.float64)
        losses = -np.log(probabilities[np.arange(len(targets)), targets].clip(min=1e-12))
        f1 = metrics.macro_f1(predictions.tolist(), targets.tolist(), classes)
        figures = {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
        return Evaluation(scores, losses, figures)

    started = time.monotonic()
    tested, fitted = evaluate(splits.test), evaluate(splits.fitted)
    return own_figures(tested, fitted, "", seconds, time.monotonic() - started)
