"""The product: stock libraries load it, the prefix is inside, and nothing is written by halves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from commands import ROOT
from samples import PAIRS, config_of, pair_rows, read_rows, sentiment_rows

from gpta_local.downstream import product as product_module
from gpta_local.downstream.lean import Dropout, Linear
from gpta_local.downstream.loaded import LoadedTorch
from gpta_local.downstream.model import DownstreamModel
from gpta_local.downstream.product import (
    PRODUCT_FILE,
    copy_product,
    loading_code,
    open_product,
    write_product,
)
from gpta_local.downstream.training import Training
from gpta_local.errors import InputError, ModelError, OutputError
from gpta_local.record.folder import (
    check_folder,
    make_folder,
)
from gpta_local.system.manifests import MANIFEST
from gpta_local.system.pickles import find_pickles
from gpta_local.tasks.classification import ClassificationTask

PREFIX = "Review of a guest:"
SINGLES = [(row["text"],) for row in read_rows("validation")[:12]] + [("word " * 300,), ("Ünïcödé </s> [SEP]",)]
TWOS = [(first, second) for first, second, _ in PAIRS[:6]] + [("word " * 300, "b"), ("a", "word " * 300)]
SAFE_SUFFIXES = {".json", ".safetensors", ".txt", ".jinja"}


def make(folder: Path, backbone: Path | None, *, pair: bool, prefix: str) -> tuple[Path, DownstreamModel]:
    """Train a model for two steps and write its product."""
    changes: dict[str, Any] = {"task": "text-pair-classification" if pair else "text-classification"}
    if backbone is not None:
        changes["downstream"] = {"backbone": str(backbone)}
    config = config_of(folder, pair_rows() if pair else sentiment_rows(), changes)
    task = ClassificationTask(config)
    model = task.build([{name: name for name in task.label_names}])
    Training(model, task.splits().train, config.training, seed=0).run(prefix, 2)
    write_product(folder / "model", model, prefix, task.name, task.label_names, config.data)
    return folder / "model", model


def spliced_logits(model: DownstreamModel, rows: list[tuple[str, ...]], prefix: str) -> np.ndarray:
    return model.predict_logits(model.tokenizer.encode(model.tokenizer.tokenise(rows), prefix)).numpy()


def stock_logits(folder: Path, rows: list[tuple[str, ...]]) -> np.ndarray:
    """As a user without this package would get them."""
    if (folder / "modules.json").is_file():
        from sentence_transformers import SentenceTransformer

        texts = [row[0] if len(row) == 1 else row for row in rows]
        return SentenceTransformer(str(folder), device="cpu").encode(texts)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    columns = [list(column) for column in zip(*rows, strict=True)]
    with torch.inference_mode():
        return model(**tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize("kind", ["sentence", "bert", "roberta"])
@pytest.mark.parametrize(
    ("rows", "prefix"), [(SINGLES, PREFIX), (TWOS, PREFIX), (TWOS, "")], ids=["single", "pair", "pair, no prefix"]
)
def test_stock_libraries_give_the_logits_of_training(
    kind: str, rows: list[tuple[str, ...]], prefix: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, model = make(tmp_path, request.getfixturevalue(kind), pair=len(rows[0]) == 2, prefix=prefix)
    expected = spliced_logits(model, rows, prefix)
    assert np.ptp(expected, axis=0).min() > 0.05  # rows differ far more than the tolerance
    np.testing.assert_allclose(stock_logits(folder, rows), expected, atol=1e-5, rtol=0)
    own = np.concatenate(list(open_product(folder).logits(rows)))
    np.testing.assert_allclose(own, expected, atol=1e-5, rtol=0)


def test_labelling_has_the_fast_network_and_an_export_reads_the_stock_one(sentence: Path, tmp_path: Path) -> None:
    folder, _ = make(tmp_path, sentence, pair=False, prefix="")
    loaded = [cast(LoadedTorch, open_product(folder).load(stock=stock)) for stock in (False, True)]
    fast, stock = ({type(module) for module in one.model.modules()} for one in loaded)
    assert {Linear, Dropout} <= fast and not {Linear, Dropout} & stock


@pytest.fixture(scope="module")
def product(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DownstreamModel]:
    """A product of the real backbone."""
    return make(tmp_path_factory.mktemp("product"), None, pair=False, prefix=PREFIX)


@pytest.fixture(scope="module")
def plain_product(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DownstreamModel]:
    return make(tmp_path_factory.mktemp("plain"), bert, pair=False, prefix=PREFIX)


class TestProduct:
    def test_real_backbone_gives_the_logits_of_training(self, product: tuple[Path, DownstreamModel]) -> None:
        folder, model = product
        expected = spliced_logits(model, SINGLES, PREFIX)
        np.testing.assert_allclose(stock_logits(folder, SINGLES), expected, atol=1e-5, rtol=0)

    def test_pipeline_gives_the_labels_of_training(self, plain_product: tuple[Path, DownstreamModel]) -> None:
        from transformers import pipeline

        folder, model = plain_product
        classify = pipeline("text-classification", str(folder), truncation=True, device="cpu")
        answers = classify([row[0] for row in SINGLES])
        names = ["bad", "good"]
        expected = [names[i] for i in spliced_logits(model, SINGLES, PREFIX).argmax(1)]
        assert [answer["label"] for answer in answers] == expected

    def test_pipeline_refuses_a_sentence_transformer(self, product: tuple[Path, DownstreamModel]) -> None:
        """And gives no labels of a random head."""
        from transformers import pipeline

        with pytest.raises(ValueError, match="Unrecognized model"):
            pipeline("text-classification", str(product[0]), device="cpu")

    @pytest.mark.parametrize("kind", ["product", "plain_product"])
    def test_code_that_export_prints_gives_the_labels_of_training(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        folder, model = request.getfixturevalue(kind)
        names: dict[str, Any] = {"texts": [row[0] for row in SINGLES]}
        exec(loading_code(open_product(folder).record["library"], folder), names)
        assert names["labels"] == [["bad", "good"][i] for i in spliced_logits(model, SINGLES, PREFIX).argmax(1)]

    def test_prefix_changes_the_logits(self, plain_product: tuple[Path, DownstreamModel]) -> None:
        folder, model = plain_product
        assert np.abs(stock_logits(folder, SINGLES) - spliced_logits(model, SINGLES, "")).max() > 0.05

    @pytest.mark.parametrize("kind", ["product", "plain_product"])
    def test_no_file_can_run_code(self, kind: str, request: pytest.FixtureRequest) -> None:
        folder, _ = request.getfixturevalue(kind)
        assert find_pickles(folder) == []
        assert {path.suffix for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST} <= SAFE_SUFFIXES

    @pytest.mark.parametrize("kind", ["product", "plain_product"])
    def test_record_and_model_configuration_say_what_is_inside(self, kind: str, request: pytest.FixtureRequest) -> None:
        folder, _ = request.getfixturevalue(kind)
        record = json.loads((folder / PRODUCT_FILE).read_text(encoding="utf-8"))
        assert (record["prefix"], record["labels"]) == (PREFIX, ["bad", "good"])
        assert record["columns"] == {"text": "text", "text_pair": None, "label": "label"}
        assert (folder / "prefix.txt").read_text(encoding="utf-8") == PREFIX + "\n"
        encoder = {"product": folder / "0_Transformer", "plain_product": folder}[kind]
        config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
        assert config["id2label"] == {"0": "bad", "1": "good"}

    def test_no_row_of_the_data_is_in_it_and_nothing_beside_it(self, product: tuple[Path, DownstreamModel]) -> None:
        folder, _ = product
        texts = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.json"))
        assert not any(row["text"] in texts for row in sentiment_rows())
        assert sorted(path.name for path in folder.parent.iterdir()) == ["config.yaml", "model", "train.jsonl"]

    def test_stock_libraries_load_it_without_a_warning(
        self, product: tuple[Path, DownstreamModel], plain_product: tuple[Path, DownstreamModel]
    ) -> None:
        script = """
