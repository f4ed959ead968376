"""One assistant that is served at several addresses: requests are spread, and one server may die."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, invoke
from fault_server import Chat, FakeVLLM, FaultServer, Json, Reply, always, error, first, ignores_n, well_behaved
from samples import sentiment_rows, write_config, write_jsonl

from gpta_local.assistant import several
from gpta_local.assistant.openai_api import SEEDS
from gpta_local.assistant.several import SeveralEndpoints
from gpta_local.errors import AdapterRefused, EndpointError
from gpta_local.schema import Ask, Message, Request, Sampling

ASKS = [Ask(Request("prefix", (Message("user", f"Write {what}."),)), 4, Sampling(seed=2)) for what in "abcdef"]
EXPECTED = [f"seed {2 * SEEDS + i}" for i in range(4)]

Connect = Callable[..., SeveralEndpoints]
Serve = Callable[..., FaultServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda chat=well_behaved: stack.enter_context(FaultServer(chat))


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Make a client of these servers, with short pauses."""
    monkeypatch.setattr(several, "FIRST_PAUSE", 0.01)
    with ExitStack() as stack:

        def make(servers: Sequence[FaultServer], backend: Any = "openai", **changes: Any) -> Any:
            settings: dict[str, Any] = {"api_key": None, "timeout": 10.0, "max_retries": 3, "concurrency": 2}
            urls = [server.base_url for server in servers]
            made = SeveralEndpoints("m", backend, base_url=urls, **settings | changes)
            stack.callback(made.close)
            return made

        yield make


def texts(assistant: SeveralEndpoints) -> list[list[str]]:
    return [[completion.text for completion in found] for found in assistant.complete_all(ASKS)]


