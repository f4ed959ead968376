"""Classification of a text or of a pair of texts. Knows labels, the probe and accuracy.

Does not know where prefixes come from, nor how the model is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gpta_local import metrics
from gpta_local.config import Config
from gpta_local.data.examples import (
    Example,
    read_rows,
)
from gpta_local.data.splits import Splits, make_splits, scoring_order
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier, SequenceClassifier, is_sentence_backbone
from gpta_local.downstream.probe import ProbeScorer
from gpta_local.downstream.tokenization import EncodedRow
from gpta_local.errors import LOWER_RATES, ModelError, TrainingError
from gpta_local.metrics import Losses
from gpta_local.schema import DatasetCard, ExampleText, ScoredLabelTexts
from gpta_local.system.models import backbone_folder, multiplies_in_bf16, resolve_device
from gpta_local.tasks.base import Evaluation

LABEL_TEXT_SCALE = 10.0
"""Length of the weights with which a class starts; twice as much is 0.7 points worse (docs/LOG.md)."""

LEAN_ITERATIONS = 50


class ClassificationTask:
    """One label for a text (`text-classification`) or two texts (`text-pair-classification`).

    Reads and checks all data when it is made.

    Raises:
        DataError: the first problem of the data, with file and line.
        ModelError: the backbone's folder is not usable.
    """

    def __init__(self, config: Config) -> None:
        self.name: str = config.task
        self._config = config
        self._backbone = backbone_folder(config.downstream.backbone)
        self._rows = read_rows(config)
        self.labels = self._rows.labels
        self._splits = make_splits(
            self._rows, shots=config.data.shots, seed=config.seed, carve_few=config.search.regime == "online"
        )

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    def splits(self) -> Splits:
        return self._splits

    def texts(self) -> Iterator[str]:
        return self._rows.texts()

    def card(self) -> DatasetCard:
        """Built from the configuration's words and the label names; from no row."""
        card = self._config.card
        return DatasetCard(
            name=card.name or self.name,
            task=self.name,
            description=" ".join(card.description.split()),
            labels=self.labels,
        )

    def build(self, label_texts: Sequence[Mapping[str, str]]) -> DownstreamModel:
        """The model before training, its head started from the mean of all sets of label texts;
        a plain checkpoint has no sentence space to start it in and gets a random head."""
        model = self.build_plain()
        self._start(model, label_texts)
        return model

    def _start(self, model: DownstreamModel, label_texts: Sequence[Mapping[str, str]]) -> None:
        if isinstance(model, SentenceClassifier) and self.uses_label_texts:
            phrases = [[texts[name] for texts in label_texts] for name in self.label_names]
            model.start_from_label_texts(phrases, LABEL_TEXT_SCALE)

    def build_plain(self) -> DownstreamModel:
        """The model before training with a random head, the same for the same seed."""
        kind = SentenceClassifier if is_sentence_backbone(self._backbone) else SequenceClassifier
        with torch.random.fork_rng():
            torch.manual_seed(self._config.seed)
            model = kind(self._backbone, len(self.labels), self._config.downstream.max_length)
        room = model.tokenizer.room_for_prefix()
        if self._config.search.max_prefix_tokens > room:
            raise ModelError(
                f"search.max_prefix_tokens is {self._config.search.max_prefix_tokens}, but inputs of "
                f"{model.tokenizer.max_length} tokens have room for {room}",
                where="search.max_prefix_tokens",
                fix="Lower it, or raise downstream.max_length if the backbone allows",
            )
        return model.to(resolve_device(self._config.training.device, "training.device"))

    @property
    def uses_label_texts(self) -> bool:
        """Not for pairs: the words for a relation say nothing of the two texts, and cost up to five points
        (docs/LOG.md)."""
        return is_sentence_backbone(self._backbone) and self._config.data.text_pair is None

    def mixed(self, rows: Sequence[Example], texts: Sequence[ExampleText]) -> list[Example]:
        """The rows, repeated to about as many as the texts, and the texts."""
        numbers = {label.name: number for number, label in enumerate(self.labels)}
        return [*rows] * max(1, round(len(texts) / max(1, len(rows)))) + [
            Example((t.text,), numbers[t.label]) for t in texts
        ]

    def judged(self, model: DownstreamModel, texts: Sequence[ExampleText]) -> list[ExampleText]:
        """The texts with what a model says of them. One that has not been trained on them needs no cross-fitting; what
        it leans to by itself, with few rows, is taken out (`without_lean`)."""
        rows = model.tokenizer.encode(model.tokenizer.tokenise([(text.text,) for text in texts]), "")
        asked = torch.tensor([self.label_names.index(text.label) for text in texts])  # (n,)
        chances = without_lean(self.logits(model, rows).cpu().float(), asked).softmax(-1)  # (n, c)
        return [
            replace(text, probability=float(row[label]), kept=int(row.argmax()) == int(label))
            for text, row, label in zip(texts, chances, asked, strict=True)
        ]

    def own_label_texts(self) -> list[dict[str, str]]:
        """What the card itself says of each label: the names and, where labels have a meaning, those."""
        names = {label.name: label.name.replace("_", " ") for label in self.labels}
        meanings = {label.name: label.meaning or names[label.name] for label in self.labels}
        return [names, meanings] if meanings != names else [names]

    def choose_label_texts(
        self, sets: Sequence[dict[str, str]], size: int
    ) -> tuple[list[dict[str, str]], list[ScoredLabelTexts]]:
        """The sets whose mean starts the model, and the loss of each of `sets` alone. The card's own texts
        always do. Of `sets`, ranked one by one by the loss of the probe on at most `size` training rows, the
        first k join them where that lowers the loss by more than its standard error, for k = 1, 2, 4, …"""
        examples, own = self._splits.train, self.own_label_texts()
        if not sets:
            return own, []
        rows = self.scoring_rows(examples, size, self._config.seed)
        model = self.build_plain()
        scorer = self.scorer(model, examples)

        def losses(chosen: Sequence[Mapping[str, str]]) -> Losses:
            self._start(model, chosen)
            return scorer.losses("", rows)

        scored = sorted(
            (ScoredLabelTexts(texts, float(losses([texts]).mean())) for texts in sets), key=lambda s: s.loss
        )
        ranked = [dict(s.texts) for s in scored]
        before = losses(own)

        def bound(chosen: Sequence[Mapping[str, str]]) -> float:
            gain, standard_error = metrics.paired_mean(before - losses(chosen))
            return gain - standard_error

        joined = [own + ranked[: 2**k] for k in range(len(ranked).bit_length())]
        bounds = [bound(chosen) for chosen in joined]
        best = max(range(len(joined)), key=bounds.__getitem__)
        return (joined[best] if bounds[best] > 0 else own), scored

    def scoring_rows(self, examples: Sequence[Example], size: int, seed: int) -> list[int]:
        return scoring_order([example.label for example in examples], size, seed)

    def scorer(self, model: DownstreamModel, examples: Sequence[Example]) -> ProbeScorer:
        return ProbeScorer(model, examples, multiplies_in_bf16(self._config.training.precision, model.device))

    def evaluate(self, model: DownstreamModel, examples: Sequence[Example], prefix: str) -> Evaluation:
        """Accuracy, macro-F1 and cross-entropy of the model with a prefix.

        Raises:
            TrainingError: if a loss is not a number: the weights are not, after the last step.
        """
        rows = model.tokenizer.encode(model.tokenizer.tokenise([example.texts for example in examples]), prefix)
        logits = self.logits(model, rows)
        targets = torch.tensor([example.label for example in examples], device=logits.device)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none").cpu().double().numpy()
        if not np.isfinite(losses).all():
            raise TrainingError("a loss of the trained model is not a number", fix=LOWER_RATES)
        predictions = logits.argmax(-1)
        scores = (predictions == targets).cpu().double().numpy()
        f1 = metrics.macro_f1(predictions.tolist(), targets.tolist(), len(self.labels))
        summary = {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
        return Evaluation(scores, losses, logits.cpu().double().numpy(), targets.cpu().numpy(), summary)

    def logits(self, model: DownstreamModel, rows: Sequence[EncodedRow]) -> Tensor:
        """Logits (n, c) as the shipped model gives them."""
        return model.predict_logits(rows)


def without_lean(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (n, c) shifted by one number for each class, so that each class gets as much probability as any other when
    the texts of each label weigh alike: the priors are fitted as by Saerens, Latinne and Decaestecker (2002).

    Args:
        labels: (n,) the class that each text was asked for.
    """
    classes = logits.shape[1]
    weights = 1 / torch.bincount(labels, minlength=classes).clamp(min=1)[labels].float()  # (n,)
    weights = weights / weights.sum()
    for _ in range(LEAN_ITERATIONS):
        shares = (logits.softmax(-1) * weights.unsqueeze(1)).sum(0)  # (c,)
        logits = logits - (shares * classes).clamp(min=1e-6).log()
    return logits
