"""The downstream model: backbone + linear head. Knows modules and batches.

Does not know prefixes as text (they come spliced into token ids), files of data or the assistant.

Shapes: b rows, s tokens, d features, c classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpta_local.downstream.tokenization import EncodedRow, PrefixTokenizer
from gpta_local.errors import ModelError, first_line
from gpta_local.system import models

EVALUATION_BATCH, LARGE_BATCH = 16, 64
"""Rows. On a CPU fewer are faster: less padding, and what lies between two layers stays in the cache (docs/LOG.md)."""
WINDOW = 1 << 15
"""Rows whose features are held at once where only logits are wanted."""
ENCODER_FOLDER = "0_Transformer"
"""The encoder of a sentence-transformers product lies below it: `pipeline` of transformers would take one at its top
for a whole classifier, and put a random head on it."""


class DownstreamModel(nn.Module):
    """A network that turns token ids into features (b, d), and a linear head to logits (b, c)."""

    network: nn.Module
    head: nn.Linear
    tokenizer: PrefixTokenizer
    _stand_ins: Mapping[str, Tensor] = {}
    _places: Sequence[tuple[dict[str, Any], str, str]] = ()
    """Of the network's parameters: the mapping that holds one, its key in there, and its name."""

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the head reads: (b, d)."""
        raise NotImplementedError  # abstract: SentenceClassifier and SequenceClassifier say how

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Logits (b, c)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def run_network(self, inputs: dict[str, Tensor]) -> Any:
        """The output of `network`."""
        places = self._places if self._stand_ins else ()
        own = [holder[key] for holder, key, _ in places]
        for holder, key, name in places:
            holder[key] = self._stand_ins[name]
        try:
            return self.network(**inputs)
        finally:
            for (holder, key, _), parameter in zip(places, own, strict=True):
                holder[key] = parameter

    @contextmanager
    def in_place_of_weights(self, stand_ins: Mapping[str, Tensor]) -> Iterator[None]:
        """Run `network` with these tensors in place of its parameters of these names. As
        `torch.func.functional_call`, which looks for all places anew at each call."""
        if not self._places:
            names = {id(parameter): name for name, parameter in self.network.named_parameters()}
            holders = [module._parameters for module in self.network.modules()]
            found = [(holder, key, p) for holder in holders for key, p in holder.items() if p is not None]
            self._places = [(holder, key, names[id(p)]) for holder, key, p in found]
        self._stand_ins = stand_ins
        try:
            yield
        finally:
            self._stand_ins = {}

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """The network's arguments, each (b, s): rows padded to the longest, on the model's device."""
        length = max(len(row.input_ids) for row in rows)
        pad = self.tokenizer.tokenizer.pad_token_id

        def padded(sequences: Sequence[list[int]], filler: int) -> Tensor:
            return torch.tensor([ids + [filler] * (length - len(ids)) for ids in sequences], device=self.device)

        inputs = {
            "input_ids": padded([row.input_ids for row in rows], pad),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        }
        if "token_type_ids" in self.tokenizer.tokenizer.model_input_names:
            inputs["token_type_ids"] = padded([row.token_type_ids for row in rows], 0)
        return inputs

    @torch.inference_mode()
    def all_features(self, rows: Sequence[EncodedRow], size: int | None = None) -> Tensor:
        """Features (n, d) of n rows in their order, in float32, without dropout.

        Args:
            size: rows of a batch, where it must stay as it is: in bfloat16 another gives other digits.
        """
        was_training = self.training
        self.eval()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        parts, size = [], size or (LARGE_BATCH if self.device.type == "cuda" else EVALUATION_BATCH)
        for start in range(0, len(order), size):
            batch = self.collate([rows[i] for i in order[start : start + size]])
            parts.append(self.features(batch).float())
        self.train(was_training)
        features = torch.cat(parts)
        return features[torch.tensor(order, device=features.device).argsort()]

    @torch.inference_mode()
    def predict_logits(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Logits (n, c) of n rows in their order."""
        starts = range(0, len(rows), WINDOW)
        return torch.cat([self.head(self.all_features(rows[start : start + WINDOW])) for start in starts])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Features (n, d) of short texts by themselves, scaled to unit length."""
        features = self.all_features(self.tokenizer.encode(self.tokenizer.tokenise([(text,) for text in texts]), ""))
        return nn.functional.normalize(features, dim=-1)

    @torch.no_grad()
    def average_with(self, other: DownstreamModel, share: float) -> None:
        """Put so much of another model with the same start into each weight: between two fine-tunings of one model lies
        one that keeps most of what both have learnt (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").

        Args:
            share: of `other`, between 0 and 1.
        """
        theirs = dict(other.named_parameters())
        for name, parameter in self.named_parameters():
            parameter.lerp_(theirs[name], share)

    def input_embeddings(self) -> nn.Module:
        """The word embeddings, for freezing."""
        embeddings: nn.Module = self.network.get_input_embeddings()  # type: ignore[operator]  # a transformers model
        return embeddings

    def save(self, folder: Path, prefix: str, label_names: Sequence[str]) -> None:
        """Write a folder that the stock library loads, with the prefix in its tokenizer."""
        raise NotImplementedError  # abstract: see features


class SentenceClassifier(DownstreamModel):
    """A sentence-transformers backbone: mean pooling, unit length, linear head."""

    def __init__(self, folder: Path, classes: int, max_length: int | None) -> None:
        super().__init__()
        from transformers import AutoModel

        _check_sentence_modules(folder)
        config = _read_json(folder / "sentence_bert_config.json")
        self.network = _from_pretrained(AutoModel, folder)
        width: int = self.network.config.hidden_size  # type: ignore[assignment, union-attr]  # a transformers model
        self.head = nn.Linear(width, classes)
        self.label_rows: list[Sequence[EncodedRow]] = []
        self.tokenizer = load_tokenizer(folder, self.network.config, max_length or config.get("max_seq_length"))

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.run_network(inputs).last_hidden_state.float()  # (b, s, d)
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (b, s, 1)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)  # (b, d)
        return nn.functional.normalize(pooled, dim=-1)

    @torch.no_grad()
    def start_from_label_texts(self, label_texts: Sequence[Sequence[str]], scale: float) -> None:
        """Set the head's weights to those of `label_weights`, bias 0.

        Args:
            label_texts: for each of the c classes, one or more phrases, of all classes as many.
            scale: length of each class's weight vector.
        """
        encode, tokenise = self.tokenizer.encode, self.tokenizer.tokenise
        self.label_rows = [encode(tokenise([(text,) for text in phrases]), "") for phrases in label_texts]
        self._scale = scale
        self.head.weight.copy_(self.label_weights())
        self.head.bias.zero_()

    def label_weights(self, chosen: Sequence[int] | None = None) -> Tensor:
        """The weights (c, d) of a head that the label texts make: the mean of each class's embeddings, at the scale
        that was given. Of all texts without dropout and gradient, or of the chosen ones as in a training step."""
        if chosen is None:
            means = torch.stack([self.all_features(rows).mean(0) for rows in self.label_rows])
        else:
            features = self.features(self.collate([rows[i] for rows in self.label_rows for i in chosen]))
            means = features.float().view(len(self.label_rows), len(chosen), -1).mean(1)
        return nn.functional.normalize(means, dim=-1) * self._scale

    @torch.no_grad()
    def join_label_weights(self) -> None:
        """Make the head the mean of what it is and of the label texts' as they are embedded now."""
        self.head.weight.add_(self.label_weights()).div_(2)
        self.head.bias.div_(2)

    def save(self, folder: Path, prefix: str, label_names: Sequence[str]) -> None:
        from safetensors.torch import save_model

        encoder = folder / ENCODER_FOLDER
        encoder.mkdir()
        _name_labels(self.network.config, label_names)
        self.network.save_pretrained(encoder)  # type: ignore[operator]  # a transformers model
        self.tokenizer.save(encoder, prefix)
        d, c = self.head.in_features, self.head.out_features
        modules = {
            "sentence_transformers.models.Transformer": (
                ENCODER_FOLDER,
                "sentence_bert_config.json",
                {"max_seq_length": self.tokenizer.max_length, "do_lower_case": False},
            ),
            "sentence_transformers.models.Pooling": (
                "1_Pooling",
                "config.json",
                {"word_embedding_dimension": d, "pooling_mode_mean_tokens": True},
            ),
            "sentence_transformers.models.Normalize": ("2_Normalize", None, {}),
            "sentence_transformers.models.Dense": (
                "3_Dense",
                "config.json",
                {
                    "in_features": d,
                    "out_features": c,
                    "bias": True,
                    "activation_function": "torch.nn.modules.linear.Identity",
                },
            ),
        }
        for _, (path, file, content) in modules.items():
            (folder / path).mkdir(exist_ok=True)
            if file:
                _write_json(folder / path / file, content)
        listing = [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (kind, (path, _, _)) in enumerate(modules.items())
        ]
        _write_json(folder / "modules.json", listing)
        dense = nn.Module()
        dense.linear = self.head
        save_model(dense, str(folder / "3_Dense" / "model.safetensors"))


class SequenceClassifier(DownstreamModel):
    """A plain encoder checkpoint with the head of its own architecture
    (`AutoModelForSequenceClassification`); the head's last linear layer is `head`."""

    def __init__(self, folder: Path, classes: int, max_length: int | None) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        self.network = _from_pretrained(AutoModelForSequenceClassification, folder, num_labels=classes)
        heads = [
            module
            for _, module in self.network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == classes
        ]
        if not heads:
            raise ModelError(
                "the architecture has no linear classification head",
                where=f"downstream.backbone ({folder})",
                fix="Use an encoder such as BERT, RoBERTa, DeBERTa, MPNet, ELECTRA or ModernBERT",
            )
        self.head = heads[-1]
        self.tokenizer = load_tokenizer(folder, self.network.config, max_length)

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        with self._head_inputs() as seen:
            self.run_network(inputs)
        return seen[-1]

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.run_network(inputs).logits
        return logits

    def save(self, folder: Path, prefix: str, label_names: Sequence[str]) -> None:
        _name_labels(self.network.config, label_names)
        self.network.save_pretrained(folder)  # type: ignore[operator]  # a transformers model
        self.tokenizer.save(folder, prefix)

    @contextmanager
    def _head_inputs(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            yield seen
        finally:
            handle.remove()


def is_sentence_backbone(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def load_tokenizer(folder: Path, config: Any, max_length: int | None) -> PrefixTokenizer:
    """The backbone's fast tokenizer, limited by the model's positions and `max_length`."""
    try:
        tokenizer = models.load_tokenizer(folder)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelError("the tokenizer cannot be loaded", where=f"downstream.backbone ({folder})") from exc
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers 5 makes an empty one without files
        raise ModelError("no tokenizer in the folder", where=f"downstream.backbone ({folder})")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer must be a fast one (tokenizer.json) with a padding token",
            where=f"downstream.backbone ({folder})",
        )
    offset = config.pad_token_id + 1 if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
    positions = getattr(config, "max_position_embeddings", None) or 512
    limits = [positions - offset, tokenizer.model_max_length, max_length]
    return PrefixTokenizer(tokenizer, min(limit for limit in limits if limit))


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> nn.Module:
    from gpta_local.downstream.lean import make_lean

    try:
        network: nn.Module = models.load_pretrained(kind, folder, dtype=torch.float32, **options)
        make_lean(network)
    except Exception as exc:  # a broken folder raises OSError, ValueError, KeyError, SafetensorError, RuntimeError …
        raise ModelError(
            f"the model cannot be loaded: {first_line(exc)}", where=f"downstream.backbone ({folder})"
        ) from exc
    return network


def _check_sentence_modules(folder: Path) -> None:
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in _read_json(folder / "modules.json")]
    except (TypeError, KeyError, AttributeError) as exc:
        raise ModelError("broken list of modules in the model folder", where=str(folder / "modules.json")) from exc
    pooling = _read_json(folder / "1_Pooling" / "config.json") if (folder / "1_Pooling").is_dir() else {}
    mean = pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"
    if not mean or kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise ModelError(
            f"sentence-transformers modules {kinds} with this pooling are not supported",
            where=f"downstream.backbone ({folder})",
            fix="Use a backbone with mean pooling, or point to the plain encoder checkpoint",
        )


def _name_labels(config: Any, label_names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: number for number, name in enumerate(label_names)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ModelError("broken JSON file in the model folder", where=str(path)) from exc


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
