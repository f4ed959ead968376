"""Classification of a text or of a pair of texts. Knows labels, the probe and accuracy.

Does not know where prefixes come from, nor how the model is trained.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpta_local import metrics
from gpta_local.config import Config, DataConfig
from gpta_local.data import readers
from gpta_local.data.readers import Example, Record, Splits
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier, SequenceClassifier, is_sentence_backbone
from gpta_local.downstream.tokenization import EncodedRow, Encodings, TokenisedTexts
from gpta_local.errors import DataError, ModelError, TrainingError
from gpta_local.knowledge.prefixes import scoring_order
from gpta_local.schema import DatasetCard, Label, ScoredLabelTexts
from gpta_local.system.models import backbone_folder, multiplies_in_bf16, resolve_device
from gpta_local.tasks.base import Evaluation, Losses

FOLDS = 4
PROBE_L2 = 1e-4
"""Weight of the squared distance to the model's own head."""
PROBE_ITERATIONS = 40
LOWER = "Lower the learning rates of `training`, or set training.precision to fp32"
LONG_NAME = 6
"""Words from which on a label's name looks like the text of a row."""
LONGEST_SHOWN = 24
"""Characters of an unknown label that a message repeats."""


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
        columns = text_columns(config.data)
        records = readers.read_records(config.data.train)
        check_columns(records[0], [*columns, config.data.label])
        self.labels = _labels(config, records)
        self._splits = readers.make_splits(
            read_examples(records, columns, config.data.label, self.label_names),
            self._read(config.data.validation, columns),
            self._read(config.data.test, columns),
            self.label_names,
            shots=config.data.shots,
            seed=config.seed,
            carve_few=config.search.regime == "online",
        )

    @property
    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    def splits(self) -> Splits:
        return self._splits

    def texts(self) -> Iterator[str]:
        """Read from the files once more: rows that are not among the shots are not kept."""
        config = self._config.data
        for path in filter(None, (config.train, config.validation, config.test)):
            for record in readers.read_records(path):
                yield from read_texts(record, text_columns(config))

    def card(self) -> DatasetCard:
        """Built from the configuration's words, the label names and row counts; from no row."""
        card, splits = self._config.card, self._splits
        return DatasetCard(
            name=card.name or self.name,
            task=self.name,
            description=" ".join(card.description.split()),
            labels=self.labels,
            training_rows=len(splits.train),
            validation_rows=len(splits.validation),
            test_rows=len(splits.test),
        )

    def build(self, label_texts: Sequence[Mapping[str, str]]) -> DownstreamModel:
        """The model before training, its head started from the mean of all sets of label texts;
        a plain checkpoint has no sentence space to start it in and gets a random head."""
        model = self.build_plain()
        self._start(model, label_texts)
        return model

    def _start(self, model: DownstreamModel, label_texts: Sequence[Mapping[str, str]]) -> None:
        if isinstance(model, SentenceClassifier):
            phrases = [[texts[name] for texts in label_texts] for name in self.label_names]
            model.start_from_label_texts(phrases, self._config.downstream.label_text_scale)

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
        return is_sentence_backbone(self._backbone)

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
            raise TrainingError("a loss of the trained model is not a number", fix=LOWER)
        predictions = logits.argmax(-1)
        scores = (predictions == targets).cpu().double().numpy()
        f1 = metrics.macro_f1(predictions.tolist(), targets.tolist(), len(self.labels))
        return Evaluation(
            scores, losses, {"accuracy": float(scores.mean()), "macro_f1": f1, "loss": float(losses.mean())}
        )

    def logits(self, model: DownstreamModel, rows: Sequence[EncodedRow]) -> Tensor:
        """Logits (n, c) as the shipped model gives them."""
        return model.predict_logits(rows)

    def _read(self, path: str | None, columns: Sequence[str]) -> list[Example] | None:
        if path is None:
            return None
        records = readers.read_records(path)
        check_columns(records[0], [*columns, self._config.data.label])
        return read_examples(records, columns, self._config.data.label, self.label_names)


