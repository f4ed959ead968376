"""The model card of a product: the Hub's own parser reads it, and its code loads the model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from audited import SAID
from audited import copy as copy_of
from huggingface_hub import ModelCard
from samples import SENTIMENT

from gpta_local.downstream.product import open_product
from gpta_local.report.card import model_card
from gpta_local.report.summary import CROSS_VALIDATED


@pytest.fixture(scope="module")
def text(audited_run: Path) -> str:
    return (audited_run / "model" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary(audited_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((audited_run / "summary.json").read_text(encoding="utf-8"))
    return found


def test_hub_reads_its_header(text: str, summary: dict[str, Any]) -> None:
    card = ModelCard(text)
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "text-classification"
    found = {of.metric_type: of.metric_value for of in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(summary["arms"]["gpta"]["accuracy"], abs=1e-4)
    assert {of.dataset_split for of in card.data.eval_results} == {"test"}
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_licence_and_base_model_are_left_to_the_user(text: str) -> None:
    header = ModelCard(text).data.to_dict()
    assert "license" not in header and "base_model" not in header
    assert "## Licence\n\nNot chosen yet" in text


def test_sections_of_a_card_are_there(text: str) -> None:
    wanted = ["Intended use", "Data", "Figures", "Limits", "How to load it", "Licence"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == wanted


def test_no_row_path_or_word_of_the_assistant_is_in_it(text: str, audited_run: Path, summary: dict[str, Any]) -> None:
    assert not [row for row, _ in SENTIMENT if row in text]
    assert not [word for word in SAID if word in text and word not in summary["prefix"]]
    assert str(audited_run.parent) not in text


def test_its_code_loads_the_model(text: str, audited_run: Path) -> None:
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code and len([line for line in code[1].splitlines() if line]) == 5
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=audited_run / "model", capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() in ("['bad']", "['good']"), done.stderr


def test_who_writes_a_licence_in_can_still_use_the_model(audited_run: Path, tmp_path: Path) -> None:
    model = copy_of(audited_run, tmp_path) / "model"
    (model / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert open_product(model).labels == ["bad", "good"]
    shutil.rmtree(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluated_on": CROSS_VALIDATED}, "the figures are too good"),
        ({"arms": {}, "differences": {}, "product": None}, "None: there were no rows to measure it on."),
        ({"prefix": "Topic:"}, 'Its tokenizer puts "Topic:" in front of each input by itself.'),
        ({"training_rows": 0}, "No labelled row has a part in it."),
    ],
)
def test_what_limits_the_figures_is_said(summary: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    card = model_card(summary | changes, "transformers", "bert")
    assert words in card
    ModelCard(card)


def test_card_of_pairs_shows_how_to_give_two_texts(summary: dict[str, Any]) -> None:
    pairs = summary | {"card": summary["card"] | {"task": "text-pair-classification"}}
    assert '"text_pair": "Another."' in model_card(pairs, "transformers", "bert")
    assert '[("A text.", "Another.")]' in model_card(pairs, "sentence-transformers", "bert")
