"""Budgets: where one is reached the search ends, and the run ends as every other, with a model."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows

from gpta_local.downstream.product import open_product
from gpta_local.record.history import open_existing
from gpta_local.run.finish import Finish
from gpta_local.run.loop import Run
from gpta_local.run.search import Search

pytestmark = pytest.mark.usefixtures("near_prefixes_count")

REPLIES = tuple(
    f"{word} said by a guest:" for word in ("First", "Next", "Then", "More", "Again", "Last", "Words", "Any")
)
Finished = tuple[dict[str, Any], Path, Silent]


def train(folder: Path, sentence: Path, budget: dict[str, Any], **changes: Any) -> Finished:
    """A run of four rounds of two proposals, with one set of label texts."""
    folder.mkdir(exist_ok=True)
    record_replies(folder / "record", [label_text_reply({"bad": "unhappy", "good": "happy"})], REPLIES)
    settings: dict[str, Any] = {
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "search": {"rounds": 4, "proposals": 2},
        "finish": {"plain_control": False},
        "budget": budget,
    }
    observer = Silent()
    run = Run(config_of(folder, sentiment_rows(), settings | changes), observer)
    return run.run(folder / "run"), folder / "run", observer


def asked(run: Path) -> list[int]:
    history = open_existing(run)
    counts = [len(texts) for texts in history.texts().values()]
    history.close()
    return counts


@pytest.mark.parametrize(
    ("budget", "reached", "requests"),
    [
        ({"calls": 1}, "budget.calls", [1]),
        ({"calls": 4}, "budget.calls", [1, 2, 1]),
        ({"calls": 9}, None, [1, 2, 2, 2, 2]),
        ({"seconds": 0.001}, "budget.seconds", [1]),
        ({"tokens": 1}, "budget.tokens", [1]),
        ({"tokens": 10**6, "calls": 5}, "budget.calls", [1, 2, 2]),
    ],
)
def test_search_ends_before_the_round_for_which_there_is_no_budget(
    tmp_path: Path, sentence: Path, budget: dict[str, Any], reached: str | None, requests: list[int]
) -> None:
    result, run, observer = train(tmp_path, sentence, budget)
    assert asked(run) == requests
    assert open_product(run).labels == ["bad", "good"]
    assert result["ended_by"] == reached == json.loads((run / "summary.json").read_text())["ended_by"]
    assert len([w for w in observer.warnings if "budget" in w and str(reached) in w]) == (reached is not None)


def test_no_more_prefixes_are_scored_than_there_are_trials(tmp_path: Path, sentence: Path) -> None:
    result, run, _ = train(tmp_path, sentence, {"trials": 3})
    history = open_existing(run)
    assert len(history.scored()) == 3
    history.close()
    assert result["ended_by"] == "budget.trials"


def test_tokens_that_were_not_counted_are_bounded_by_the_bytes(tmp_path: Path, sentence: Path) -> None:
    _, run, _ = train(tmp_path, sentence, {"tokens": 1})
    with sqlite3.connect(run / "history.sqlite") as db:
        bytes_of = db.execute(
            "SELECT sum(length(CAST(messages AS BLOB)) + length(CAST(text AS BLOB)))"
            " FROM requests r JOIN completions c ON c.request_id = r.id"
        ).fetchone()[0]
    history = open_existing(run)
    assert history.spent(1)["tokens"] == bytes_of > 100
    history.close()


def test_model_of_an_online_search_is_trained_to_its_end(tmp_path: Path, sentence: Path) -> None:
    search = {"rounds": 4, "proposals": 2, "regime": "online"}
    online = {"search": search, "training": {"steps": 8}}
    _, run, _ = train(tmp_path, sentence, {"calls": 3}, **online)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["title"]: len(line["losses"]) for line in lines}
    assert steps == {"round 1: training": 2, "training to the end": 6, "training without a prefix": 8}


def test_seconds_before_a_pause_are_spent(tmp_path: Path, sentence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Search, "teach", stop)
        train(tmp_path, sentence, {"seconds": 600})
    with sqlite3.connect(tmp_path / "run" / "history.sqlite") as db:
        db.execute("UPDATE runs SET seconds = 601")
    observer = Silent()
    from gpta_local.config import load

    result = Run(load(tmp_path / "config.yaml"), observer).run(tmp_path / "run", resume=True)
    assert result["ended_by"] == "budget.seconds"
    assert asked(tmp_path / "run") == [1, 2], "the round that was scored counts, no other begins"


def test_run_that_is_resumed_with_a_reached_budget_keeps_its_rounds(
    tmp_path: Path, sentence: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Finish, "contest", stop)
        train(tmp_path, sentence, {"calls": 5})
    from gpta_local.config import load

    result = Run(load(tmp_path / "config.yaml"), Silent()).run(tmp_path / "run", resume=True)
    assert result["ended_by"] == "budget.calls" and asked(tmp_path / "run") == [1, 2, 2]