class ProbeScorer:
    """L(θ, prefix) row by row: the cross-validated loss of a linear probe on θ's frozen features.

    The probe starts at the model's own head and is pulled towards it (L2), so with few rows it
    measures what the head already knows, with more rows what it could learn.

    Features are computed in bfloat16 where `bf16` says so: that moves a gain by about 0.001 nats, a
    thirtieth of its standard error with 56 rows, and takes a third of the time.
    """

    def __init__(self, model: DownstreamModel, examples: Sequence[Example], bf16: bool) -> None:
        self._model, self._bf16 = model, bf16
        self._texts = [example.texts for example in examples]
        self._labels = torch.tensor([example.label for example in examples], device=model.device)
        self._tokens: dict[int, tuple[Encodings, Encodings]] = {}
        self._features: dict[str, Tensor] = {}

    def losses(self, prefix: str, rows: Sequence[int]) -> Losses:
        """Out-of-fold cross-entropy (n,) of the given rows. The folds depend on rows alone, so that
        losses of two prefixes on the same rows are paired.

        Raises:
            TrainingError: if a loss is not a number.
        """
        index = torch.tensor(rows, device=self._labels.device)
        losses = probe_losses(self._features_of(prefix, rows), self._labels[index], self._model.head)
        if not torch.isfinite(losses).all():
            raise TrainingError("a scoring loss is not a number", fix=LOWER)
        out: Losses = losses.cpu().double().numpy()
        return out

    def _features_of(self, prefix: str, rows: Sequence[int]) -> Tensor:
        """Features (n, d); those of rows seen before, in an earlier heat, are kept. The rows of a
        heat begin with those of the heat before."""
        known = self._features.get(prefix)
        start = 0 if known is None else len(known)
        if start < len(rows):
            fresh = self._tokenised(rows[start:])
            with torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._bf16):
                features = self._model.all_features(self._model.tokenizer.encode(fresh, prefix))
            known = features if known is None else torch.cat([known, features])
            self._features[prefix] = known
        assert known is not None  # one of the two branches has set it
        return known[: len(rows)]

    def _tokenised(self, rows: Sequence[int]) -> TokenisedTexts:
        """Each row is tokenised once; most rows of large data never are."""
        new = [row for row in rows if row not in self._tokens]
        tokens = self._model.tokenizer.tokenise([self._texts[row] for row in new])
        self._tokens.update(zip(new, zip(tokens.alone, tokens.following, strict=True), strict=True))
        alone, following = zip(*(self._tokens[row] for row in rows), strict=True)
        return TokenisedTexts(list(alone), list(following))


