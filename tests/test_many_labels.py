"""Tasks with more labels than one request shows: what is asked, and what becomes of the replies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from fault_server import FaultServer, Json, Reply, completion
from samples import CARD, write_config, write_jsonl

from gpta_local.assistant.prompts import (
    LABELS_OF_A_REQUEST,
    describe,
    label_texts_request,
    parts_of,
    phrases_that_fit,
    prefix_request,
    reply_room,
)
from gpta_local.config import load
from gpta_local.errors import PrivacyError
from gpta_local.knowledge.label_texts import joined
from gpta_local.privacy.leak_scan import scan_of
from gpta_local.record.history import open_existing
from gpta_local.schema import DatasetCard, Label

VERBS = ("open", "close", "block", "check", "move")
THINGS = ("loan", "card", "cash", "fee", "safe", "fund", "rate", "wire", "gold")
NAMES = [f"{verb}_{thing}" for verb in VERBS for thing in THINGS]
"""45 labels."""


def card_of(labels: int) -> DatasetCard:
    return replace(CARD, labels=tuple(Label(f"intent_{number}", f"means {number}") for number in range(labels)))


class TestParts:
    @pytest.mark.parametrize(("labels", "sizes"), [(2, [2]), (20, [20]), (21, [10, 11]), (77, [19, 19, 19, 20])])
    def test_labels_are_spread_evenly_in_their_order(self, labels: int, sizes: list[int]) -> None:
        card = card_of(labels)
        parts = parts_of(card)
        assert [len(part.labels) for part in parts] == sizes
        assert tuple(label for part in parts for label in part.labels) == card.labels

    @pytest.mark.parametrize(("tokens", "labels"), [(None, 20), (2048, 20), (200, 7), (100, 2), (8, 1)])
    def test_reply_with_a_phrase_for_each_label_has_room(self, tokens: int | None, labels: int) -> None:
        assert phrases_that_fit(tokens) == labels
        assert labels == 1 or tokens is None or reply_room(label_texts_request(card_of(labels))) <= tokens

    def test_request_for_a_prefix_shows_some_labels_from_first_to_last_and_how_many_there_are(self) -> None:
        content = prefix_request(card_of(150), []).messages[-1].content
        shown = [line for line in content.splitlines() if line.startswith("intent_")]
        assert len(shown) <= LABELS_OF_A_REQUEST
        assert shown[0] == "intent_0: means 0" and shown[-1].startswith("intent_144")
        assert f"\n({150 - len(shown)} more)\n" in content

    def test_few_labels_are_all_shown(self) -> None:
        assert prefix_request(card_of(20), []).messages[-1].content.startswith(describe(card_of(20)))


OWN = {"a": "card a", "b": "card b", "c": "card c"}


class TestJoined:
    def test_sets_of_parts_are_put_together_in_their_order(self) -> None:
        parts = [[{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], [{"c": "5"}, {"c": "6"}]]
        assert joined(parts, OWN) == [{"a": "1", "b": "2", "c": "5"}, {"a": "3", "b": "4", "c": "6"}]

    def test_part_without_a_further_set_says_what_the_card_says(self) -> None:
        assert joined([[{"a": "1", "b": "2"}], []], OWN) == [{"a": "1", "b": "2", "c": "card c"}]

    def test_phrase_that_an_earlier_label_has_is_not_taken(self) -> None:
        assert joined([[{"a": "1", "b": "Same"}], [{"c": "same"}]], OWN) == [{"a": "1", "b": "Same", "c": "card c"}]

    def test_sets_of_one_part_are_as_they_are(self) -> None:
        sets = [{"a": "1", "b": "2", "c": "3"}]
        assert joined([sets], OWN) == sets
        assert joined([[]], OWN) == []


def labels_asked_for(body: Json) -> list[str]:
    lines = body["messages"][-1]["content"].splitlines()
    return [name for line in lines if (name := line.partition(":")[0]) in NAMES]


def chat(body: Json) -> Reply:
    """Phrases for the labels of the request, but for those of `move`; a prefix else."""
    asked, n = labels_asked_for(body), body.get("n", 1)
    if "phrase for each label" not in body["messages"][-1]["content"]:
        return Reply(body=completion(*("What the customer wants:", "Request:")[:n]))
    said = (
        "I do not know"
        if "move_card" in asked
        else "\n".join(f"{name}: to {' '.join(name.split('_'))} now" for name in asked)
    )
    return Reply(body=completion(*[said] * n))


Write = Callable[..., list[Any]]


@pytest.fixture
def write(tmp_path: Path, sentence: Path) -> Write:
    def words(assistant: dict[str, Any], **changes: Any) -> list[Any]:
        rows = [{"text": f"{how} {name.replace('_', ' a ')}", "label": name} for how in "ab" for name in NAMES]
        write_jsonl(tmp_path / "train.jsonl", rows)
        content = {
            "assistant": assistant,
            "card": {"labels": {name: f"wants to {name.replace('_', ' a ')}" for name in NAMES}},
            "downstream": {"backbone": str(sentence)},
            "search": {"rounds": 1, "proposals": 2, "label_text_samples": 1},
            "finish": {"plain_control": False, "finalists": 1},
        }
        config = write_config(tmp_path / "config.yaml", content | changes)
        return ["train", config, "--output", tmp_path / "run", "--quiet"]

    return words


@pytest.mark.usefixtures("near_prefixes_count")
def test_server_is_asked_for_parts_of_the_labels(write: Write, tmp_path: Path) -> None:
    with FaultServer(chat) as server:
        section = {"backend": "openai", "model": "m", "base_url": server.base_url, "max_retries": 0}
        result = invoke(*write(section))
    assert result.exit_code == 0, result.output
    asked = [labels_asked_for(sent) for sent in server.chats if "phrase for each" in sent["messages"][-1]["content"]]
    assert sorted(map(len, asked)) == [15, 15, 15]
    assert sorted(name for names in asked for name in names) == sorted(NAMES)
    (scores,) = open_existing(tmp_path / "run").label_text_scores()
    assert scores.texts["open_loan"] == "to open loan now"
    assert scores.texts["move_card"] == "wants to move a card", "the replies for these labels are of no use"


@pytest.mark.usefixtures("near_prefixes_count")
def test_model_in_this_process_is_asked_for_parts_of_the_labels(write: Write, tmp_path: Path, chat_model: Path) -> None:
    result = invoke(*write({"backend": "local", "model": str(chat_model), "cache": False}))
    assert result.exit_code in (0, 1), result.output  # what a random model says may all be unusable
    assert "no label texts" not in result.output
    kinds = [kind for _, _, kind, _, _ in open_existing(tmp_path / "run").requests()]
    assert kinds == ["label-texts"] * 3 + ["prefix"]


def test_every_label_is_scanned_before_the_assistant_is_asked(write: Write) -> None:
    config, card = load(write({"backend": "local", "model": "m"})[1]), card_of(150)
    labels = [*card.labels]
    labels[77] = replace(labels[77], meaning="one two three four five six seven")
    with pytest.raises(PrivacyError, match=r"card\.labels\.intent_77"):
        scan_of(config, ["one two three four five six seven"], replace(card, labels=tuple(labels)))


def test_budget_of_calls_counts_the_requests_for_all_parts(write: Write, tmp_path: Path) -> None:
    with FaultServer(chat) as server:
        section = {"backend": "openai", "model": "m", "base_url": server.base_url, "max_retries": 0}
        command = write(section, search={"rounds": 1, "proposals": 2, "label_text_samples": 4}, budget={"calls": 7})
        result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert len(open_existing(tmp_path / "run").completions("label-texts")) == 6
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["replies"]["read"] == 7
