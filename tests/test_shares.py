"""With thousands of rows: what is compared on shares of them, what that decides, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from samples import (
    QUICKSTART,
    Silent,
    config_of,
    label_text_reply,
    pair_rows,
    read_rows,
    record_replies,
    sentiment_rows,
    write_jsonl,
)

from gpta_local.config import load
from gpta_local.data import splits
from gpta_local.downstream.training import Training
from gpta_local.metrics import Losses
from gpta_local.report.summary import headline, verdict
from gpta_local.run import estimate, plan
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.loop import Run
from gpta_local.run.shares import projected, told

WEIGHTS = "model/0_Transformer/model.safetensors"


def gains(mean: float, spread: float) -> Losses:
    """Of two rows: their mean, and its standard error."""
    return np.array([mean - spread, mean + spread])


class TestProjection:
    """From 100 and 200 rows to 1,600, which are three doublings more."""

    @pytest.mark.parametrize(
        ("first", "last", "all_rows"), [(0.5, 0.45, 0.3), (0.4, 0.2, -0.4), (0.3, 0.5, 0.5), (0.1, -0.1, -0.7)]
    )
    def test_gain_loses_as_much_with_each_doubling_and_never_grows(
        self, first: float, last: float, all_rows: float
    ) -> None:
        found = projected({100: gains(first, 0.01), 200: gains(last, 0.02)}, 1600)
        assert (found.rows, found.gain) == (1600, pytest.approx(all_rows))
        assert found.standard_error == pytest.approx(0.02 + 3 * 0.01)

    def test_gain_that_is_clear_on_both_shares_may_not_be_with_all_rows(self) -> None:
        shares = {100: gains(0.05, 0.01), 200: gains(0.05, 0.02)}
        assert all(share.clear for share in told(shares)) and not projected(shares, 1600).clear


@pytest.fixture
def config(sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose 96 training rows are thousands."""
    monkeypatch.setattr(splits, "MANY_ROWS", 90)
    monkeypatch.setattr(plan, "THOUSANDS_OF_ROWS", 90)
    record_replies(tmp_path / "record", [label_text_reply({"bad": "an unhappy guest", "good": "a happy one"})], [], [])
    rows = sentiment_rows()
    for split in ("test", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    many = [{**row, "text": f"{row['text']} {word}"} for word in ("", "Menu", "Table", "Kitchen") for row in rows]
    content: dict[str, Any] = {
        "data": {"test": "test.jsonl", "validation": "validation.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "training": {"steps": 16, "checkpoint_seconds": 0},
    }
    config_of(tmp_path, many, content)
    return tmp_path / "config.yaml"


def titles(run: Path) -> list[str]:
    return [json.loads(line)["title"] for line in (run / "metrics.jsonl").read_text().splitlines()]


PAIR = [[f"training {how}, on 1/{part} of the rows" for how in ("from the label texts", "plainly")] for part in (16, 8)]


@pytest.mark.parametrize(
    ("found", "trained", "winner"),
    [
        ([(0.01, 0.1)], [*PAIR[0], "training plainly"], "plain"),
        ([(0.9, 0.1), (0.1, 0.1)], [*PAIR[0], *PAIR[1], "training plainly"], "plain"),
        ([(0.9, 0.01), (0.8, 0.01)], [*PAIR[0], *PAIR[1], "training from the label texts"], "no_prefix"),
    ],
    ids=["no gain on the first share", "none on the second", "a gain that stays"],
)
def test_winner_on_shares_alone_is_trained_on_all_rows(
    found: list[tuple[float, float]],
    trained: list[str],
    winner: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_rows = iter([gains(*of) for of in found])
    monkeypatch.setattr(FineTuner, "validation_gains", lambda *_: next(of_rows))
    run = Run(load(config), Silent())
    result = run.run(tmp_path / "run")
    assert titles(tmp_path / "run") == trained
    assert [(share["rows"], pytest.approx(share["gain"])) for share in result["shares"]] == [
        (rows, gain) for rows, (gain, _) in zip((6, 12), found, strict=False)
    ]
    assert set(result["arms"]) == {"gpta", winner} and result["product_is_plain"] == (winner == "plain")
    said = verdict(result)[0]
    assert f"{found[-1][0]:+.3f} ± {found[-1][1]:.3f} nats" in said
    assert bool(result["cost"]["completions"]) == (winner != "plain"), "the assistant is asked where its texts are used"
    assert ("is plain fine-tuning on all rows" in said) == (winner == "plain")
    assert ("it is not known what they gain there" in said) == (winner != "plain")
    assert estimate.steps_of_all_trainings(run.plan) == 1.375


def test_run_stopped_in_any_training_ends_as_one_that_was_not(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(load(config), Silent()).run(tmp_path / "whole")
    step, calls = Training._step, 0

    def stops(training: Training, *arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return step(training, *arguments)

    monkeypatch.setattr(Training, "_step", stops)
    for _ in range(20):
        try:
            result = Run(load(config), Silent()).run(tmp_path / "stopped", resume=True)
            break
        except KeyboardInterrupt:
            pass
    assert calls > 10
    assert result["shares"] == whole["shares"] and titles(tmp_path / "stopped") == titles(tmp_path / "whole")
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "otherwise", ["search.regime=online", 'search.own_prefixes=["Said of a meal:"]', "finish.plain_control=false"]
)
def test_whoever_asks_for_more_gets_the_whole_search(otherwise: str, config: Path) -> None:
    usual, more = (Run(load(config, changes), Silent()).plan for changes in ([], [otherwise]))
    assert (usual.searches, usual.shares) == (False, plan.SHARES)
    assert (more.searches, more.shares) == (True, ())


def test_pairs_of_texts_are_trained_on_plainly_once(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "MANY_ROWS", 12)
    monkeypatch.setattr(plan, "THOUSANDS_OF_ROWS", 12)
    record_replies(tmp_path / "record", [], ["Said of two sentences:"])
    write_jsonl(tmp_path / "test.jsonl", pair_rows())
    content = {
        "task": "text-pair-classification",
        "data": {"test": "test.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
    }
    run = Run(config_of(tmp_path, pair_rows(), content), Silent())
    result = run.run(tmp_path / "run")
    assert titles(tmp_path / "run") == ["training plainly"] and not result["cost"]["completions"]
    assert set(result["arms"]) == {"gpta", "plain"} and result["product_is_plain"]
    assert "the model is plain fine-tuning. The assistant was not asked." in verdict(result)[0]
    assert "no gain of anything else is expected" in headline(result)
    assert estimate.steps_of_all_trainings(run.plan) == 1


@pytest.mark.slow
def test_label_texts_that_win_on_shares_of_real_rows_win_on_all_of_them(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients' messages, seven departments and few steps: the start from words is far ahead, and stays so."""
    monkeypatch.setattr(splits, "MANY_ROWS", 80)
    monkeypatch.setattr(plan, "THOUSANDS_OF_ROWS", 80)
    content = {
        "data": {"validation": str(QUICKSTART / "validation.jsonl")},
        "card": yaml.safe_load((QUICKSTART / "quickstart.yaml").read_text("utf-8"))["card"],
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(backbone)},
        "search": {"label_text_samples": 0},
        "training": {"steps": 32, "precision": "auto"},
    }
    record_replies(tmp_path / "record", [], ["Message:"])
    run = Run(config_of(tmp_path, read_rows("train"), content), Silent())
    result = run.run(tmp_path / "run")
    assert len(result["shares"]) == 2 and set(result["arms"]) == {"gpta", "no_prefix"}
    training = run.plan.training(plain := run.plan.task.build_plain())
    training.run("", training.steps)
    theirs = run.plan.task.evaluate(plain, run.plan.splits.validation, "").summary
    assert result["arms"]["gpta"]["loss"] < 0.8 * theirs["loss"]
