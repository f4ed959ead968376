"""The client against a real `transformers serve`: an endpoint without n, lists or keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from servers import Endpoint

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Message, Request, Sampling

SHORT = Request("prefix", (Message("user", "Write one prefix."),))

Connect = Callable[..., OpenAIAssistant]


@pytest.fixture
def connect(transformers_endpoint: Endpoint) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(
            model: str = transformers_endpoint.model, kind: type[OpenAIAssistant] = OpenAIAssistant, **changes: Any
        ) -> OpenAIAssistant:
            settings: dict[str, Any] = {"base_url": transformers_endpoint.base_url, "api_key": None}
            settings |= {"timeout": 60.0, "max_retries": 0, "concurrency": 1}
            assistant = kind(model, **settings | changes)
            stack.callback(assistant.close)
            return assistant

        yield make


def test_check_passes_though_the_server_cannot_list_models(connect: Connect) -> None:
    assistant = connect()
    assert assistant.check().startswith(f"{assistant.name} at http://127.0.0.1:")


def test_all_completions_are_drawn_though_the_server_ignores_n(connect: Connect) -> None:
    drawn = connect(concurrency=4).complete(SHORT, 5, Sampling(max_new_tokens=8))
    assert len(drawn) == 5
    assert all(completion.completion_tokens is not None for completion in drawn)


def test_same_seed_gives_the_same_completions_one_at_a_time(connect: Connect) -> None:
    assistant, sampling = connect(), Sampling(max_new_tokens=8, seed=3)
    first = [completion.text for completion in assistant.complete(SHORT, 3, sampling)]
    assert first == [completion.text for completion in assistant.complete(SHORT, 3, sampling)]
    assert len(set(first)) > 1


def test_field_that_the_server_does_not_know_is_named(connect: Connect) -> None:
    with pytest.raises(EndpointError, match=r"refuses the parameter 'top_k' \(422\): Unexpected fields"):
        connect(extra_body={"top_k": 5}).complete(SHORT, 1, Sampling(max_new_tokens=8))


def test_wrong_model_is_answered_with_the_right_one(connect: Connect, transformers_endpoint: Endpoint) -> None:
    with pytest.raises(
        EndpointError, match=rf"the model 'other' \(400\): Server is pinned to '{transformers_endpoint.model}'"
    ):
        connect("other").check()


def test_vllm_assistant_says_that_this_is_not_vllm(connect: Connect) -> None:
    with pytest.raises(EndpointError, match="not as vLLM"):
        connect(kind=VLLMAssistant).check()