import sys, warnings
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    SentenceTransformer(sys.argv[1], device="cpu").encode(["text"])
    AutoModelForSequenceClassification.from_pretrained(sys.argv[2])
    AutoTokenizer.from_pretrained(sys.argv[2])
    pipeline("text-classification", sys.argv[2], device="cpu")("text")
for warning in caught:
    print(warning.category.__name__, warning.message)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(product[0]), str(plain_product[0])],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        for word in ("warning", "UNEXPECTED", "MISSING", "newly initialized", "deprecated"):
            assert word.lower() not in done.stderr.lower(), done.stderr


class TestFailure:
    def test_saved_tokenizer_that_differs_is_noticed_and_nothing_is_left(
        self, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from gpta_local.downstream.tokenization import PrefixTokenizer

        save = PrefixTokenizer.save
        monkeypatch.setattr(PrefixTokenizer, "save", lambda self, folder, prefix: save(self, folder, "Another:"))
        with pytest.raises(ModelError, match="does not put the prefix in as in training"):
            make(tmp_path, bert, pair=False, prefix=PREFIX)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "train.jsonl"]

    def test_copy_that_fails_leaves_nothing(
        self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(source: Path, target: Path, **_: object) -> None:
            Path(target).mkdir(exist_ok=True)
            (Path(target) / "half").write_text("half", encoding="utf-8")
            raise OSError(28, "No space left on device")

        product = open_product(plain_product[0])
        monkeypatch.setattr(product_module.shutil, "copytree", full)
        with pytest.raises(OutputError, match="No space left on device"):
            copy_product(product, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


class TestCopy:
    def test_copy_is_the_product(self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path) -> None:
        copy_product(open_product(plain_product[0]), tmp_path / "deep" / "out")
        for path in plain_product[0].rglob("*"):
            copied = tmp_path / "deep" / "out" / path.relative_to(plain_product[0])
            assert path.is_dir() or copied.read_bytes() == path.read_bytes()

    def test_directory_with_something_in_it_is_refused(
        self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
        with pytest.raises(OutputError, match="something in this directory already"):
            copy_product(open_product(plain_product[0]), tmp_path / "out")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]

    def test_nothing_of_an_earlier_attempt_is_taken_in(
        self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path
    ) -> None:
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "stale.json").write_text("{}", encoding="utf-8")
        (tmp_path / "out").mkdir()  # an empty one is taken
        copy_product(open_product(plain_product[0]), tmp_path / "out")
        assert not (tmp_path / "out" / "stale.json").exists()


class TestOpening:
    def test_run_and_folder_are_both_products(self, plain_product: tuple[Path, DownstreamModel]) -> None:
        assert open_product(plain_product[0].parent).folder == open_product(plain_product[0]).folder

    def test_folder_without_a_model_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no trained model here"):
            open_product(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"labels": ["a"]}', "\x00"])
    def test_broken_record_is_told(self, tmp_path: Path, content: str) -> None:
        (tmp_path / PRODUCT_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="broken record"):
            open_product(tmp_path)

    def test_weights_that_could_run_code_are_refused(
        self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path
    ) -> None:
        copy_product(open_product(plain_product[0]), tmp_path / "out")
        (tmp_path / "out" / "pytorch_model.bin").write_bytes(b"x")
        with pytest.raises(ModelError, match="can run code"):
            open_product(tmp_path / "out")

    def test_missing_weights_are_told(self, plain_product: tuple[Path, DownstreamModel], tmp_path: Path) -> None:
        copy_product(open_product(plain_product[0]), tmp_path / "out")
        (tmp_path / "out" / "model.safetensors").unlink()
        (tmp_path / "out" / MANIFEST).unlink()
        with pytest.raises(ModelError, match="the model cannot be loaded"):
            list(open_product(tmp_path / "out").logits([("a",)]))


class TestFolders:
    def test_new_folder_is_empty_and_its_owners_only(self, tmp_path: Path) -> None:
        make_folder(tmp_path / "a" / "run", 1000)
        assert (tmp_path / "a" / "run").stat().st_mode & 0o077 == 0
        assert list((tmp_path / "a" / "run").iterdir()) == []

    def test_place_without_room_for_the_product_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError):
            make_folder(tmp_path / "run", 2**60)
        assert not any(tmp_path.rglob("*.safetensors"))

    def test_checking_makes_nothing(self, tmp_path: Path) -> None:
        check_folder(tmp_path / "a" / "run")
        assert list(tmp_path.iterdir()) == []

    def test_place_below_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("", encoding="utf-8")
        with pytest.raises(OutputError, match="cannot be written"):
            check_folder(tmp_path / "file" / "run")

    def test_file_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("", encoding="utf-8")
        with pytest.raises(OutputError, match="a file, not a directory"):
            check_folder(tmp_path / "run")

    def test_place_of_the_system_is_refused(self) -> None:
        with pytest.raises(OutputError, match="cannot be written"):
            make_folder(Path("/proc/gpta-run"), 1000)
