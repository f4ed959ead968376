"""The product as ONNX: the labels of the folder, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, assert_refused, invoke
from products import untrained
from samples import PAIRS, read_rows, write_jsonl

from gpta_local.downstream.onnx import PARITY_ROWS, export_onnx
from gpta_local.downstream.product import Product, open_product

SINGLES = [(row["text"],) for row in read_rows("validation")[:20]] + [("word " * 300,), ("Ünïcödé </s> [SEP]",)]
TWOS = [(first, second) for first, second, _ in PAIRS] + [("word " * 300, "b"), ("a", "word " * 300)]


@pytest.fixture(scope="module")
def exported(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Product, Path, str]:
    """A product, its ONNX folder by the command, and what that printed."""
    folder = tmp_path_factory.mktemp("onnx")
    product = untrained(folder / "run", sentence)
    result = invoke("export", product.folder, folder / "onnx", "--format", "onnx")
    assert result.exit_code == 0, result.output
    return product, folder / "onnx", result.stdout


def logits(product: Product, rows: list[tuple[str, ...]]) -> Any:
    return np.concatenate(list(product.logits(rows)))


class TestExport:
    def test_labels_are_the_same_and_it_says_so(self, exported: tuple[Product, Path, str]) -> None:
        product, folder, told = exported
        assert told.startswith("the same label on 1,000 of 1,000 rows of random words")
        np.testing.assert_allclose(logits(open_product(folder), SINGLES), logits(product, SINGLES), atol=1e-4, rtol=0)

    @pytest.mark.parametrize(("kind", "pair"), [("roberta", False), ("bert", True), ("sentence", True)])
    def test_plain_encoder_and_pairs_are_the_same_too(
        self, kind: str, pair: bool, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        product, rows = untrained(tmp_path, request.getfixturevalue(kind), pair=pair), TWOS if pair else SINGLES
        parity = export_onnx(product, tmp_path / "onnx")
        assert (parity.rows, parity.same_labels) == (PARITY_ROWS, PARITY_ROWS)
        found = logits(open_product(tmp_path / "onnx"), rows)
        np.testing.assert_allclose(found, logits(product, rows), atol=1e-4, rtol=0)

    def test_code_that_it_prints_runs_without_torch(self, exported: tuple[Product, Path, str]) -> None:
        product, folder, told = exported
        code = told[told.index("import json") :]
        assert code.replace(str(folder), "model-onnx").strip() in (ROOT / "docs" / "tools.md").read_text(
            encoding="utf-8"
        )
        texts = [row[0] for row in SINGLES]
        blocked = "import sys; sys.modules.update(torch=None, transformers=None, sentence_transformers=None)"
        script = f"{blocked}\ntexts = {texts!r}\n{code}\nprint(json.dumps(labels))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [prediction.label for prediction in product.predict(SINGLES)]

    def test_probabilities_are_those_of_predict(self, exported: tuple[Product, Path, str]) -> None:
        product, folder, _ = exported
        loaded: Any = open_product(folder).load()
        encoded = loaded.tokenizer.encode_batch([row[0] for row in SINGLES[:4]])
        arrays = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        inputs = {name: np.array([getattr(row, of) for row in encoded]) for name, of in arrays.items()}
        (found,) = loaded.session.run(["probabilities"], inputs)
        wanted = [list(prediction.probabilities.values()) for prediction in product.predict(SINGLES[:4])]
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    def test_int8_is_smaller_and_still_a_model(self, exported: tuple[Product, Path, str], tmp_path: Path) -> None:
        product, folder, _ = exported
        parity = export_onnx(product, tmp_path / "int8", int8=True)
        assert parity.same_labels > 0.7 * PARITY_ROWS
        sizes = [(place / "model.onnx").stat().st_size for place in (tmp_path / "int8", folder)]
        assert sizes[0] < sizes[1]
        assert json.loads((tmp_path / "int8" / "gpta.json").read_text(encoding="utf-8"))["int8"]


class TestFolder:
    def test_predict_takes_it(self, exported: tuple[Product, Path, str], tmp_path: Path) -> None:
        _, folder, _ = exported
        rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for (text,) in SINGLES])
        assert invoke("predict", folder, rows).exit_code == 0

    def test_what_needs_embeddings_does_not(self, exported: tuple[Product, Path, str], tmp_path: Path) -> None:
        rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
        assert_refused(invoke("suggest", exported[1], rows), "an ONNX folder gives no embeddings")

    def test_it_is_not_exported_again(self, exported: tuple[Product, Path, str], tmp_path: Path) -> None:
        assert_refused(invoke("export", exported[1], tmp_path / "b", "--format", "onnx"), "is an ONNX folder already")

    def test_place_with_something_in_it_is_refused(self, exported: tuple[Product, Path, str]) -> None:
        result = invoke("export", exported[0].folder, exported[1], "--format", "onnx")
        assert_refused(result, "something in this directory already")

    def test_int8_alone_is_told(self, exported: tuple[Product, Path, str], tmp_path: Path) -> None:
        result = invoke("export", exported[0].folder, tmp_path / "b", "--int8")
        assert result.exit_code == 2
        assert "--int8 goes with --format onnx" in result.stderr