def test_requests_are_spread_and_each_reply_names_its_endpoint(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(2, timeout=10)

    def waits_for_another(body: Json) -> Reply:
        together.wait()
        return well_behaved(body)

    servers = [serve(waits_for_another), serve(waits_for_another)]  # so that both are needed
    found = connect(servers, concurrency=1).complete_all(ASKS)
    assert [[completion.text for completion in of_ask] for of_ask in found] == [EXPECTED] * 6
    assert {completion.endpoint for of_ask in found for completion in of_ask} == {s.base_url for s in servers}
    assert [len(server.chats) for server in servers] == [6, 6], "two completions by each request"


def test_what_a_dead_server_was_asked_goes_to_the_others(serve: Serve, connect: Connect) -> None:
    dying, living = serve(first(then=always(error(500, "out of memory")))), serve()
    told: list[str] = []
    assistant = connect([dying, living])
    assistant.check(ASKS[0], told.append)
    assert "out of memory" in told[0] and told[0].endswith("Its requests go to the other endpoints")
    dying.stop_listening()
    assert texts(assistant) == [EXPECTED] * 6
    assert len(told) == 1, "a death is told once"


def test_server_that_dies_in_a_run_is_told_once_and_asked_last(serve: Serve, connect: Connect) -> None:
    dying, living = serve(), serve()
    told: list[str] = []
    assistant = connect([dying, living])
    assistant.check(ASKS[0], told.append)
    dying.stop_listening()
    assert texts(assistant) == [EXPECTED] * 6 == texts(assistant)
    assert len(told) == 1 and f"nothing listens on port {dying.port}" in told[0]


def test_server_that_is_back_is_asked_again(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "REST_SECONDS", 0.0)
    late = serve(first(*[error(503, "loading")] * 3))
    assistant = connect([late, serve()])
    assert texts(assistant) == [EXPECTED] * 6 == texts(assistant)
    assert len(late.chats) > 3


def test_where_all_fail_for_a_moment_they_are_tried_again(serve: Serve, connect: Connect) -> None:
    servers = [serve(first(*[error(503, "loading")] * 2)) for _ in range(2)]
    assert texts(connect(servers, concurrency=1)) == [EXPECTED] * 6


def test_where_all_fail_for_good_the_fault_is_one_message(serve: Serve, connect: Connect) -> None:
    servers = [serve(always(error(401, "no key"))), serve(always(error(401, "no key")))]
    assistant = connect(servers)
    with pytest.raises(EndpointError, match=r"asks for a key \(401\)"):
        assistant.check(ASKS[0])
    with pytest.raises(EndpointError, match=r"asks for a key \(401\)"):
        assistant.complete_all(ASKS[:1])
    assert sum(len(server.chats) for server in servers) <= 2 + 4 * 2, "nothing is tried again that does not pass"


def test_one_server_that_gives_one_completion_at_a_time_is_asked_for_one(serve: Serve, connect: Connect) -> None:
    assistant = connect([serve(ignores_n), serve(ignores_n)])
    assert texts(assistant) == [EXPECTED] * 6


def test_endpoint_that_serves_another_model_is_left_out_with_a_warning(serve: Serve, connect: Connect) -> None:
    right, wrong, told = serve(), serve(always(error(404, "The model `m` does not exist."))), list[str]()
    line = connect([right, wrong]).check(ASKS[0], told.append)
    assert line == f"m at {right.base_url}"
    assert len(told) == 1 and "refuses the model 'm' (404)" in told[0] and wrong.base_url in told[0]


def test_servers_of_vllm_take_no_adapters(tmp_path: Path, connect: Connect) -> None:
    with FakeVLLM(tmp_path) as one, FakeVLLM(tmp_path) as other:
        assistant = connect([one, other], backend="vllm")
        assistant.check(ASKS[0])
        assert not assistant.takes_adapters
        with pytest.raises(AdapterRefused, match="further_base_urls"):
            assistant.use_adapter(tmp_path)


class TestRun:
    def test_run_goes_on_though_a_server_dies_and_its_audit_log_names_the_servers(
        self, serve: Serve, sentence: Path, tmp_path: Path
    ) -> None:
        dying, living = serve(dies_after(1)), serve()
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        changes = {
            "assistant": {
                "backend": "openai",
                "model": "m",
                "base_url": dying.base_url,
                "further_base_urls": [living.base_url],
                "max_retries": 0,
            },
            "downstream": {"backbone": str(sentence)},
            "search": {"rounds": 2, "proposals": 4, "label_text_samples": 0},
        }
        config = write_config(tmp_path / "guests.yaml", changes)
        result = invoke("train", config, "--output", tmp_path / "run")
        assert result.exit_code in (0, 1), result.output  # what such a server says is hardly a prefix
        assert "Its requests go to the other endpoints" in result.stderr
        entries = [json.loads(line) for line in (tmp_path / "run" / "audit.jsonl").read_text("ascii").splitlines()]
        opened = next(entry for entry in entries if entry["event"] == "assistant")
        assert opened["endpoint"] == f"{dying.base_url}, {living.base_url}"
        named = {c["endpoint"] for entry in entries if entry["event"] == "completions" for c in entry["completions"]}
        assert living.base_url in named <= {living.base_url, dying.base_url}
        assert invoke("audit", "verify", tmp_path / "run").exit_code == 0

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"further_base_urls": ["http://127.0.0.1:9/v1/"]}, "names an address twice"),
            ({"further_base_urls": ["https://llm.example.org/v1"]}, "further_base_urls goes to llm.example.org"),
            ({"further_base_urls": ["127.0.0.1:8/v1"]}, "further_base_urls"),
            ({"further_base_urls": ["http://127.0.0.1:8/v1"], "adapter": "x"}, "adapter is loaded into one server"),
        ],
    )
    def test_addresses_that_cannot_be_used_are_one_message(
        self, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        assistant = {"backend": "vllm", "model": "m", "base_url": "http://127.0.0.1:9/v1"} | changes
        config = write_config(tmp_path / "guests.yaml", {"assistant": assistant})
        assert_refused(invoke("train", config, "--output", tmp_path / "run"), words)


def dies_after(requests: int) -> Chat:
    """So many requests are answered, and no further one."""
    left = iter(range(requests))
    return lambda body: well_behaved(body) if next(left, None) is not None else error(500, "out of memory")
