"""With thousands of rows: what is compared on shares of them, what that decides, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.config import load
from gpta_local.data import splits
from gpta_local.downstream.training import Training
from gpta_local.report.summary import verdict
from gpta_local.run import estimate, plan
from gpta_local.run.finish import Finish
from gpta_local.run.loop import Run
from gpta_local.run.shares import projected
from gpta_local.schema import Share

WEIGHTS = "model/0_Transformer/model.safetensors"


class TestProjection:
    def test_gain_that_halves_with_each_doubling_goes_on_to(self) -> None:
        found = projected([Share(100, 0.4, 0.02), Share(200, 0.2, 0.02)], 1600)
        assert (found.rows, found.gain) == (1600, pytest.approx(0.025))
        assert found.standard_error == pytest.approx(0.025 * (0.4**2 + 0.15**2) ** 0.5) and found.clear

    def test_uncertain_shrinking_leaves_nothing_clear(self) -> None:
        assert not projected([Share(100, 0.4, 0.05), Share(200, 0.2, 0.05)], 1600).clear

    @pytest.mark.parametrize("last", [0.5, -0.1])
    def test_gain_that_does_not_shrink_or_is_none_is_taken_to_stay(self, last: float) -> None:
        assert projected([Share(100, 0.4, 0.01), Share(200, last, 0.02)], 1600) == Share(1600, last, 0.02)


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
    ("gains", "trained", "winner"),
    [
        ([(0.01, 0.1)], [*PAIR[0], "training plainly"], "plain"),
        ([(0.9, 0.1), (0.1, 0.1)], [*PAIR[0], *PAIR[1], "training plainly"], "plain"),
        ([(0.9, 0.01), (0.8, 0.01)], [*PAIR[0], *PAIR[1], "training from the label texts"], "no_prefix"),
    ],
    ids=["no gain on the first share", "none on the second", "a gain that stays"],
)
def test_winner_on_shares_alone_is_trained_on_all_rows(
    gains: list[tuple[float, float]],
    trained: list[str],
    winner: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = iter(gains)
    monkeypatch.setattr(Finish, "validation_gain", lambda *_: next(told))
    run = Run(load(config), Silent())
    result = run.run(tmp_path / "run")
    assert titles(tmp_path / "run") == trained
    assert [(share["rows"], share["gain"]) for share in result["shares"]] == [
        (rows, gain) for rows, (gain, _) in zip((6, 12), gains, strict=False)
    ]
    assert set(result["arms"]) == {"gpta", winner} and result["product_is_plain"] == (winner == "plain")
    said = verdict(result)[0]
    assert f"{gains[-1][0]:+.3f} ± {gains[-1][1]:.3f} nats" in said
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
    assert Run(load(config), Silent()).plan.shares == plan.SHARES
    assert Run(load(config, [otherwise]), Silent()).plan.shares == ()
