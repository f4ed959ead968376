"""`gpta-local train` and `doctor` against servers that take less than is sent, or answer what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from fault_server import CHANGED, Chat, FaultServer, Json, Reply, completion
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify

pytestmark = pytest.mark.usefixtures("near_prefixes_count")

Prepare = Callable[..., list[Any]]


@pytest.fixture
def prepare(sentence: Path, tmp_path: Path) -> Prepare:
    """The words of a small run against a server."""

    def write(server: FaultServer, **search: Any) -> list[Any]:
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        content = {
            "assistant": {"backend": "openai", "model": "m", "base_url": server.base_url, "max_retries": 0},
            "downstream": {"backbone": str(sentence)},
            "knowledge": {"example_texts": 0},
            "search": {"rounds": 1, "proposals": 4, "label_text_samples": 2, **search},
            "training": {"steps": 2},
            "finish": {"plain_control": False, "finalists": 1},
        }
        return ["train", write_config(tmp_path / "config.yaml", content), "--output", tmp_path / "run", "--quiet"]

    return write


def answers(around: str = "{}", reason: str = "stop", **message: Any) -> Chat:
    """Another reply of the kind that is asked for to each request."""
    seen: list[None] = []

    def chat(body: Json) -> Reply:
        seen.append(None)
        asked = body["messages"][-1]["content"]
        said = ("Question", "Topic", "Guests", "Review")[len(seen) % 4] + ":"
        if "phrase for each label" in asked:
            said = f"bad: an unhappy guest {len(seen) * 'x'}\ngood: a happy guest {len(seen) * 'x'}"
        reply = completion(*[around.format(said)] * body.get("n", 1), finish_reason=reason)
        for choice in reply["choices"]:
            choice["message"] |= message
        return Reply(body=reply)

    return chat


def test_run_of_a_server_without_a_system_role_says_so_and_is_as_any_other(prepare: Prepare, tmp_path: Path) -> None:
    refuses, good = CHANGED["no system role, vLLM"][0], answers()

    def chat(body: Json) -> Any:
        refusal = refuses(body)
        return refusal if isinstance(refusal, Reply) and refusal.status == 400 else good(body)

    with FaultServer(chat) as server:
        result = invoke(*prepare(server))
        assert result.exit_code == 0, result.output
        assert result.output.count("has no system role") == 1
        sent = [chat for chat in server.chats if chat["messages"][0]["role"] == "user"]
        assert len(server.chats) == len(sent) + 1
    assert not verify(tmp_path / "run").problems
    assert len(open_existing(tmp_path / "run").requests()) == len(sent) == 2, "the check is the first request"


def test_doctor_says_the_same_as_the_run(prepare: Prepare) -> None:
    with FaultServer(CHANGED["no top_p"][0]) as server:
        result = invoke("doctor", prepare(server)[1])
        assert "takes no top_p" in result.output
        assert "Data set:" in server.chats[0]["messages"][-1]["content"], "it asks what the run will ask"


def test_doctor_keeps_a_card_with_private_words_to_itself(prepare: Prepare, tmp_path: Path) -> None:
    with FaultServer() as server:
        config = prepare(server)[1]
        row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["text"]
        words = " ".join([row] * 3)
        write_jsonl(tmp_path / "train.jsonl", [*sentiment_rows(), {"text": words, "label": "bad"}])
        result = invoke("doctor", config, "--set", f"card.description={json.dumps(words)}")
        assert "would go to the assistant" in result.output
        assert row not in json.dumps(server.chats)


@pytest.mark.parametrize(
    ("chat", "cause"),
    [
        (answers("", "length", reasoning_content="Let me think. " * 9), "only reasoning, no answer"),
        (answers("<think>Let me think", "length"), "only reasoning, no answer"),
        (answers("", refusal="I cannot help with that."), "the model refuses"),
        (answers("", tool_calls=[{"id": "c1", "type": "function"}]), "a call of a tool"),
    ],
    ids=["reasoning apart", "reasoning cut off", "refusals", "calls"],
)
def test_run_without_a_usable_reply_says_why(prepare: Prepare, tmp_path: Path, chat: Chat, cause: str) -> None:
    with FaultServer(chat) as server:
        result = invoke(*prepare(server), "--set", "knowledge.example_texts=8")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert "none of 16 asked for is usable" in result.output
    assert "No replies of the assistant could be used: 8 of 8" in result.output
    assert f"label texts: 2 of 2 replies cannot be used: {cause}" in result.output
    assert f"round 1: 4 of 4 replies cannot be used: {cause}" in result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert cause in summary["unusable"] and summary["replies"] == {"read": 8, "usable": 0}
    if "reasoning" in cause:
        assert "raise assistant.max_new_tokens" in summary["unusable"]


@pytest.mark.parametrize(
    "around", ["<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>{}", "{}<|eot_id|>"]
)
def test_marks_around_replies_leave_a_run_as_it_is(prepare: Prepare, tmp_path: Path, around: str) -> None:
    with FaultServer(answers(around)) as server:
        result = invoke(*prepare(server))
    assert "cannot be used" not in result.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["unusable"] is None
