"""What an assistant has answered is not asked for twice, if it is the same assistant, asked the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audited import entries
from commands import invoke
from fault_server import FaultServer, well_behaved
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.record.cache import default_folder
from gpta_local.schema import Ask, Message, Request, Sampling

ASK = Ask(Request("prefix", (Message("user", "Write one prefix."),)), 3, Sampling(max_new_tokens=8, seed=2))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(lambda body: well_behaved(body | {"model": "m, as it is today"})) as server:
        yield server


def asked(connect: Any, server: FaultServer, folder: Path, ask: Ask = ASK, **changes: Any) -> int:
    """Requests that the server got of a new client, its check left out."""
    assistant: OpenAIAssistant = connect(server.base_url, cache=folder, **changes)
    assistant.check()
    before = len(server.chats)
    assistant.complete_all([ask])
    return len(server.chats) - before


def test_second_client_gives_what_the_first_was_answered(connect: Any, server: FaultServer, tmp_path: Path) -> None:
    assert [asked(connect, server, tmp_path) for _ in range(2)] == [1, 0]
    assistant = connect(server.base_url, cache=tmp_path)
    assistant.check()
    (replies,) = assistant.complete_all([ASK])
    assert [reply.text for reply in replies] == [f"seed {2 * 4096 + number}" for number in range(3)]
    assert all(reply.cached for reply in replies)


@pytest.mark.parametrize(
    "changes",
    [
        {"ask": Ask(ASK.request, 2, ASK.sampling)},
        {"ask": Ask(ASK.request, 3, Sampling(max_new_tokens=8, seed=3))},
        {"extra_body": {"top_k": 5}},
        {"kind": VLLMAssistant},
    ],
    ids=["count", "seed", "field", "backend"],
)
def test_another_question_is_asked(
    connect: Any, server: FaultServer, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLMAssistant, "check", OpenAIAssistant.check)
    asked(connect, server, tmp_path)
    assert asked(connect, server, tmp_path, **changes) == 1


def test_another_model_behind_the_same_name_is_asked_if_the_server_says_so(
    connect: Any, server: FaultServer, tmp_path: Path
) -> None:
    asked(connect, server, tmp_path)
    server._chat = lambda body: well_behaved(body | {"model": "m, as it is tomorrow"})
    assert asked(connect, server, tmp_path) == 1


def test_nothing_is_kept_without_a_folder(connect: Any, server: FaultServer) -> None:
    before = [*default_folder().glob("*")]
    assert [asked(connect, server, None) for _ in range(2)] == [1, 1]  # type: ignore[arg-type]
    assert [*default_folder().glob("*")] == before


def test_audit_tells_what_was_kept_and_a_purge_deletes_it(
    server: FaultServer, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
    assistant = {"backend": "openai", "model": "m", "base_url": server.base_url, "cache": True}
    changes = {"assistant": assistant, "downstream": {"backbone": str(sentence)}}
    config = write_config(tmp_path / "guests.yaml", changes)

    def kept(run: Path, *words: str) -> list[bool]:
        result = invoke("train", config, "--output", run, *words)
        assert result.exit_code in (0, 1), result.output
        assert ("kept from an earlier asking" in result.output) == (run.name != "first")
        return [entry["cached"] for entry in entries(run) if entry["event"] == "completions"]

    assert kept(tmp_path / "first") == [False, False]
    assert kept(tmp_path / "second") == [True, True]
    assert "kept from an earlier asking" in invoke("audit", "show", tmp_path / "second").output
    assert invoke("audit", "verify", tmp_path / "second").exit_code == 0
    assert len([*default_folder().iterdir()]) == 2
    assert invoke("purge", tmp_path / "first", "--yes").exit_code == 0
    assert [*default_folder().iterdir()] == []
