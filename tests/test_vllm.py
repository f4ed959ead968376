"""The client against a real vLLM server on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from servers import Endpoint

from gpta_local.assistant.prompts import label_texts_request, prefix_request
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import DatasetCard, Label, Message, Request, Sampling, ScoredPrefix

pytestmark = pytest.mark.vllm

CARD = DatasetCard(
    name="reviews",
    task="text-classification",
    description="Opinions of film critics, one sentence each.",
    labels=(Label("negative", "the critic dislikes the film"), Label("positive", "the critic likes the film")),
    training_rows=32,
)
HISTORY = [ScoredPrefix("Feeling:", 0.02, 0.01, 0.6, 32), ScoredPrefix("Film:", -0.01, 0.01, 0.63, 32)]
SHORT = Request("prefix", (Message("user", "Write one prefix."),))

Connect = Callable[..., VLLMAssistant]


@pytest.fixture
def connect(vllm_endpoint: Endpoint) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(model: str = vllm_endpoint.model, **changes: Any) -> VLLMAssistant:
            settings: dict[str, Any] = {"base_url": vllm_endpoint.base_url, "api_key": vllm_endpoint.api_key}
            settings |= {"timeout": 60.0, "max_retries": 1, "concurrency": 8}
            assistant = VLLMAssistant(model, **settings | changes)
            stack.callback(assistant.close)
            return assistant

        yield make


def test_check_says_the_room_of_the_context(connect: Connect) -> None:
    assistant = connect()
    assert assistant.check().endswith("(vLLM, context of 2048 tokens)")
    assert assistant.max_model_len == 2048


@pytest.mark.parametrize("request_", [prefix_request(CARD, HISTORY), label_texts_request(CARD)])
def test_completion_is_text_with_its_token_counts(connect: Connect, request_: Request) -> None:
    (only,) = connect().complete(request_, 1, Sampling(max_new_tokens=24, seed=1))
    assert only.text
    assert only.model == "nano-assistant"
    assert only.finish_reason in ("stop", "length")
    assert only.prompt_tokens is not None and only.prompt_tokens > 100
    assert only.completion_tokens is not None and 1 <= only.completion_tokens <= 24


def test_completions_of_one_request_differ(connect: Connect) -> None:
    drawn = connect().complete(SHORT, 8, Sampling(max_new_tokens=16, temperature=1.5, seed=2))
    assert len({completion.text for completion in drawn}) > 1


def test_same_seed_gives_the_same_completions_in_the_same_order(connect: Connect) -> None:
    assistant, sampling = connect(concurrency=1), Sampling(max_new_tokens=8, seed=3)
    assert assistant.complete(SHORT, 3, sampling) == assistant.complete(SHORT, 3, sampling)


def test_completion_i_has_the_same_seed_however_it_is_asked_for(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = connect(concurrency=1)
    together = assistant.complete(SHORT, 3, Sampling(max_new_tokens=8, seed=4))
    monkeypatch.setattr("gpta_local.assistant.openai_api.MAX_CHOICES", 1)
    alone = assistant.complete(SHORT, 3, Sampling(max_new_tokens=8, seed=4))
    assert [completion.text for completion in together] == [completion.text for completion in alone]


def test_greedy_completions_are_all_the_same(connect: Connect) -> None:
    drawn = connect().complete(SHORT, 3, Sampling(max_new_tokens=8, temperature=0.0))
    assert len(drawn) == 3
    assert len({completion.text for completion in drawn}) == 1


def test_many_long_seeded_requests_at_once_are_all_answered(connect: Connect) -> None:
    history = [ScoredPrefix(f"Prefix number {i}:", i / 1000, 0.01, 0.6, 32) for i in range(20)]
    drawn = connect(concurrency=16).complete(prefix_request(CARD, history), 64, Sampling(max_new_tokens=8, seed=5))
    assert len(drawn) == 64


def test_too_long_a_request_is_explained(connect: Connect) -> None:
    request = Request("prefix", (Message("user", "many words " * 3000),))
    with pytest.raises(EndpointError, match=r"too long for the model \(400\): .*2048 tokens.* search.history_shown"):
        connect().complete(request, 1, Sampling())


def test_room_asked_for_beyond_the_context_is_explained(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"too long for the model .* Lower assistant.max_new_tokens"):
        connect().complete(SHORT, 1, Sampling(max_new_tokens=4096))


def test_wrong_model_is_answered_with_the_right_one(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"assistant.model .* the model 'other' .* lists: nano-assistant"):
        connect("other").check()


@pytest.mark.parametrize(("key", "message"), [("wrong-key", "refuses the key"), (None, "asks for a key")])
def test_wrong_key_is_explained(connect: Connect, key: str | None, message: str) -> None:
    with pytest.raises(EndpointError, match=rf"{message} \(401\)"):
        connect(api_key=key).check()


def test_address_without_version_is_explained(connect: Connect, vllm_endpoint: Endpoint) -> None:
    with pytest.raises(EndpointError, match=r"no chat API \(404\): Not Found\. .*/v1"):
        connect(base_url=vllm_endpoint.base_url.removesuffix("/v1")).check()


def test_server_without_adapters_says_how_to_get_one_that_takes_them(connect: Connect) -> None:
    assistant = connect()
    assistant.check()
    assert not assistant.takes_adapters
    message = r"does not load adapters while it runs \(404\): Not Found\. Restart it with --enable-lora and .*serve`"
    assert re.search(message, assistant.adapters_refused)


def test_parameter_out_of_range_is_named(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"the parameter 'top_p' \(400\): .*Change assistant.top_p"):
        connect().complete(SHORT, 1, Sampling(top_p=1.5))
