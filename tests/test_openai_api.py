"""The client of OpenAI-compatible endpoints, over real HTTP on 127.0.0.1."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fault_server import (
    HEAD,
    Chat,
    FaultServer,
    Raw,
    Reply,
    always,
    byte_by_byte,
    completion,
    endless,
    first,
    half_a_body,
    hang_up,
    ignores_n,
    model_list,
    reset,
    well_behaved,
)

from gpta_local.assistant.openai_api import MAX_CHOICES, SEEDS, OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Ask, Message, Request, Sampling

KEY = "sk-very-secret-0123456789"
REQUEST = Request("prefix", (Message("system", "You help."), Message("user", "Write one prefix.")))
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=21, seed=2)
SEED = 2 * SEEDS

Serve = Callable[..., FaultServer]
Connect = Callable[..., OpenAIAssistant]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an endpoint: `serve(chat, models)`."""
    with ExitStack() as stack:

        def start(chat: Chat = well_behaved, models: Reply | None = None) -> FaultServer:
            return stack.enter_context(FaultServer(chat, models))

        yield start


def texts(assistant: OpenAIAssistant, n: int, sampling: Sampling = SAMPLING) -> list[str]:
    return [completion.text for completion in assistant.complete(REQUEST, n, sampling)]


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# What is sent


def test_sampling_is_mapped_to_the_fields_of_the_request(serve: Serve, connect: Connect) -> None:
    server = serve()
    connect(server.base_url).complete(REQUEST, 2, SAMPLING)
    messages = [{"role": "system", "content": "You help."}, {"role": "user", "content": "Write one prefix."}]
    sampling = {"n": 2, "max_tokens": 21, "temperature": 0.7, "top_p": 0.9, "seed": SEED}
    assert server.chats == [{"model": "m", "messages": messages, **sampling}]


def test_extra_body_replaces_fields_and_none_leaves_them_out(serve: Serve, connect: Connect) -> None:
    server = serve(ignores_n)
    connect(server.base_url, extra_body={"top_k": 5, "top_p": None, "seed": 3}).complete(REQUEST, 1, SAMPLING)
    assert server.chats[0].keys() == {"model", "messages", "max_tokens", "temperature", "seed", "top_k"}
    assert server.chats[0]["seed"] == 3


def test_nothing_but_the_key_is_sent_of_the_environment_or_the_machine(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "ambient")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer ambient\nX-Ambient: 1")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{closed_port()}/v1")
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = serve()
    connect(server.base_url).check()
    expected = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    for request in server.received:
        assert request.headers.keys() - {"content-type", "content-length"} == expected
        assert request.headers["user-agent"] == "gpta-local"
    server.received.clear()
    connect(server.base_url, api_key=KEY).check()
    assert {request.headers["authorization"] for request in server.received} == {f"Bearer {KEY}"}


def test_redirect_to_another_host_is_reported_and_not_followed(serve: Serve, connect: Connect) -> None:
    other = serve()
    redirect = Reply(307, "", {"location": f"{other.base_url}/chat/completions"})
    with pytest.raises(EndpointError, match=f"redirects to {other.base_url}/chat/completions .* not followed"):
        connect(serve(always(redirect), redirect).base_url, api_key=KEY).check()
    assert other.received == []


# What comes back


def test_completion_carries_text_model_reason_and_counts(serve: Serve, connect: Connect) -> None:
    server = serve(always(Reply(body=completion("Topic:", model="m-2026", finish_reason="length"))))
    (only,) = connect(server.base_url).complete(REQUEST, 1, SAMPLING)
    assert (only.text, only.model, only.finish_reason) == ("Topic:", "m-2026", "length")
    assert (only.prompt_tokens, only.completion_tokens) == (7, 3)
    pair = connect(serve().base_url).complete(REQUEST, 2, SAMPLING)
    assert [(one.prompt_tokens, one.completion_tokens) for one in pair] == [(None, None)] * 2, "a sum is not divided"


