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
from fault_server import Chat, FaultServer, Reply, always, completion, first, ignores_n, model_list, well_behaved

from gpta_local.assistant.openai_api import MAX_CHOICES, SEEDS, OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Message, Request, Sampling

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


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make a client: `connect(base_url, **changes)`."""
    with ExitStack() as stack:

        def make(base_url: str, kind: type[OpenAIAssistant] = OpenAIAssistant, **changes: Any) -> OpenAIAssistant:
            settings: dict[str, Any] = {"api_key": None, "timeout": 10.0, "max_retries": 0, "concurrency": 4}
            assistant = kind("m", base_url=base_url, **settings | changes)
            stack.callback(assistant.close)
            return assistant

        yield make


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


def test_key_is_sent_as_bearer_token(serve: Serve, connect: Connect) -> None:
    server = serve()
    connect(server.base_url, api_key=KEY).check()
    assert {request.headers["authorization"] for request in server.received} == {f"Bearer {KEY}"}


def test_nothing_of_the_environment_or_the_machine_is_sent(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "ambient")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer ambient\nX-Ambient: 1")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{closed_port()}/v1")
    server = serve()
    connect(server.base_url).check()
    expected = {"host", "accept", "accept-encoding", "connection", "user-agent"}
    for request in server.received:
        assert request.headers.keys() - {"content-type", "content-length"} == expected
        assert request.headers["user-agent"] == "gpta-local"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_proxies_of_the_environment_are_not_used(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    connect(serve().base_url).check()


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


def test_counts_over_several_completions_are_not_divided(serve: Serve, connect: Connect) -> None:
    pair = connect(serve().base_url).complete(REQUEST, 2, SAMPLING)
    assert [(one.prompt_tokens, one.completion_tokens) for one in pair] == [(None, None)] * 2


@pytest.mark.parametrize("content", [None, ""])
def test_empty_content_is_an_empty_text_with_its_reason(serve: Serve, connect: Connect, content: str | None) -> None:
    server = serve(always(Reply(body=completion(content, finish_reason="content_filter"))))
    (only,) = connect(server.base_url).complete(REQUEST, 1, SAMPLING)
    assert (only.text, only.finish_reason) == ("", "content_filter")


def test_half_a_surrogate_pair_in_the_reply_can_be_written_to_a_file(serve: Serve, connect: Connect) -> None:
    server = serve(always(Reply(body=completion("good \ud83d"))))
    assert texts(connect(server.base_url), 1) == ["good ?"]


def test_choices_are_ordered_by_their_index(serve: Serve, connect: Connect) -> None:
    body = completion("first", "second")
    body["choices"].reverse()
    assert texts(connect(serve(always(Reply(body=body))).base_url), 2) == ["first", "second"]


def test_more_choices_than_asked_for_are_dropped(serve: Serve, connect: Connect) -> None:
    server = serve(always(Reply(body=completion("a", "b", "c"))))
    assert texts(connect(server.base_url), 2) == ["a", "b"]


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


def test_order_does_not_depend_on_which_request_ends_first(serve: Serve, connect: Connect) -> None:
    def later_seeds_are_faster(body: dict[str, Any]) -> Reply:
        time.sleep(0.1 if body["seed"] == SEED else 0)
        return well_behaved(body)

    assert texts(connect(serve(later_seeds_are_faster).base_url), 40) == [f"seed {SEED + i}" for i in range(40)]


def test_large_n_is_asked_for_in_chunks(serve: Serve, connect: Connect) -> None:
    server = serve()
    connect(server.base_url).complete(REQUEST, 40, SAMPLING)
    assert sorted((chat["seed"], chat["n"]) for chat in server.chats) == [(SEED, 16), (SEED + 16, 16), (SEED + 32, 8)]


def test_greedy_completions_are_asked_for_one_by_one(serve: Serve, connect: Connect) -> None:
    """vLLM refuses n > 1 at temperature 0."""
    server = serve()
    connect(server.base_url).complete(REQUEST, 3, Sampling(temperature=0.0))
    assert ["n" in chat for chat in server.chats] == [False] * 3


def test_requests_are_in_flight_together(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(4, timeout=5)

    def waits_for_three_others(body: dict[str, Any]) -> Reply:
        together.wait()
        return well_behaved(body)

    server = serve(waits_for_three_others)
    connect(server.base_url, concurrency=4).complete(REQUEST, 4 * MAX_CHOICES, SAMPLING)
    assert server.most_at_once == 4


def test_no_more_requests_are_in_flight_than_allowed(serve: Serve, connect: Connect) -> None:
    def slow(body: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return ignores_n(body)

    server = serve(slow)
    connect(server.base_url, concurrency=2).complete(REQUEST, 12, SAMPLING)
    assert server.most_at_once == 2


def test_number_of_requests_is_bounded_for_a_server_that_ignores_n(serve: Serve, connect: Connect) -> None:
    server = serve(ignores_n)
    connect(server.base_url).complete(REQUEST, 40, SAMPLING)
    assert len(server.chats) == 40


def test_a_failing_request_fails_the_whole_call(serve: Serve, connect: Connect) -> None:
    server = serve(lambda body: Reply(400, {"error": "no"}) if body["seed"] == SEED + 16 else well_behaved(body))
    with pytest.raises(EndpointError, match="refuses the request"):
        connect(server.base_url).complete(REQUEST, 40, SAMPLING)


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


def test_no_completions_are_no_request(serve: Serve, connect: Connect) -> None:
    server = serve()
    assert connect(server.base_url).complete(REQUEST, 0, SAMPLING) == []
    assert server.received == []


# Faults that pass


@pytest.mark.parametrize("fault", [Reply(429, {"error": "slow down"}, {"retry-after": "0.2"}), Reply(500, "oops")])
def test_passing_fault_is_met_by_another_try(serve: Serve, connect: Connect, fault: Reply) -> None:
    server = serve(first(fault))
    assert texts(connect(server.base_url, max_retries=2), 1) == [f"seed {SEED}"]
    assert len(server.chats) == 2


def test_retry_after_is_waited_for(serve: Serve, connect: Connect) -> None:
    server = serve(first(Reply(429, {"error": "slow down"}, {"retry-after": "1"})))
    start = time.monotonic()
    texts(connect(server.base_url, max_retries=1), 1)
    assert time.monotonic() - start >= 1


# Faults that stay: each is one message


def other_json(**content: Any) -> Reply:
    return Reply(body=content)


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
        "needs a server that takes model, messages, n, max_tokens, temperature, top_p, seed",
    ),
    "seed of this model": (
        Reply(400, {"error": {"message": "this model does not take the parameter seed"}}),
        "refuses the parameter 'seed' (400)",
        "needs a server",
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
    "n": (Reply(400, {"error": {"message": "Only n = 1 is supported"}}), "refuses the parameter 'n' (400)", "needs"),
    "unclear": (Reply(400, {"error": {"message": "bad request"}}), "refuses the request (400): bad request", "needs"),
    "login page": (Reply(200, LOGIN), "answers with a web page: Sign in Please sign in", "a login page"),
    "text": (Reply(200, "Ollama is running"), "answers with no JSON: Ollama is running", "ends in /v1"),
    "other JSON": (other_json(status="ok"), 'JSON that is no chat completion: {"status": "ok"}', "ends in /v1"),
    "error with 200": (other_json(error={"message": "broken"}), "no chat completion: .*broken", "ends in /v1"),
    "JSON list": (Reply(200, "[1, 2]"), "JSON that is no chat completion: [1, 2]", "ends in /v1"),
    "choices of text": (other_json(choices=["a"]), "JSON that is no chat completion", "ends in /v1"),
    "no choices": (other_json(choices=[]), "answers without any completion", "server's log"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_lasting_fault_is_one_message_with_a_remedy(serve: Serve, connect: Connect, fault: str) -> None:
    reply, what, fix = FAULTS[fault]
    server = serve(always(reply), model_list("a", "b"))
    with pytest.raises(EndpointError) as caught:
        connect(server.base_url).check()
    message = str(caught.value)
    assert message.startswith((f"assistant.base_url ({server.base_url}): ", f"assistant.model ({server.base_url}): "))
    for part in what.replace("PORT", str(server.port)).split(".*"):
        assert part in message
    assert fix in caught.value.fix
    assert "\n" not in message


def test_nothing_at_the_port_says_how_to_start_a_server(connect: Connect) -> None:
    port = closed_port()
    with pytest.raises(EndpointError, match=f"nothing listens on port {port} .* assistant serve m --port {port}"):
        connect(f"http://127.0.0.1:{port}/v1").check()


def test_unknown_host_is_named(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"host 'no-such-host.invalid' is not found"):
        connect("http://no-such-host.invalid:8000/v1").check()


def test_silent_server_is_given_up_after_the_timeout(serve: Serve, connect: Connect) -> None:
    done = threading.Event()

    def silent(body: dict[str, Any]) -> Reply:
        done.wait(5)
        return well_behaved(body)

    server = serve(silent)
    start = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer within 0.2 s\. .*assistant.timeout"):
        connect(server.base_url, timeout=0.2).check()
    assert time.monotonic() - start < 3
    done.set()


def test_server_that_hangs_up_is_reported(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close()).start()
        with pytest.raises(EndpointError, match="the connection broke"):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}/v1").check()


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


def test_check_describes_the_assistant(serve: Serve, connect: Connect) -> None:
    server = serve()
    assert connect(server.base_url).check() == f"m at {server.base_url}"


def test_check_sends_every_field_that_is_sent_later(serve: Serve, connect: Connect) -> None:
    server = serve()
    assistant = connect(server.base_url)
    assistant.check()
    assistant.complete(REQUEST, 2, SAMPLING)
    assert server.chats[0].keys() == server.chats[1].keys()
    assert server.chats[0]["max_tokens"] == 1


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


def test_vllm_check_says_the_room_of_the_context(serve: Serve, connect: Connect) -> None:
    server = serve(models=model_list("m", max_model_len=2048))
    assistant = connect(server.base_url, kind=VLLMAssistant)
    assert assistant.check() == f"m at {server.base_url} (vLLM, context of 2048 tokens)"
    assert isinstance(assistant, VLLMAssistant)
    assert assistant.max_model_len == 2048


def test_vllm_check_refuses_a_server_that_is_not_vllm(serve: Serve, connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"not as vLLM: .* assistant.backend to openai"):
        connect(serve().base_url, kind=VLLMAssistant).check()


# The key


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 422, 429, 500])
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
