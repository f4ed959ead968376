"""The client against a real vLLM server on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import CARD, scored

from gpta_local.assistant.prompts import label_texts_request, prefix_request
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Message, Request, Sampling

pytestmark = pytest.mark.vllm

HISTORY = [scored("Feeling:", 0.02), scored("Film:", -0.01)]
SHORT = Request("prefix", (Message("user", "Write one prefix."),))
LONG = Request("prefix", (Message("user", "many words " * 3000),))

Connect = Callable[..., VLLMAssistant]


def texts(assistant: VLLMAssistant, n: int, **sampling: Any) -> list[str]:
    drawn = assistant.complete(SHORT, n, Sampling(**{"max_new_tokens": 8, **sampling}))
    return [completion.text for completion in drawn]


def test_check_says_the_room_of_the_context_and_that_adapters_are_taken(
    connect_vllm: Connect, chat_model: Path
) -> None:
    assistant = connect_vllm()
    assert assistant.check().endswith("(vLLM, context of 2048 tokens)")
    assert assistant.max_model_len == 2048
    assert (assistant.takes_adapters, assistant.adapters_refused) == (True, "")
    assert assistant.weights == chat_model


@pytest.mark.parametrize("request_", [prefix_request(CARD, HISTORY), label_texts_request(CARD)])
def test_completion_is_text_with_its_token_counts(connect_vllm: Connect, request_: Request) -> None:
    (only,) = connect_vllm().complete(request_, 1, Sampling(max_new_tokens=24, seed=1))
    assert only.text
    assert only.model == "tiny"
    assert only.finish_reason in ("stop", "length")
    assert only.prompt_tokens is not None and only.prompt_tokens > 100
    assert only.completion_tokens is not None and 1 <= only.completion_tokens <= 24


def test_label_texts_have_the_form_that_is_asked_for(connect_vllm: Connect) -> None:
    (only,) = connect_vllm().complete(label_texts_request(CARD), 1, Sampling(max_new_tokens=400, seed=1))
    lines = only.text.split("\n")
    assert lines[0].startswith("bad: ")
    assert len(lines) == 1 or lines[1].startswith("good: ")


def test_same_seed_gives_the_same_completions_however_they_are_asked_for(
    connect_vllm: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = connect_vllm(concurrency=1)
    together = texts(assistant, 3, seed=4)
    assert texts(assistant, 3, seed=4) == together
    assert len(set(together)) > 1
    monkeypatch.setattr("gpta_local.assistant.openai_api.MAX_CHOICES", 1)
    assert texts(assistant, 3, seed=4) == together


def test_greedy_completions_are_all_the_same(connect_vllm: Connect) -> None:
    drawn = texts(connect_vllm(), 3, temperature=0.0)
    assert len(drawn) == 3 and len(set(drawn)) == 1


def test_many_long_seeded_requests_at_once_are_all_answered(connect_vllm: Connect) -> None:
    history = [scored(f"Prefix number {i}:", i / 1000) for i in range(20)]
    drawn = connect_vllm(concurrency=16).complete(prefix_request(CARD, history), 64, Sampling(max_new_tokens=8, seed=5))
    assert len(drawn) == 64


@pytest.mark.parametrize(
    ("request_", "sampling", "message"),
    [
        (LONG, Sampling(), r"too long for the model \(400\): .*2048 tokens.* search.history_shown"),
        (SHORT, Sampling(max_new_tokens=4096), r"too long for the model .* Lower assistant.max_new_tokens"),
        (SHORT, Sampling(top_p=1.5), r"the parameter 'top_p' \(400\): .*Change assistant.top_p"),
    ],
    ids=["long request", "long reply", "parameter out of range"],
)
def test_request_that_is_refused_is_explained(
    connect_vllm: Connect, request_: Request, sampling: Sampling, message: str
) -> None:
    with pytest.raises(EndpointError, match=message):
        connect_vllm().complete(request_, 1, sampling)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "other"}, r"assistant.model .* the model 'other' .* lists: tiny"),
        ({"api_key": "wrong-key"}, r"refuses the key \(401\)"),
        ({"api_key": None}, r"asks for a key \(401\)"),
    ],
    ids=["model", "key", "no key"],
)
def test_wrong_model_or_key_is_explained(connect_vllm: Connect, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        connect_vllm(**wrong).check()
