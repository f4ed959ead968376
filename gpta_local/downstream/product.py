"""The product on disk: a folder that stock libraries load, the prefix inside its tokenizer.

Writes it whole or not at all, and reads it back for `predict` and `evaluate` with nothing but the
stock libraries, so that what users get elsewhere is what these commands show.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpta_local import __version__
from gpta_local.config import DataConfig
from gpta_local.downstream.loaded import WINDOW, LoadedOnnx, LoadedProduct, LoadedSentences, LoadedSequences, Rows
from gpta_local.downstream.model import ENCODER_FOLDER, DownstreamModel, SentenceClassifier
from gpta_local.errors import InputError, ModelError, first_line
from gpta_local.metrics import softmax
from gpta_local.record.folder import check_folder, writing
from gpta_local.system.extras import extra_module
from gpta_local.system.files import as_umask_says, whole_or_nothing
from gpta_local.system.manifests import verify_manifest, write_manifest
from gpta_local.system.models import load_pretrained, load_sentence_transformer, load_tokenizer
from gpta_local.system.pickles import find_pickles

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PRODUCT_FILE = "gpta.json"
"""What a stock library does not need but `predict` and `evaluate` do: labels, columns, prefix."""
CARD_FILE = "README.md"
GRAPH_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
PROBES = ("a", "The quick brown fox jumps over the lazy dog.", "Ünïcödé, 12,5 % -- and (punctuation)!", "word " * 400)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable label of a row, and the probability of each label, by name."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class Product:
    """A product read back: text rows → logits (n, c)."""

    folder: Path
    record: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        return list(self.record["labels"])

    @property
    def temperature(self) -> float:
        """By which logits are divided before they become probabilities; 1 where there was nothing to fit it on."""
        return float(self.record.get("temperature") or 1.0)

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is, with the prefix inside."""
        encoder = self.folder / ENCODER_FOLDER
        return encoder if encoder.is_dir() else self.folder

    def sentence_transformer(self) -> SentenceTransformer:
        """The product as sentence-transformers loads it; `encode` gives logits.

        Raises:
            ModelError: it cannot be loaded, or is a plain transformers folder.
        """
        if self.record["library"] != "sentence-transformers":
            raise ModelError(
                "the model is a transformers folder, not one of sentence-transformers",
                where=str(self.folder),
                fix="Load it with AutoModelForSequenceClassification",
            )
        with _loading(self.folder):
            return load_sentence_transformer(self.folder)

    def predict(self, rows: Rows) -> Iterator[Prediction]:
        """Label rows of one or two texts, in their order."""
        for logits in self.logits(rows):
            yield from self.predictions(logits)

    def predictions(self, logits: NDArray[np.float64]) -> Iterator[Prediction]:
        """What logits (b, c) say: the one place where they become probabilities."""
        for row in softmax(logits, self.temperature):
            probabilities = {name: round(float(p), 6) for name, p in zip(self.labels, row, strict=True)}
            yield Prediction(self.labels[int(row.argmax())], probabilities)

    def logits(self, texts: Rows) -> Iterator[NDArray[np.float64]]:
        """Logits (n, c) of the rows in their order, a window at a time."""
        model = self.load()
        for start in range(0, len(texts), WINDOW):
            yield model.logits_of_window(texts[start : start + WINDOW])

    def load(self, *, stock: bool = False) -> LoadedProduct:
        """The product in memory, as the stock library loads it, but faster on a CPU.

        Args:
            stock: no faster, for what reads the network itself.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self.record["library"] == "sentence-transformers":
            sentences = LoadedSentences(self.sentence_transformer())
            return sentences if stock else sentences.lean()
        if self.record["library"] == "onnx":
            runtime = extra_module("onnxruntime", "onnx")
            with _loading(self.folder):
                session = runtime.InferenceSession(str(self.folder / GRAPH_FILE), providers=["CPUExecutionProvider"])
                return LoadedOnnx(session, Tokenizer.from_file(str(self.folder / TOKENIZER_FILE)))
        from transformers import AutoModelForSequenceClassification

        with _loading(self.folder):
            model = load_pretrained(AutoModelForSequenceClassification, self.folder)
            sequences = LoadedSequences(model, load_tokenizer(self.folder))
            return sequences if stock else sequences.lean()


def library_of(model: DownstreamModel) -> str:
    """The stock library that loads what is saved of a model."""
    return "sentence-transformers" if isinstance(model, SentenceClassifier) else "transformers"


def write_product(
    folder: Path,
    model: DownstreamModel,
    prefix: str,
    task: str,
    labels: Sequence[str],
    columns: DataConfig,
    *,
    temperature: float | None = None,
    card: str = "",
) -> None:
    """Write the product folder: first beside it, then moved into place.

    Args:
        temperature: by which `predict` divides logits; None where there was nothing to fit it on.
        card: the text of its README.md, which `SHA256SUMS` does not list: who hands the product on writes in it.

    Raises:
        ModelError: if the saved tokenizer does not put the prefix in as training did.
        OSError, SafetensorError: it cannot be written.
    """
    with whole_or_nothing(folder) as partial:
        _write(partial, model, prefix, task, labels, columns, temperature)
        if card:
            (partial / CARD_FILE).write_text(card, encoding="utf-8")


def _write(
    partial: Path,
    model: DownstreamModel,
    prefix: str,
    task: str,
    labels: Sequence[str],
    columns: DataConfig,
    temperature: float | None,
) -> None:
    model.save(partial, prefix, labels)
    (partial / "prefix.txt").write_text(prefix + "\n", encoding="utf-8")
    record = {
        "gpta_local": __version__,
        "task": task,
        "labels": list(labels),
        "prefix": prefix,
        "temperature": temperature,
        "library": library_of(model),
        "columns": {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label},
        "format": columns.format.model_dump(),
    }
    (partial / PRODUCT_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _verify_tokenizer(Product(partial, record), model, prefix, pair=columns.text_pair is not None)
    write_manifest(partial)


def open_product(run_or_folder: Path) -> Product:
    """The product of a run, or an exported folder.

    Raises:
        InputError: if there is none.
        ModelError: it holds files that can run code, or one that its `SHA256SUMS` does not list so.
    """
    for folder in (run_or_folder / "model", run_or_folder):
        if (folder / PRODUCT_FILE).is_file():
            if foreign := find_pickles(folder):
                raise ModelError(
                    f"{foreign[0].name!r} is of a format that can run code and is not read",
                    where=str(folder),
                    fix="Only safetensors weights are read; export the model again",
                )
            verify_manifest(folder)
            try:
                record = json.loads((folder / PRODUCT_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError) as exc:
                raise InputError("broken record", where=str(folder / PRODUCT_FILE)) from exc
            if not isinstance(record, dict) or not {"labels", "prefix", "library", "columns"} <= set(record):
                raise InputError("broken record", where=str(folder / PRODUCT_FILE))
            return Product(folder, record)
    raise InputError(
        "no trained model here",
        where=str(run_or_folder),
        fix="Give the directory of a finished run, or an exported folder",
    )


ONNX_CODE = """import json
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

