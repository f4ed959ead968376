"""`train --dry-run`: all checks, a time for each stage, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, invoke
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.run.estimate import number_of_trainings
from gpta_local.run.loop import Run

TITLES = {
    "training without a prefix": "control",
    "training with templates": "templates",
    'training with "': "finalist",
    "training plainly": "plain",
    "round 1: training": "search",
}
QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"


def test_dry_run_estimates_and_writes_nothing(tmp_path: Path) -> None:
    result = invoke("train", QUICKSTART, "--dry-run", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for stage in ("asking the assistant", "scoring prefixes", "training", "evaluating", "all together, about"):
        assert stage in result.stdout
    assert not (tmp_path / "run").exists()


def test_estimate_grows_with_the_search(tmp_path: Path) -> None:
    def seconds(rounds: int) -> float:
        output = invoke("train", QUICKSTART, "--dry-run", "--set", f"search.rounds={rounds}").stdout
        return float(next(line for line in output.splitlines() if line.startswith("scoring")).split()[-2])

    assert seconds(40) > 3 * seconds(4)


@pytest.mark.parametrize(
    ("test", "changes", "trainings"),
    [
        ("test.jsonl", {}, ["control", "templates", "finalist", "plain"]),
        ("test.jsonl", {"finish": {"templates": 0}}, ["control", "finalist", "plain"]),
        ("test.jsonl", {"finish": {"plain_control": False}}, ["control", "templates", "finalist"]),
        (None, {}, ["templates", "finalist"]),
        (None, {"finish": {"templates": 0}}, ["control", "finalist"]),
        ("test.jsonl", {"search": {"regime": "online"}}, ["search", "control", "plain"]),
    ],
)
def test_trainings_of_a_run_are_counted(
    test: str | None, changes: dict[str, Any], trainings: list[str], sentence: Path, tmp_path: Path
) -> None:
    record_replies(
        tmp_path / "record", [label_text_reply({"bad": "unhappy", "good": "happy"})], ["Guest:", "Mood:", "Meal:"]
    )
    write_jsonl(tmp_path / "test.jsonl", sentiment_rows())
    content = {
        "data": {"test": test},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
    }
    run = Run(config_of(tmp_path, sentiment_rows(), content | changes), Silent())
    run.run(tmp_path / "run")
    titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [next(word for title, word in TITLES.items() if title in line) for line in titles]
    assert sorted(found) == sorted(word for word in trainings if word in found)
    assert set(trainings) - set(found) <= {"finalist"}  # no prefix need be clearly better than none
    assert number_of_trainings(run.plan) == len(trainings)
