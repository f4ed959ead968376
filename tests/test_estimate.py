"""How long a run would take: which stages are counted, and how often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples import EXAMPLE_TEXTS, Silent, config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.run import estimate
from gpta_local.run.loop import Run

TITLES = {
    "training without a prefix": "control",
    "training with templates": "product",
    "training with example texts, to judge": "judge",
    "training with example texts": "product",
    'training with "': "product",
    "training from the card's label texts": "card",
    "training plainly": "plain",
    "round 1: training": "search",
}


def small_run(folder: Path, sentence: Path, changes: dict[str, Any]) -> Run:
    label_texts = [label_text_reply({"bad": "unhappy", "good": "happy"})]
    record_replies(folder / "record", label_texts, ["Guest:", "Mood:", "Meal:"], EXAMPLE_TEXTS)
    content = {"assistant": {"backend": "replay", "run": "record"}, "downstream": {"backbone": str(sentence)}}
    return Run(config_of(folder, sentiment_rows(), content | changes), Silent())


def test_search_takes_as_many_times_as_long_as_it_has_rounds(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_seconds", lambda work: 1.0)
    short, long = (
        estimate.estimate(small_run(tmp_path / str(rounds), sentence, {"search": {"rounds": rounds}}))
        for rounds in (1, 10)
    )
    assert long["scoring prefixes"] == 10 * short["scoring prefixes"]
    assert long["training"] == short["training"]


@pytest.mark.parametrize(
    ("test", "changes", "trainings"),
    [
        ("test.jsonl", {}, ["control", "product", "card", "plain"]),
        ("test.jsonl", {"finish": {"plain_control": False}}, ["control", "product", "card"]),
        ("test.jsonl", {"finish": {"card_control": False}}, ["control", "product", "plain"]),
        (None, {"finish": {"folds": 0}}, ["product"]),
        (None, {"finish": {"folds": 0, "templates": 0}}, ["control", "product"]),
        ("test.jsonl", {"search": {"regime": "online"}}, ["search", "control", "card", "plain"]),
        (
            None,
            {"finish": {"folds": 0}, "knowledge": {"example_texts": 8}},
            ["control", "judge", "product"],
        ),
    ],
)
def test_trainings_of_a_run_are_counted(
    test: str | None, changes: dict[str, Any], trainings: list[str], sentence: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "test.jsonl", sentiment_rows())
    run = small_run(tmp_path, sentence, {"data": {"test": test}} | changes)
    run.run(tmp_path / "run")
    titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [next(word for title, word in TITLES.items() if title in line) for line in titles]
    assert sorted(found) == sorted(word for word in trainings if word in found)
    assert set(trainings) - set(found) <= {"product", "judge", "card"}  # nothing need be better than none
    twice_as_long = [word for word in trainings if "judge" in trainings and word != "control"]
    assert estimate.steps_of_all_trainings(run.plan) == len(trainings + twice_as_long)


@pytest.mark.parametrize(("finish", "more"), [({"folds": 3}, 6), ({"folds": 3, "plain_control": False}, 3)])
def test_trainings_of_a_cross_validation_are_counted(
    finish: dict[str, Any], more: int, sentence: Path, tmp_path: Path
) -> None:
    with_parts, without = (small_run(tmp_path / str(n), sentence, {"finish": finish | {"folds": n}}) for n in (3, 0))
    counts = [estimate.steps_of_all_trainings(run.plan) for run in (with_parts, without)]
    assert counts[0] - counts[1] == more
