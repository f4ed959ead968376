"""Figures that are none, and data on which figures could become none: told, and never recorded as a score."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import DIALOGUES, TEMPLATE, settings, tiny_chat_llama
from click.testing import Result
from commands import invoke
from numpy.typing import NDArray
from samples import examples, record_replies, sentiment_rows, write_config, write_jsonl

from gpta_local.assistant.local import LocalAssistant
from gpta_local.config import TrainingConfig, load
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.downstream.model import SequenceClassifier
from gpta_local.downstream.probe import (
    ProbeScorer,
    probe_losses,
)
from gpta_local.downstream.training import Training
from gpta_local.errors import TrainingError
from gpta_local.tasks import open_task

pytestmark = pytest.mark.usefixtures("near_prefixes_count")

Losses = NDArray[np.float64]
PREFIXES = ("Review:", "What a guest says:", "In short,")


def configure(folder: Path, backbone: Path, rows: Sequence[dict[str, str]] | None = None, **changes: Any) -> Path:
    """A run of one round that replays three prefixes."""
    write_jsonl(folder / "train.jsonl", rows or sentiment_rows())
    record_replies(folder / "recorded", [], changes.pop("prefixes", PREFIXES))
    content = {
        "assistant": {"backend": "replay", "run": "recorded"},
        "downstream": {"backbone": str(backbone)},
        "search": {"label_text_samples": 0},
        "finish": {"plain_control": False},
    }
    return write_config(folder / "config.yaml", content | changes)


def train(folder: Path, backbone: Path, **changes: Any) -> Result:
    return invoke("train", configure(folder, backbone, **changes), "--output", folder / "run")


def strict_summary(folder: Path) -> dict[str, Any]:
    """summary.json, which must be JSON to the letter: no NaN and no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in summary.json")

    return json.loads((folder / "run" / "summary.json").read_text(), parse_constant=refuse)


def scores(folder: Path) -> list[tuple[str, float, float, float]]:
    with sqlite3.connect(folder / "run" / "history.sqlite") as history:
        return history.execute("SELECT prefix, gain, standard_error, loss FROM scores").fetchall()


def shift_losses(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """With any prefix the losses are those without it, so much higher."""
    plain = ProbeScorer.losses

    def losses(self: ProbeScorer, prefix: str, rows: Sequence[int]) -> Losses:
        found = plain(self, "", rows)
        return found + shift * (1 + np.arange(len(found)) / len(found)) if prefix else found

    monkeypatch.setattr(ProbeScorer, "losses", losses)


class TestDivergence:
    @pytest.mark.parametrize("factor", [math.inf, math.nan])
    def test_gradient_that_is_no_number_ends_the_training(self, bert: Path, factor: float) -> None:
        model = SequenceClassifier(bert, 2, None)
        rows = examples(sentiment_rows(), ("bad", "good"))
        training = Training(model, rows, TrainingConfig(precision="fp32", steps=2), seed=0)
        model.head.weight.register_hook(lambda gradient: gradient * factor)
        with pytest.raises(TrainingError, match=r"length of the gradient is (inf|nan) at step 1 of 2.*learning rates"):
            training.run("", 2)

    @pytest.mark.parametrize("steps", [1, 5])
    def test_learning_rate_that_is_far_too_high_is_told_and_no_product_is_made(
        self, steps: int, sentence: Path, tmp_path: Path
    ) -> None:
        rates = {"head_learning_rate": 1e38, "encoder_learning_rate": 1e38}
        result = train(tmp_path, sentence, training={"steps": steps, "precision": "fp32", **rates})
        assert result.exit_code == 1, result.output
        assert "error: " in result.stderr and "Lower the learning rates" in result.stderr
        assert "Traceback" not in result.output
        assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "summary.json").exists()
        assert all(math.isfinite(value) for _, *values in scores(tmp_path) for value in values)

    def test_model_of_no_numbers_is_neither_evaluated_nor_scored_with(self, sentence: Path, tmp_path: Path) -> None:
        task = open_task(load(configure(tmp_path, sentence)))
        model, rows = task.build_plain(), task.splits().train
        with torch.no_grad():
            model.head.weight.fill_(math.nan)
            with pytest.raises(TrainingError, match="a loss of the trained model is not a number"):
                task.evaluate(model, rows, "")
            next(model.network.parameters()).fill_(math.inf)
        with pytest.raises(TrainingError, match="a scoring loss is not a number"):
            task.scorer(model, rows).losses("", range(8))


class TestFewRows:
    def test_more_classes_than_scoring_rows_give_finite_losses(self) -> None:
        torch.manual_seed(0)
        losses = probe_losses(torch.randn(8, 16), torch.arange(8), torch.nn.Linear(16, 12))
        assert losses.isfinite().all()

    def test_one_row_of_each_class_is_enough_to_end_well(self, sentence: Path, tmp_path: Path) -> None:
        result = train(tmp_path, sentence, rows=[sentiment_rows()[0], {"text": "closed toilets", "label": "neither"}])
        assert result.exit_code == 0, result.output
        assert len(scores(tmp_path)) == 4 and strict_summary(tmp_path)

    def test_single_validation_row_has_no_error_in_the_summary(
        self, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shift_losses(monkeypatch, -0.3)
        write_jsonl(tmp_path / "one.jsonl", [{"text": "good soup", "label": "good"}])
        result = train(tmp_path, sentence, data={"train": "train.jsonl", "validation": "one.jsonl"})
        assert result.exit_code == 0, result.output
        contestants = strict_summary(tmp_path)["selection"]["contestants"]
        assert [contestant["standard_error"] for contestant in contestants] == [0.0, None, None, None]
        assert strict_summary(tmp_path)["prefix"] == ""


@pytest.mark.parametrize("shift", [1.0, 0.0], ids=["all worse than none", "all the same"])
def test_where_no_prefix_is_better_the_model_is_shipped_without(
    shift: float, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_losses(monkeypatch, shift)
    result = train(tmp_path, sentence)
    assert result.exit_code == 0, result.output
    assert "No prefix and no example texts: none was clearly better than none" in result.stdout
    assert strict_summary(tmp_path)["prefix"] == ""
    gains = [gain for prefix, gain, *_ in scores(tmp_path) if prefix]
    assert len(gains) == 3 and all(gain < -0.9 if shift else gain == 0 for gain in gains)


class TestTeaching:
    def test_template_that_leaves_replies_out_is_told(self, tmp_path: Path) -> None:
        folder = tiny_chat_llama(tmp_path / "chat")
        silent = TEMPLATE.replace("{% for message in messages %}", "{% for message in messages[:2] %}")
        (folder / "chat_template.jinja").write_text(silent, encoding="utf-8")
        model, tokenizer = LocalAssistant(str(folder), "cpu").base()
        with pytest.raises(TrainingError, match="dialogue_gradient"):
            train_adapter(model, tokenizer, DIALOGUES, settings(), tmp_path / "001", seed=0)
        assert not (tmp_path / "001").exists()
