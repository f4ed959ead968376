"""The choice at the end of a run: what validation rows say, and what becomes of label texts that they speak against."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.config import load
from gpta_local.run import estimate
from gpta_local.run.fine_tuning import FineTuner, Trained
from gpta_local.run.loop import Run
from gpta_local.tasks.base import Evaluation
from gpta_local.tasks.classification import ClassificationTask

WRITTEN = {"bad": "an unhappy guest", "good": "a happy one"}


def test_gain_on_validation_rows_is_above_zero_where_ours_has_the_lower_loss() -> None:
    losses = {"ours": np.array([0.1, 0.3]), "theirs": np.array([0.4, 0.8])}

    def measure(trained: Trained, split: str) -> tuple[Evaluation, float]:
        assert split == "validation"
        return Evaluation(np.zeros(2), losses[trained.slot], np.zeros((2, 2)), np.zeros(2, dtype=np.int64), {}), 0.0

    ours, theirs = (Trained(cast(Any, None), "", 0.0, slot) for slot in ("ours", "theirs"))
    fine_tuner = cast(FineTuner, SimpleNamespace(measure=measure))
    assert FineTuner.validation_gains(fine_tuner, ours, theirs).tolist() == pytest.approx([0.3, 0.5])


@pytest.fixture
def configured(near_prefixes_count: None, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with validation rows; its assistant's label texts join those of the card."""

    def joined(
        task: ClassificationTask, sets: list[dict[str, str]], size: int
    ) -> tuple[list[dict[str, str]], list[Any]]:
        return [*task.own_label_texts(), *sets], []

    monkeypatch.setattr(ClassificationTask, "choose_label_texts", joined)
    record_replies(tmp_path / "record", [label_text_reply(WRITTEN)], [], [])
    for split in ("test", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", sentiment_rows())
    content: dict[str, Any] = {
        "data": {"test": "test.jsonl", "validation": "validation.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "knowledge": {"example_texts": 0},
        "search": {"rounds": 0},
        "training": {"steps": 2},
    }
    config_of(tmp_path, sentiment_rows(), content)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(("gain", "kept"), [(0.05, True), (-0.05, False)])
def test_validation_rows_decide_on_the_label_texts_of_the_assistant(
    gain: float, kept: bool, configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "validation_gain", lambda *_: (gain, 0.1))
    observer = Silent()
    run = Run(load(configured), observer)
    result = run.run(tmp_path / "run")
    assert (WRITTEN in result["label_texts"]) == kept
    assert bool([note for note in observer.notes if note.startswith("no label texts of the assistant: ")]) == (not kept)
    assert estimate.steps_of_all_trainings(run.plan) == 3, "with them, without, and plainly"


def test_model_without_the_label_texts_is_the_one_that_is_shipped(
    configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "validation_gain", lambda *_: (-0.05, 0.1))
    without = Run(load(configured), Silent()).run(tmp_path / "without")
    never_asked = Run(load(configured, ["search.label_text_samples=0"]), Silent()).run(tmp_path / "never-asked")
    assert without["label_texts"] == never_asked["label_texts"]
    weights = [
        (tmp_path / name / "model/0_Transformer/model.safetensors").read_bytes() for name in ("without", "never-asked")
    ]
    assert weights[0] == weights[1]
