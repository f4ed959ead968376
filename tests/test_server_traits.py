"""Servers that do not take a request as it is sent first: what is sent instead, and what the user hears of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fault_server import (
    CHANGED,
    FIXED,
    NOT_SUPPORTED,
    USE_OTHER,
    Chat,
    FaultServer,
    Reply,
    always,
    completion,
    error,
    forbidden,
    no_field,
    refusing,
    roles,
    streamed,
    well_behaved,
)

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Ask, Message, Request, Sampling

MESSAGES = ("system", "You help."), ("user", "An example?"), ("assistant", "Yes:"), ("user", "Write one prefix.")
REQUEST = Request("prefix", tuple(Message(role, text) for role, text in MESSAGES))
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=40, seed=2)
ASK = Ask(REQUEST, 16, SAMPLING)

Serve = Callable[[Chat], FaultServer]
Connect = Callable[..., OpenAIAssistant]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda chat: stack.enter_context(FaultServer(chat))


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_refused_is_told_once_and_sent_otherwise_from_then_on(
    serve: Serve, connect: Connect, kind: str
) -> None:
    chat, words = CHANGED[kind]
    statuses = list[int]()

    def noted(body: dict[str, Any]) -> Reply:
        reply = chat(body)
        assert isinstance(reply, Reply)
        statuses.append(reply.status)
        return reply

    server, told = serve(noted), list[str]()
    assistant = connect(server.base_url)
    assistant.check(ASK, told.append)
    assert (
        len(told) == 1
        and words in told[0]
        and told[0].startswith(f"assistant.base_url ({server.base_url}): the server")
    )
    assert statuses[0] >= 400 and statuses[1:] == [200], "one refusal, then it is known"
    found = assistant.complete_all([ASK, Ask(REQUEST, 3, Sampling(max_new_tokens=8))])
    assert [len(reply) for reply in found] == [16, 3]
    assert statuses.count(200) == len(statuses) - 1 and len(told) == 1


def test_a_server_of_which_several_things_are_learnt_is_told_of_in_one_line(serve: Serve, connect: Connect) -> None:
    def as_o1(body: dict[str, Any]) -> Reply | None:
        """Names one thing at a time."""
        if "system" in roles(body):
            return error(400, "'messages[0].role' does not support 'system' with this model.", "messages[0].role")
        if "max_tokens" in body:
            return error(400, USE_OTHER, "max_tokens")
        if body.get("temperature", 1) != 1:
            return error(400, FIXED, "temperature")
        return error(400, NOT_SUPPORTED.format("top_p"), "top_p") if "top_p" in body else None

    server, told = serve(refusing(as_o1)), list[str]()
    connect(server.base_url).check(ASK, told.append)
    assert len(told) == 1 and told[0].count(";") == 3
    assert server.chats[-1].keys() == {"model", "messages", "n", "max_completion_tokens", "seed"}
    assert server.chats[-1]["max_completion_tokens"] == 40


def test_system_text_goes_before_the_first_user_message(serve: Serve, connect: Connect) -> None:
    server = serve(CHANGED["no system role, vLLM"][0])
    connect(server.base_url).check(ASK)
    sent = [(message["role"], message["content"]) for message in server.chats[-1]["messages"]]
    assert sent == [("user", "You help.\n\nAn example?"), *MESSAGES[2:]]


def test_what_is_learnt_after_the_check_is_told_too(serve: Serve, connect: Connect) -> None:
    told = list[str]()
    later = no_field("top_p", error(400, NOT_SUPPORTED.format("top_p"), "top_p"))
    checked = list[None]()

    def chat(body: dict[str, Any]) -> Reply | Any:
        checked.append(None)
        return well_behaved(body) if len(checked) == 1 else later(body)

    assistant = connect(serve(chat).base_url)
    assistant.check(ASK, told.append)
    assert told == []
    assistant.complete(REQUEST, 64, Sampling(top_p=0.5))
    assert len(told) == 1, "although several requests were refused"


def test_replies_that_are_all_the_same_are_told_of_once(serve: Serve, connect: Connect) -> None:
    told = list[str]()
    assistant = connect(serve(always(Reply(body=completion("the same")))).base_url)
    assistant.check(ASK, told.append)
    assistant.complete_all([Ask(REQUEST, 3, SAMPLING), Ask(REQUEST, 4, replace(SAMPLING, temperature=0.0))])
    assert told == [], "three may be alike by chance, and without randomness all are"
    for _ in range(2):
        assistant.complete(REQUEST, 4, SAMPLING)
    assert len(told) == 1 and "gives the same reply every time" in told[0] and "do_sample" in told[0]


# The check is the request


def test_check_is_the_first_request_of_the_run_and_its_replies_are_used(serve: Serve, connect: Connect) -> None:
    server = serve(well_behaved)
    assistant = connect(server.base_url)
    assistant.check(ASK)
    (sent,) = server.chats
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["n"]) == (40, 0.7, 0.9, 16)
    assert len(assistant.complete(REQUEST, 16, SAMPLING)) == 16
    assert len(server.chats) == 1, "what the check has brought is not asked for again"
    assistant.complete(REQUEST, 16, SAMPLING)
    assert len(server.chats) == 2, "but it is given once"


def test_kept_replies_have_the_places_that_they_were_drawn_for(serve: Serve, connect: Connect) -> None:
    ignores_n = serve(lambda body: well_behaved(body | {"n": 1}))
    assistant = connect(ignores_n.base_url)
    assistant.check(ASK)
    expected = [found.text for found in connect(ignores_n.base_url).complete(REQUEST, 16, SAMPLING)]
    assert [found.text for found in assistant.complete(REQUEST, 16, SAMPLING)] == expected


def test_other_sampling_gets_none_of_the_kept_replies(serve: Serve, connect: Connect) -> None:
    server = serve(well_behaved)
    assistant = connect(server.base_url)
    assistant.check(ASK)
    assistant.complete(REQUEST, 1, Sampling(temperature=0.8))
    assert server.chats[1]["temperature"] == 0.8


# Streams


@pytest.mark.parametrize("usage", [False, True])
def test_stream_that_was_not_asked_for_is_read(serve: Serve, connect: Connect, usage: bool) -> None:
    server = serve(lambda body: streamed(body | {"n": 1}, usage=usage))
    (one,) = connect(server.base_url).complete(REQUEST, 1, SAMPLING)
    assert (one.text, one.finish_reason, one.model) == (f"seed {2 * 4096}", "stop", "m")
    assert one.completion_tokens == (3 if usage else None)


def test_error_in_a_stream_is_the_servers_error(serve: Serve, connect: Connect) -> None:
    body = 'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n'
    with pytest.raises(EndpointError, match="answers with an error: out of memory"):
        connect(serve(always(Reply(200, body))).base_url).check(ASK)


def test_broken_stream_is_called_one(serve: Serve, connect: Connect) -> None:
    with pytest.raises(EndpointError, match="a broken stream"):
        connect(serve(always(Reply(200, 'data: {"choices": [{"del'))).base_url).check(ASK)


# Remedies: what the message says is done, and it helps


def long_waits(body: dict[str, Any]) -> Reply | None:
    return error(400, "'max_tokens': integer below minimum value. Expected >= 100, got 40", "max_tokens")


REMEDIES: dict[str, tuple[Callable[[dict[str, Any]], Reply | None], str, dict[str, Any], dict[str, Any]]] = {
    "temperature out of range": (
        lambda body: error(400, "must be between 0 and 0.5", "temperature") if body["temperature"] > 0.5 else None,
        "Change assistant.temperature",
        {"temperature": 0.5},
        {},
    ),
    "top_p out of range": (
        lambda body: error(422, "`top_p` must be > 0.0 and < 0.8") if body["top_p"] >= 0.8 else None,
        "Change assistant.top_p",
        {"top_p": 0.7},
        {},
    ),
    "too few tokens": (
        lambda body: long_waits(body) if body["max_tokens"] < 100 else None,
        "Change assistant.max_new_tokens",
        {"max_new_tokens": 100},
        {},
    ),
    "too many tokens": (
        lambda body: error(400, "maximum context length is 20 tokens") if body["max_tokens"] > 20 else None,
        "Lower assistant.max_new_tokens",
        {"max_new_tokens": 16},
        {},
    ),
    "a field in words that nobody foresaw": (
        lambda body: error(400, "bad seed, bad") if "seed" in body else None,
        "assistant.extra_body, such as {seed: null}",
        {},
        {"extra_body": {"seed": None}},
    ),
    "no word of which field": (
        lambda body: error(400, "bad request") if "top_p" in body else None,
        "assistant.extra_body, such as {seed: null, top_p: null}",
        {},
        {"extra_body": {"seed": None, "top_p": None}},
    ),
}


@pytest.mark.parametrize("fault", REMEDIES)
def test_remedy_of_a_refusal_helps(serve: Serve, connect: Connect, fault: str) -> None:
    find, words, sampling, settings = REMEDIES[fault]
    server = serve(refusing(find))
    with pytest.raises(EndpointError) as caught:
        connect(server.base_url).check(ASK)
    assert words in caught.value.fix
    changed = Sampling(**{"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 40, **sampling})
    told = list[str]()
    connect(server.base_url, **settings).check(Ask(REQUEST, 2, changed), told.append)
    assert told == []


FULL = {
    "TGI": (
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2000 `inputs` tokens",
    ),
    "TGI, inputs alone": (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500"),
    "llama.cpp": (400, "the request exceeds the available context size, try increasing it"),
    "LM Studio": (
        400,
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with "
        "context length of only 4096 tokens",
    ),
    "SGLang": (400, "Input length (5000 tokens) exceeds the maximum allowed length (4091 tokens)."),
    "Groq": (413, "Please reduce the length of the messages or completion."),
    "Mistral": (400, "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum"),
    "Gemini": (400, "The input token count (70000) exceeds the maximum number of tokens allowed (32768)."),
}


@pytest.mark.parametrize("server", FULL)
def test_full_context_is_told_as_one_whatever_the_words(serve: Serve, connect: Connect, server: str) -> None:
    status, words = FULL[server]
    with pytest.raises(EndpointError, match=rf"too long for the model \({status}\).* shorten card\.description"):
        connect(serve(always(error(status, words))).base_url).check(ASK)


GONE = {
    "Ollama": (404, 'model "m" not found, try pulling it first'),
    "LM Studio": (404, "No models loaded. Please load a model in the developer page or use the 'lms load' command."),
}


@pytest.mark.parametrize("server", GONE)
def test_model_that_is_not_there_is_told_as_one(serve: Serve, connect: Connect, server: str) -> None:
    with pytest.raises(EndpointError, match=r"refuses the model 'm' \(404\)"):
        connect(serve(always(error(*GONE[server]))).base_url).check(ASK)


def test_server_that_is_still_loading_its_model_is_asked_again(serve: Serve, connect: Connect) -> None:
    replies = [error(503, "Loading model")]  # llama.cpp
    connect(serve(refusing(lambda body: replies.pop() if replies else None)).base_url, max_retries=1).check(ASK)


def test_field_of_the_users_own_is_not_left_out_but_named(serve: Serve, connect: Connect) -> None:
    server = serve(no_field("top_k", error(400, NOT_SUPPORTED.format("top_k"), "top_k")))
    with pytest.raises(EndpointError, match=r"assistant\.extra_body\.top_k, or take it out"):
        connect(server.base_url, extra_body={"top_k": 5}).check(ASK)
    server = serve(no_field("seed", forbidden(422, "seed")))
    with pytest.raises(EndpointError, match=r"assistant\.extra_body\.seed, or take it out"):
        connect(server.base_url, extra_body={"seed": 5}).check(ASK)


@pytest.mark.parametrize("pause", ["3600", "soon"])
def test_rate_is_met_by_fewer_requests_at_once_or_more_tries(serve: Serve, connect: Connect, pause: str) -> None:
    server = serve(always(Reply(429, {"error": "slow down"}, {"retry-after": pause})))
    with pytest.raises(EndpointError) as caught:
        connect(server.base_url).check(ASK)
    if pause == "soon":
        assert "Lower assistant.concurrency or raise assistant.max_retries" in caught.value.fix
    else:
        assert "for 1 h, it says (429): slow down. Come back after that" in str(caught.value)
        assert len(server.chats) == 1


def test_more_tries_help_against_a_rate(serve: Serve, connect: Connect) -> None:
    replies = [Reply(429, "slow down")]
    chat = refusing(lambda body: replies.pop() if replies else None)
    connect(serve(chat).base_url, max_retries=1).check(ASK)


# Messages that a server has taken apart


@pytest.mark.parametrize(
    ("message", "finish_reason", "text"),
    [
        ({"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}, "stop", "AB"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "A"]}, "stop", "A"),
        ({"content": "A", "reasoning_content": "hm", "reasoning": "hm", "refusal": None}, "stop", "A"),
        ({"content": None, "reasoning_content": "Let me think"}, "length", "<think>Let me think"),
        ({"content": "", "reasoning": "Let me think"}, "length", "<think>Let me think"),
        ({"content": [{"type": "thinking", "thinking": "hm"}]}, "length", "<think>hm"),
        ({"content": None, "refusal": "I cannot."}, "stop", "<refusal>I cannot."),
        ({"content": ""}, "content_filter", "<refusal>content filter"),
        ({"content": None, "tool_calls": [{"id": "c1"}]}, "tool_calls", '<tool_call>[{"id": "c1"}]'),
        ({"content": None}, "stop", ""),
    ],
)
def test_message_is_read_as_the_text_that_a_model_writes(
    serve: Serve, connect: Connect, message: dict[str, Any], finish_reason: str, text: str
) -> None:
    body = completion("", finish_reason=finish_reason)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    (one,) = connect(serve(always(Reply(body=body))).base_url).complete(REQUEST, 1, SAMPLING)
    assert one.text == text