def test_half_a_surrogate_pair_in_the_reply_can_be_written_to_a_file(serve: Serve, connect: Connect) -> None:
    server = serve(always(Reply(body=completion("good \ud83d"))))
    assert texts(connect(server.base_url), 1) == ["good ?"]


def test_choices_are_ordered_by_their_index_and_more_than_asked_for_are_dropped(serve: Serve, connect: Connect) -> None:
    body = completion("first", None, "third")
    body["choices"].reverse()
    assert texts(connect(serve(always(Reply(body=body))).base_url), 2) == ["first", ""]


# Many completions


def test_next_request_has_other_seeds(serve: Serve, connect: Connect) -> None:
    server = serve()
    assistant = connect(server.base_url)
    for seed in (2, 3):
        assistant.complete(REQUEST, 40, replace(SAMPLING, seed=seed))
    seeds = [chat["seed"] + i for chat in server.chats for i in range(chat.get("n", 1))]
    assert len(seeds) == len(set(seeds)) == 80


@pytest.mark.parametrize("chat", [well_behaved, ignores_n])
@pytest.mark.parametrize("n", [1, MAX_CHOICES, 2 * MAX_CHOICES + 5])
def test_completion_i_has_a_seed_of_its_own_whatever_the_server_does_with_n(
    serve: Serve, connect: Connect, chat: Chat, n: int
) -> None:
    assert texts(connect(serve(chat).base_url), n) == [f"seed {SEED + i}" for i in range(n)]


def test_greedy_completions_are_asked_for_one_by_one(serve: Serve, connect: Connect) -> None:
    """vLLM refuses n > 1 at temperature 0."""
    server = serve()
    connect(server.base_url).complete(REQUEST, 3, Sampling(temperature=0.0))
    assert ["n" in chat for chat in server.chats] == [False] * 3