def probe_losses(features: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """Cross-validated cross-entropy (n,) of a linear probe, all k folds fitted at once by L-BFGS.

    Args:
        features: (n, d).
        labels: (n,) class numbers.
        head: where the probe starts, and what it is pulled to.
    """
    # Dealt to the folds in turn, class after class: folds of equal size, the classes spread over them.
    fold = torch.empty_like(labels)  # (n,)
    fold[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % FOLDS
    kept = (fold.unsqueeze(0) != torch.arange(FOLDS, device=labels.device).unsqueeze(1)).float()  # (k, n)
    start = torch.cat([head.weight, head.bias.unsqueeze(1)], dim=1).detach().float()  # (c, d + 1)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)  # (n, d + 1)
    shift = torch.zeros(FOLDS, *start.shape, device=start.device, requires_grad=True)  # (k, c, d + 1)
    targets = labels.expand(FOLDS, -1)  # (k, n)

    def row_losses() -> Tensor:
        logits = inputs @ (start + shift).transpose(1, 2)  # (k, n, c)
        return nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (k, n)

    optimizer = torch.optim.LBFGS([shift], max_iter=PROBE_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = ((row_losses() * kept).sum(1) / kept.sum(1).clamp(min=1)).sum() + PROBE_L2 * shift.square().sum()
        objective.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return objective

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types here
    with torch.no_grad():
        return row_losses().gather(0, fold.unsqueeze(0)).squeeze(0)


def text_columns(config: DataConfig) -> list[str]:
    return [config.text] if config.text_pair is None else [config.text, config.text_pair]


def check_columns(record: Record, columns: Sequence[str]) -> None:
    """Raise a DataError that names the nearest column if one is not there."""
    for column in columns:
        if column not in record.values:
            known = [str(name) for name in record.values]
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise DataError(
                f"no column {column!r}",
                where=record.where,
                fix=f"{hint}The columns are: {', '.join(known)[:200]}. Set data.text, data.text_pair and data.label",
            )


def read_texts(record: Record, columns: Sequence[str]) -> tuple[str, ...]:
    """The row's texts, checked: strings with at least one visible character."""
    check_columns(record, columns)
    texts = []
    for column in columns:
        value = record.values[column]
        if not isinstance(value, str):
            raise DataError(f"{column!r} is {type(value).__name__}, not text", where=record.where)
        if not value.strip():
            raise DataError(f"{column!r} is empty", where=record.where, fix="Remove the row or fill it in")
        _check_unicode(value, column, record.where)
        texts.append(value)
    return tuple(texts)


def read_examples(
    records: Sequence[Record], columns: Sequence[str], label: str, label_names: Sequence[str]
) -> list[Example]:
    """Checked rows. Raises a DataError at the first row that has no text or an unknown label."""
    numbers = {name: number for number, name in enumerate(label_names)}
    examples = []
    for record in records:
        texts = read_texts(record, columns)
        name = _label_name(record, label)
        if name not in numbers:
            near = difflib.get_close_matches(name, label_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else "Is data.label the right column? "
            raise DataError(  # a long value is not shown: it can be the text of a row
                f"unknown label {name!r}" if near or len(name) <= LONGEST_SHOWN else "unknown label",
                where=record.where,
                fix=f"{hint}The labels are: {', '.join(label_names)[:200]}",
            )
        examples.append(Example(texts, numbers[name]))
    return examples


def _labels(config: Config, records: Sequence[Record]) -> tuple[Label, ...]:
    """The labels of the card, or those of the training rows in alphabetical order."""
    given = config.card.labels
    if given is None:
        found = Counter(_label_name(record, config.data.label) for record in records)
        if len(found) > 200 or len(found) > max(2, len(records) // 2):  # the assistant is told their names
            raise DataError(
                f"{len(found)} different labels in {len(records)} rows",
                where=config.data.train,
                fix="Is data.label the right column? If so, list them in card.labels",
            )
        if any(len(name.split()) >= LONG_NAME for name in found):
            raise DataError(  # they would go to the assistant
                f"a label has {LONG_NAME} words or more",
                where=config.data.train,
                fix="Is data.label the right column? If so, list the labels in card.labels",
            )
        names: list[str] = sorted(found)
        meanings: Mapping[str, str] = {}
    else:
        names = [name.strip() for name in given]
        meanings = {name.strip(): text for name, text in given.items()} if isinstance(given, dict) else {}
    if len(names) < 2:
        raise DataError(
            f"only one class, {names[0]!r}" if names else "no class",
            where=config.data.train if given is None else "card.labels",
            fix="A classifier needs at least two",
        )
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError("a label is empty or given twice", where="card.labels")
    return tuple(Label(name, " ".join(meanings.get(name, "").split())) for name in names)


def _label_name(record: Record, column: str) -> str:
    check_columns(record, [column])
    value: Any = record.values[column]
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        raise DataError(f"{column!r} is empty or not a label", where=record.where)
    _check_unicode(str(value), column, record.where)
    return str(value).strip()


def _check_unicode(value: str, column: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise DataError(f"{column!r} is not valid Unicode (half of a surrogate pair)", where=where) from exc