tokenizer, session = Tokenizer.from_file("{0}/tokenizer.json"), InferenceSession("{0}/model.onnx")
rows = tokenizer.encode_batch(texts)
arrays = dict(
    input_ids=[row.ids for row in rows],
    attention_mask=[row.attention_mask for row in rows],
    token_type_ids=[row.type_ids for row in rows],
)
inputs = dict((wanted.name, np.array(arrays[wanted.name])) for wanted in session.get_inputs())
logits, probabilities = session.run(["logits", "probabilities"], inputs)
names = json.load(open("{0}/gpta.json"))["labels"]
labels = [names[best] for best in logits.argmax(axis=1)]"""


def loading_code(library: str, folder: Path | str) -> str:
    """Python that gives labels without gpta-local. `pipeline` does not know a folder of sentence-transformers."""
    if library == "transformers":
        return (
            "from transformers import pipeline\n"
            f'classify = pipeline("text-classification", "{folder}", truncation=True)\n'
            'labels = [answer["label"] for answer in classify(texts)]'
        )
    if library == "onnx":
        return ONNX_CODE.format(folder)
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f'model = SentenceTransformer("{folder}")\n'
        "labels = [model[0].auto_model.config.id2label[n] for n in model.encode(texts).argmax(axis=1)]"
    )


def copy_product(product: Product, target: Path) -> None:
    """Copy the product to a new folder, whole or not at all, to be handed on: the umask says who may read it."""
    check_folder(target)
    with writing(target), whole_or_nothing(target) as partial:
        shutil.copytree(product.folder, partial, dirs_exist_ok=True)
        as_umask_says(partial)


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # a broken folder raises OSError, ValueError, KeyError, SafetensorError, RuntimeError …
        raise ModelError(f"the model cannot be loaded: {first_line(exc)}", where=str(folder)) from exc


def _verify_tokenizer(product: Product, model: DownstreamModel, prefix: str, *, pair: bool) -> None:
    stock = load_tokenizer(product.tokenizer_folder)
    rows = [(text, PROBES[0]) if pair else (text,) for text in PROBES]
    wanted = model.tokenizer.encode(model.tokenizer.tokenise(rows), prefix)
    for row, encoded in zip(rows, wanted, strict=True):
        if stock(*row, truncation=True)["input_ids"] != encoded.input_ids:
            raise ModelError(
                "the saved tokenizer does not put the prefix in as in training",
                where=str(product.folder),
                fix="This backbone's tokenizer cannot carry a prefix",
            )