def test_so_many_requests_are_in_flight_together_and_no_more(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(4, timeout=5)

    def waits_for_three_others(body: dict[str, Any]) -> Reply:
        together.wait()
        time.sleep(0.02)
        return well_behaved(body)

    server = serve(waits_for_three_others)
    connect(server.base_url, concurrency=4).complete(REQUEST, 12 * MAX_CHOICES, SAMPLING)
    assert server.most_at_once == 4


def test_requests_of_a_round_are_in_flight_together_and_each_gets_its_own_answers(
    serve: Serve, connect: Connect
) -> None:
    together = threading.Barrier(3, timeout=5)

    def waits_for_the_others(body: dict[str, Any]) -> Reply:
        together.wait()
        return well_behaved(body)

    asks = [Ask(REQUEST, n, replace(SAMPLING, seed=seed)) for seed, n in ((1, 4), (2, 1), (3, 2))]
    server = serve(waits_for_the_others)
    found = connect(server.base_url, concurrency=8).complete_all(asks)
    assert server.most_at_once == len(server.chats) == 3
    wanted = [[f"seed {SEEDS * ask.sampling.seed + place}" for place in range(ask.n)] for ask in asks]
    assert [[completion.text for completion in completions] for completions in found] == wanted


def test_a_failing_request_does_not_wait_for_the_others(serve: Serve, connect: Connect) -> None:
    failed = threading.Event()

    def one_fails_the_others_hang(body: dict[str, Any]) -> Reply:
        if body["seed"] == SEED + 16:
            return Reply(400, {"error": "no"})
        failed.wait(5)
        return well_behaved(body)

    server = serve(one_fails_the_others_hang)
    start = time.monotonic()
    with pytest.raises(EndpointError, match="refuses the request"):
        connect(server.base_url, concurrency=2).complete(REQUEST, 10 * MAX_CHOICES, SAMPLING)
    assert time.monotonic() - start < 3
    failed.set()
    assert len(server.chats) <= 2


def test_interrupt_ends_the_program_though_requests_are_in_flight(serve: Serve) -> None:
    asked, done = threading.Event(), threading.Event()

    def silent(body: dict[str, Any]) -> Reply:
        asked.set()
        done.wait(20)
        return well_behaved(body)

    program = f"""
from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.schema import Message, Request, Sampling
settings = dict(api_key=None, timeout=60.0, max_retries=2, concurrency=4)
assistant = OpenAIAssistant("m", base_url={serve(silent).base_url!r}, **settings)
try:
    assistant.complete(Request("prefix", (Message("user", "x"),)), 40, Sampling())
finally:
    assistant.close()
"""

    def hears_ctrl_c() -> None:  # a shell starts what it runs in the background deaf to SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    ) as process:
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    done.set()
    assert said.rstrip().endswith("KeyboardInterrupt")


# Faults that pass


PASSING: dict[str, Reply | Raw] = {
    "connection reset": Raw(reset),
    "hang-up": Raw(hang_up),
    "half a body": Raw(half_a_body),
    "silence": Raw(lambda connection: time.sleep(0.8)),
    "429": Reply(429, {"error": "slow down"}, {"retry-after": "0.2"}),
    "500": Reply(500, "oops"),
    "503": Reply(503, "oops"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_fault_is_met_by_another_try(serve: Serve, connect: Connect, fault: str) -> None:
    server = serve(first(PASSING[fault]))
    assert texts(connect(server.base_url, max_retries=2, timeout=0.5), 1) == [f"seed {SEED}"]
    assert len(server.chats) == 2


def test_retry_after_is_waited_for(serve: Serve, connect: Connect) -> None:
    server = serve(first(Reply(429, {"error": "slow down"}, {"retry-after": "1"})))
    start = time.monotonic()
    texts(connect(server.base_url, max_retries=1), 1)
    assert time.monotonic() - start >= 1


# Faults that stay: each is one message


def other_json(**content: Any) -> Reply:
    return Reply(body=content)


BROKEN = ("the connection broke", "server's log")
TOO_LATE = ("no answer within 0.5 s", "assistant.timeout")
LOGIN = "<!doctype html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
TOO_LONG = "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens."
FAULTS = {
    "no key": (Reply(401, {"error": "Unauthorized"}), "asks for a key (401): Unauthorized", "assistant.api_key_env"),
    "forbidden": (Reply(403, {"error": {"message": "not yours"}}), "(403): not yours", "assistant.api_key_file"),
    "no model": (
        Reply(404, {"error": {"message": "The model `m` does not exist.", "code": "model_not_found"}}),
        "assistant.model (http://127.0.0.1:PORT/v1): the server refuses the model 'm' (404): The model `m` does",
        "The server lists: a, b",
    ),
    "pinned model": (Reply(400, {"detail": "Server is pinned to 'x'; requested 'm'."}), "pinned to 'x'", "lists: a"),
    "no such path": (Reply(404, {"detail": "Not Found"}), "there is no chat API (404): Not Found", "ends in /v1"),
    "nothing said": (Reply(404, ""), "there is no chat API (404): no explanation", "ends in /v1"),
    "no such method": (Reply(405, {"detail": "Method Not Allowed"}), "there is no chat API (405)", "ends in /v1"),
    "rate": (Reply(429, {"error": {"message": "slow down"}}), "for now (429): slow down", "assistant.concurrency"),
    "failure": (Reply(500, "Internal Server Error"), "fails (500): Internal Server Error", "server's log"),
    "gateway": (Reply(502, "<html><h1>502 Bad Gateway</h1></html>"), "fails (502): 502 Bad Gateway", "server's log"),
    "too long": (Reply(400, {"error": {"message": TOO_LONG}}), "are too long for the model (400)", "history_shown"),
    "seed": (
        Reply(422, {"detail": "Unexpected fields in the request: {'seed'}"}),
        "refuses the parameter 'seed' (422): Unexpected fields",
        "left out by assistant.extra_body, such as {seed: null}",
    ),
    "seed of this model": (
        Reply(400, {"error": {"message": "this model does not take the parameter seed"}}),
        "refuses the parameter 'seed' (400)",
        "assistant.extra_body",
    ),
    "parameter for the quoted model": (
        Reply(400, {"error": {"message": "'m' does not support this value", "param": "temperature"}}),
        "refuses the parameter 'temperature' (400)",
        "Change assistant.temperature",
    ),
    "top_p": (
        Reply(400, {"error": {"message": "must be in (0, 1]", "param": "top_p"}}),
        "refuses the parameter 'top_p' (400): must be",
        "Change assistant.top_p",
    ),
    "max_tokens": (
        Reply(422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "extra fields not permitted"}]}),
        "refuses the parameter 'max_tokens' (422)",
        "Change assistant.max_new_tokens",
    ),
    "n": (
        Reply(400, {"error": {"message": "Only n = 1 is supported"}}),
        "refuses the parameter 'n' (400)",
        "extra_body",
    ),
    "unclear": (Reply(400, {"error": {"message": "bad request"}}), "the request (400): bad request", "extra_body"),
    "login page": (Reply(200, LOGIN), "answers with a web page: Sign in Please sign in", "a login page"),
    "text": (Reply(200, "Ollama is running"), "answers with no JSON: Ollama is running", "ends in /v1"),
    "other JSON": (other_json(status="ok"), 'JSON that is no chat completion: {"status": "ok"}', "ends in /v1"),
    "error with 200": (other_json(error={"message": "broken"}), "answers with an error: broken", "server's log"),
    "JSON list": (Reply(200, "[1, 2]"), "JSON that is no chat completion: [1, 2]", "ends in /v1"),
    "choices of text": (other_json(choices=["a"]), "JSON that is no chat completion", "ends in /v1"),
    "no choices": (other_json(choices=[]), "answers without any completion", "server's log"),
    "JSON nested too deep": (Reply(200, "[" * 200_000), "answers with no JSON: [", "ends in /v1"),
    "500 of a thousand brackets": (Reply(500, "[" * 1_000_000), "fails (500): [", "server's log"),
    "compressed, it says": (Reply(200, "no gzip", {"content-encoding": "gzip"}), "no JSON: no gzip", "ends in /v1"),
    "no UTF-8": (Raw(lambda to: to.sendall(HEAD + b"\r\n\xff\xfe\x00{\x80")), "answers with no JSON", "ends in /v1"),
    "another charset": (
        Reply(200, '{"a": 1}', {"content-type": "application/json; charset=utf-16"}),
        'no chat completion: {"a": 1}',
        "ends in /v1",
    ),
    "unknown charset": (Reply(500, "oops", {"content-type": "text/html; charset=none"}), "fails (500): oops", "log"),
    "terminal codes": (Reply(500, "\x1b[2Jgone\x07"), "the server fails (500): [2Jgone", "server's log"),
    "429 until tomorrow": (
        Reply(429, "", {"retry-after": "86400"}),
        "further requests for 24 h",
        "Come back after that",
    ),
    "connection reset": (Raw(reset), *BROKEN),
    "hang-up": (Raw(hang_up), *BROKEN),
    "half a body": (Raw(half_a_body), *BROKEN),
    "endless stream": (Raw(endless), "the answer goes on after 32 MiB", "server's log"),
    "silence": (Raw(lambda connection: time.sleep(1.2)), *TOO_LATE),
    "a byte now and then": (Raw(byte_by_byte(HEAD + b"\r\n{")), *TOO_LATE),
    "a header now and then": (
        Raw(byte_by_byte(HEAD + b"x: ")),
        "no answer within 1.5 s, further tries included",
        "assistant.timeout",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_lasting_fault_is_one_message_with_a_remedy(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    reply, what, fix = FAULTS[fault]
    quick = isinstance(reply, Raw) and fault != "endless stream"
    monkeypatch.setattr("gpta_local.assistant.openai_api.PAUSES_SECONDS", 0.5)
    server = serve(always(reply), model_list("a", "b"))
    start = time.monotonic()
    with pytest.raises(EndpointError) as caught:
        connect(server.base_url, timeout=0.5 if quick else 10.0).check()
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert message.startswith((f"assistant.base_url ({server.base_url}): ", f"assistant.model ({server.base_url}): "))
    for part in what.replace("PORT", str(server.port)).split(".*"):
        assert part in message
    assert fix in caught.value.fix
    assert "\n" not in message and "\x1b" not in message


def test_nothing_at_the_port_says_how_to_start_a_server(connect: Connect) -> None:
    port = closed_port()
    with pytest.raises(EndpointError, match=f"nothing listens on port {port} .* assistant serve m --port {port}"):
        connect(f"http://127.0.0.1:{port}/v1").check()


def test_unknown_host_is_named(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"host 'no-such-host.invalid' is not found"):
        connect("http://no-such-host.invalid:8000/v1").check()


def test_https_to_an_http_server_is_explained(serve: Serve, connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"no TLS with this server .* http://"):
        connect(serve().base_url.replace("http://", "https://")).check()


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost", "ftp://host/v1", "http://", "http://host:99999/v1"])
def test_address_that_is_none_is_refused_at_once(connect: Connect, url: str) -> None:
    with pytest.raises(EndpointError, match="is no address of an API"):
        connect(url)


def test_address_with_a_password_is_refused_without_repeating_it(connect: Connect) -> None:
    with pytest.raises(EndpointError, match="holds a user name") as caught:
        connect(f"http://user:{KEY}@127.0.0.1:8000/v1")
    assert KEY not in "".join(traceback.format_exception(caught.value))


# The check


def test_check_sends_every_field_that_is_sent_later(serve: Serve, connect: Connect) -> None:
    server = serve()
    assistant = connect(server.base_url)
    assert assistant.check() == f"m at {server.base_url}"
    assistant.complete(REQUEST, 2, SAMPLING)
    assert server.chats[0].keys() == server.chats[1].keys()


@pytest.mark.parametrize("models", [Reply(500, "oops"), Reply(404, ""), Reply(200, "<html>"), Reply(200, "[]")])
def test_check_does_without_a_list_of_models(serve: Serve, connect: Connect, models: Reply) -> None:
    connect(serve(models=models).base_url).check()


def test_check_accepts_an_unlisted_model_that_the_server_answers_as(serve: Serve, connect: Connect) -> None:
    """`transformers serve` lists its download cache and answers as "m@main"."""
    as_main = always(Reply(body=completion("a", model="m@main")))
    connect(serve(as_main, model_list("other")).base_url).check()


def test_check_refuses_an_answer_by_another_model(serve: Serve, connect: Connect) -> None:
    server = serve(always(Reply(body=completion("a", model="x"))), model_list("x", "y"))
    with pytest.raises(EndpointError, match=r"answers as 'x', not as 'm'\. The server lists: x, y"):
        connect(server.base_url).check()


def test_vllm_check_refuses_a_server_that_is_not_vllm(serve: Serve, connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"not as vLLM: .* assistant.backend to openai"):
        connect(serve().base_url, kind=VLLMAssistant).check()


# The key


@pytest.mark.parametrize("status", [200, 301, 401, 404, 422, 429, 500])
def test_key_is_in_no_message_and_no_traceback(serve: Serve, connect: Connect, status: int) -> None:
    """Some servers repeat the key that they refuse."""
    words = f"Incorrect API key provided: {KEY}"
    reply = Reply(status, {"error": {"message": words}}, {"location": f"/?key={KEY}"})
    assistant = connect(serve(always(reply)).base_url, api_key=KEY)
    with pytest.raises(EndpointError) as caught:
        assistant.check()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(caught.value) + repr(assistant)
    assert KEY not in shown
    assert "***" in shown


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f"{KEY} ", f"{KEY}\N{EN DASH}"])
def test_key_that_no_header_can_carry_is_refused_without_repeating_it(connect: Connect, key: str) -> None:
    with pytest.raises(EndpointError, match="the key is empty or holds blanks") as caught:
        connect("http://127.0.0.1:8000/v1", api_key=key)
    assert KEY not in "".join(traceback.format_exception(caught.value))
