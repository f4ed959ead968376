"""The product as ONNX: a graph and a tokenizer file, for ONNX Runtime and `tokenizers` without torch.

Knows loaded products and the exporter of torch; no rows of data.

Shapes: b rows, s tokens, c classes; b and s may be any.
"""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gpta_local.downstream.loaded import LoadedProduct, LoadedTorch, Rows
from gpta_local.downstream.product import GRAPH_FILE, PRODUCT_FILE, TOKENIZER_FILE, Product
from gpta_local.errors import ModelError, first_line
from gpta_local.record.folder import check_folder, writing
from gpta_local.system.extras import extra_module
from gpta_local.system.files import as_umask_says, whole_or_nothing
from gpta_local.system.manifests import write_manifest

OPSET = 18
PARITY_ROWS = 1000
BATCH = 32
MEAN_WORDS = 16


@dataclass(frozen=True, slots=True)
class Parity:
    """How the graph compares with the folder that it was made of. `difference`: the largest of a logit."""

    rows: int
    same_labels: int
    difference: float


def export_onnx(product: Product, target: Path, *, int8: bool = False) -> Parity:
    """Write a folder with the graph, its tokenizer with the prefix inside, and the record, whole or not at all; and
    compare it with the product on 1,000 rows of made-up words.

    The graph takes `input_ids`, `attention_mask` and, if the backbone has them, `token_type_ids`, each (b, s), and
    gives `logits` and `probabilities`, each (b, c).

    Args:
        int8: make the weights of its matrices 8-bit integers, a quarter of the size (dynamic quantisation).

    Raises:
        ModelError: the backbone cannot be exported.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extra_module(package, "onnx")
    check_folder(target)
    loaded = product.load(stock=True)
    if not isinstance(loaded, LoadedTorch):
        raise ModelError("this is an ONNX folder already", where=str(product.folder), fix="Export the run")
    with writing(target), whole_or_nothing(target) as partial:
        tokenizer = _write_tokenizer(product.tokenizer_folder, partial, loaded)
        rows = made_up_rows(tokenizer, pair=product.record["columns"]["text_pair"] is not None)
        with _exporting(product.folder):
            _write_graph(partial / GRAPH_FILE, loaded, rows[:2], product.temperature)
            if int8:
                _quantise(partial / GRAPH_FILE)
        record = product.record | {"library": "onnx", "int8": int8}
        (partial / PRODUCT_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        parity = _compare(loaded, Product(partial, record).load(), rows)
        write_manifest(partial)
        as_umask_says(partial)
    return parity


def made_up_rows(tokenizer: Tokenizer, *, pair: bool) -> list[tuple[str, ...]]:
    """Rows of random words of the vocabulary, from one word to more than the model takes, the shortest first."""
    rng = random.Random("made-up")
    words = sorted(word for word in tokenizer.get_vocab(with_added_tokens=False) if word.isalpha() and word.isascii())

    def text() -> str:
        return " ".join(rng.choices(words, k=1 + int(rng.expovariate(1 / MEAN_WORDS))))

    rows = [(text(), text()) if pair else (text(),) for _ in range(PARITY_ROWS - 1)]
    longest = " ".join(rng.choices(words, k=(tokenizer.truncation or {"max_length": 512})["max_length"]))
    return [*sorted(rows, key=lambda row: sum(map(len, row))), (longest, longest) if pair else (longest,)]


def _write_tokenizer(source: Path, target: Path, loaded: LoadedTorch) -> Tokenizer:
    """The product's tokenizer, which has the prefix inside, with what its configuration says besides: how long rows may
    be, and how they are padded."""
    tokenizer = Tokenizer.from_file(str(source / TOKENIZER_FILE))
    stock = loaded.tokenizer
    tokenizer.enable_truncation(stock.model_max_length)
    tokenizer.enable_padding(pad_id=stock.pad_token_id, pad_token=stock.pad_token)
    tokenizer.save(str(target / TOKENIZER_FILE))
    return tokenizer


def _write_graph(path: Path, loaded: LoadedTorch, rows: Rows, temperature: float) -> None:
    import torch
    from torch import Tensor, nn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.model

        def forward(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
            logits = loaded.forward(dict(zip(names, arguments, strict=True)))
            return logits, (logits / temperature).softmax(-1)

    loaded.model.cpu()
    inputs = loaded.inputs(rows)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        Graph().eval(),
        tuple(inputs[name] for name in names),
        path,
        input_names=names,
        output_names=["logits", "probabilities"],
        dynamic_shapes=[(dynamic,) * len(names)],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantise(path: Path) -> None:
    quantization = extra_module("onnxruntime.quantization", "onnx")
    whole = path.with_name("whole.onnx")
    path.replace(whole)
    quantization.quantize_dynamic(whole, path, weight_type=quantization.QuantType.QInt8, per_channel=True)
    whole.unlink()


def _compare(loaded: LoadedProduct, exported: LoadedProduct, rows: Sequence[tuple[str, ...]]) -> Parity:
    same, difference = 0, 0.0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        wanted, found = loaded.logits(batch), exported.logits(batch)
        same += int((wanted.argmax(1) == found.argmax(1)).sum())
        difference = max(difference, float(np.abs(wanted - found).max()))
    return Parity(len(rows), same, difference)


@contextmanager
def _exporting(folder: Path) -> Iterator[None]:
    """Notes of the libraries stay away from the user, and what they raise is told in our words."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as exc:  # many kinds
        raise ModelError(f"this backbone cannot be exported: {first_line(exc)}", where=str(folder)) from exc
    finally:
        logging.disable(logging.NOTSET)
