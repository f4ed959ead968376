"""What the message of a lasting fault says is done, and it helps: the fault table of docs/RELIABILITY.md. (Of a
refused field: `test_server_traits.py`; of a rate with a pause: `test_train_faults.py`.)"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fault_server import FaultServer, Json, Raw, Received, Reply, completion, error, model_list, well_behaved
from samples import CARD, scored

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.prompts import prefix_request
from gpta_local.errors import EndpointError
from gpta_local.schema import Ask, Request, Sampling

Connect = Callable[..., OpenAIAssistant]


class Keyed(FaultServer):
    """Asks for a key."""

    def _answer(self, request: Received) -> Reply | Raw:
        right = request.headers.get("authorization") == "Bearer right"
        return super()._answer(request) if right else error(401, "Unauthorized")


@pytest.fixture
def serve() -> Iterator[Callable[[FaultServer], FaultServer]]:
    with ExitStack() as stack:
        yield stack.enter_context


Serve = Callable[[FaultServer], FaultServer]


def remedy(assistant: OpenAIAssistant) -> str:
    with pytest.raises(EndpointError) as caught:
        assistant.check()
    return str(caught.value)


@pytest.mark.parametrize("before", [None, "wrong"])
def test_right_key_helps(serve: Serve, connect: Connect, before: str | None) -> None:
    server = serve(Keyed())
    assert "assistant.api_key_file names" in remedy(connect(server.base_url, api_key=before))
    connect(server.base_url, api_key="right").check()


def test_name_that_the_server_lists_helps(serve: Serve, connect: Connect) -> None:
    def chat(body: Json) -> Reply:
        return well_behaved(body) if body["model"] == "served" else error(404, "The model `m` does not exist.")

    server = serve(FaultServer(chat, model_list("served")))
    listed = re.search(r"The server lists: (\w+)", remedy(connect(server.base_url)))
    assert listed
    connect(server.base_url, model=listed[1]).check()


def test_address_that_the_server_redirects_to_helps(serve: Serve, connect: Connect) -> None:
    right = serve(FaultServer())
    moved = Reply(307, "", {"location": f"{right.base_url}/chat/completions"})
    said = remedy(connect(serve(FaultServer(lambda body: moved)).base_url))
    target = re.search(r"redirects to (\S+)/chat/completions \(307\)", said)
    assert target and "write its address into assistant.base_url" in said
    connect(target[1]).check()


def test_address_that_ends_in_v1_helps(serve: Serve, connect: Connect) -> None:
    server = serve(FaultServer())
    assert "ends in /v1" in remedy(connect(server.base_url.removesuffix("/v1")))
    connect(server.base_url).check()


def test_http_in_place_of_https_helps(serve: Serve, connect: Connect) -> None:
    server = serve(FaultServer())
    assert "http:// instead of https://" in remedy(connect(server.base_url.replace("http://", "https://")))
    connect(server.base_url).check()


def test_longer_timeout_helps_a_slow_server(serve: Serve, connect: Connect) -> None:
    def slow(body: Json) -> Reply:
        time.sleep(0.6)
        return well_behaved(body)

    server = serve(FaultServer(slow))
    assert "assistant.timeout and assistant.concurrency can be changed" in remedy(connect(server.base_url, timeout=0.3))
    connect(server.base_url, timeout=10.0).check()


def test_fewer_requests_at_once_help_a_server_that_takes_one(serve: Serve, connect: Connect) -> None:
    server: FaultServer

    def one_at_once(body: Json) -> Reply:
        time.sleep(0.2)
        return Reply(429, "busy") if server._at_once > 1 else Reply(body=completion("A"))

    server = serve(FaultServer(one_at_once))
    request = Request("prefix", prefix_request(CARD, []).messages)
    with pytest.raises(EndpointError, match=r"Lower assistant\.concurrency or raise assistant\.max_retries"):
        connect(server.base_url, concurrency=4).complete(request, 4, Sampling(temperature=0))
    assert len(connect(server.base_url, concurrency=1).complete(request, 4, Sampling(temperature=0))) == 4


@pytest.mark.parametrize("change", ["search.history_shown", "card.description"])
def test_shorter_request_helps_a_small_context(serve: Serve, connect: Connect, change: str) -> None:
    def small(body: Json) -> Reply:
        length = len(body["messages"][-1]["content"])
        return error(400, "maximum context length is 100 tokens") if length > 800 else well_behaved(body)

    history: list[Any] = [scored(f"Text number {n}:", n / 10) for n in range(40)]
    long = replace(CARD, description="What guests wrote. " * 40)
    before, after = {
        "search.history_shown": (prefix_request(CARD, history), prefix_request(CARD, history[:4])),
        "card.description": (prefix_request(long, []), prefix_request(CARD, [])),
    }[change]
    server = serve(FaultServer(small))
    with pytest.raises(EndpointError, match=re.escape(change)):
        connect(server.base_url).check(Ask(before, 1, Sampling()))
    connect(server.base_url).check(Ask(after, 1, Sampling()))
