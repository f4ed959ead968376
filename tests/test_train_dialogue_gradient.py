"""Runs in which a small random assistant learns from its history, on the quickstart's data."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import QUICKSTART, Silent, read_rows

from gpta_local.config import load
from gpta_local.record.history import History, open_existing
from gpta_local.run import loop
from gpta_local.system.adapters import check_adapter

pytestmark = pytest.mark.slow

SMALL = (
    "search.rounds=3",
    "search.proposals=8",
    "search.label_text_samples=4",
    "search.history_shown=4",
    "assistant.max_new_tokens=8",  # what a random model says is seldom one line for long
    "training.steps=2",
    "finish.finalists=1",
    "finish.plain_control=false",
    "data.test=null",
    "dialogue_gradient.steps=3",
    "dialogue_gradient.batch_size=4",
)
Finished = tuple[Path, Silent]
Train = Callable[..., Finished]


@pytest.fixture(scope="module")
def train(near_prefixes_count: None, chat_model: Path, sentence: Path) -> Train:
    """Make a run: `train(folder, *overrides)`."""
    models = (f"assistant.model={chat_model}", f"downstream.backbone={sentence}")

    def run(folder: Path, *overrides: str) -> Finished:
        observer = Silent()
        loop.Run(load(QUICKSTART / "quickstart.yaml", [*SMALL, *models, *overrides]), observer).run(folder)
        return folder, observer

    return run


@pytest.fixture(scope="module")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(tmp_path_factory.mktemp("runs") / "first")


def adapters(folder: Path) -> list[Path]:
    return sorted((folder / "adapters").iterdir())


def record(folder: Path) -> History:
    return open_existing(folder)


def asked_of(folder: Path) -> list[tuple[int, str, int]]:
    """(round, adapter, completions) of each request for prefixes."""
    with sqlite3.connect(folder / "history.sqlite") as connection:
        return connection.execute(
            "SELECT r.round, r.adapter, count(*) FROM requests r JOIN completions c ON c.request_id = r.id"
            " WHERE r.kind = 'prefix' GROUP BY r.id ORDER BY r.id"
        ).fetchall()


def test_each_round_but_the_last_leaves_an_adapter(finished: Finished, chat_model: Path) -> None:
    folder, observer = finished
    assert [path.name for path in adapters(folder)] == ["001", "002"]
    assert [(step.adapter, refused) for step, refused in observer.steps] == [("001", ""), ("002", "")]
    for adapter in adapters(folder):
        check_adapter(adapter, chat_model)


def test_adapter_on_trial_gives_half_of_the_proposals_and_the_one_that_was_kept_the_rest(finished: Finished) -> None:
    asked = asked_of(finished[0])
    assert asked[0] == (1, "", 8)
    assert asked[1:3] == [(2, "", 4), (2, "001", 4)]
    kept = finished[1].verdicts[0][2] == "kept"
    assert asked[3:] == [(3, "001" if kept else "", 4), (3, "002", 4)]


def test_figures_verdicts_and_what_later_steps_need_are_recorded(finished: Finished) -> None:
    folder, observer = finished
    history = record(folder)
    recorded = history.proposal_figures()
    assert [(number, figures.adapter, figures.asked) for number, figures in recorded] == asked_of(folder)
    assert [figures for _, figures in recorded][1:3] == list(observer.verdicts[0][:2])
    accepted = sum(entry.proposals.get("accepted", 0) for entry in observer.rounds)
    assert sum(figures.fresh for _, figures in recorded) == accepted
    verdicts = [verdict for *_, verdict in observer.verdicts]
    assert set(verdicts) <= {"kept", "rolled back"}
    steps = [(number, step, verdicts[number - 1]) for number, (step, _) in enumerate(observer.steps, start=1)]
    assert history.steps() == steps
    run = history.run()
    assert run is not None
    card, regime = run
    assert (card.name, regime) == ("clinic-portal-messages", "low-resource")
    assert all(entry.loss > 0 and set(entry.texts) == set(card.label_names) for entry in history.label_text_scores())


def test_taught_replies_are_prefixes_of_the_history(finished: Finished) -> None:
    folder, _ = finished
    known = {entry.text for entry in record(folder).scored()}
    for adapter in adapters(folder):
        rows = [json.loads(line) for line in (adapter / "dialogues.jsonl").open(encoding="utf-8")]
        replies = [row["reply"] for row in rows if "Write one new short text" in row["messages"][-1]["content"]]
        assert replies and set(replies) <= known


def test_same_seed_gives_the_same_history_and_adapters(finished: Finished, train: Train, tmp_path: Path) -> None:
    first = finished[0]
    again, observer = train(tmp_path / "again")
    for old, new in zip(adapters(first), adapters(again), strict=True):
        for name in ("adapter_model.safetensors", "dialogues.jsonl"):
            assert (old / name).read_bytes() == (new / name).read_bytes()
    for kind in ("prefix", "label-texts"):
        assert record(first).completions(kind) == record(again).completions(kind)
    assert record(first).scored_by_round() == record(again).scored_by_round()
    assert record(first).proposal_figures() == record(again).proposal_figures()
    assert record(first).requests() == record(again).requests()
    assert observer.verdicts == finished[1].verdicts


def test_no_row_is_in_what_was_taught(finished: Finished) -> None:
    folder = finished[0]
    rows = [row["text"] for split in ("train", "validation", "test") for row in read_rows(split)]
    files = [path for path in (folder / "adapters").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"dialogues.jsonl", "step.json", "adapter_model.safetensors"}
    for path in files:
        text = path.read_bytes().decode("latin-1")
        assert not [row for row in rows if row.encode().decode("latin-1") in text]


def test_product_is_none_of_the_assistants(finished: Finished) -> None:
    names = {path.name for path in (finished[0] / "model").rglob("*")}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)


def test_steps_come_every_so_many_rounds(train: Train, tmp_path: Path) -> None:
    folder, observer = train(tmp_path / "run", "dialogue_gradient.every=2")
    assert [number for number, *_ in record(folder).steps()] == [2]
    assert [step.adapter for step, _ in observer.steps] == ["001"]
    assert [adapter for _, adapter, _ in asked_of(folder)] == ["", "", "", "001"]


def test_equal_gains_are_a_warning_and_no_step(train: Train, tmp_path: Path) -> None:
    folder, observer = train(tmp_path / "run", "search.rounds=2", "search.proposals=1", "search.label_text_samples=0")
    assert any("nothing to learn" in warning for warning in observer.warnings)
    assert record(folder).steps() == []
