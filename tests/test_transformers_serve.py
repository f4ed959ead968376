"""The client against a real `transformers serve`: an endpoint without n, lists or keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest
from servers import Endpoint

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Message, Request, Sampling

SHORT = Request("prefix", (Message("user", "Write one prefix."),))

Connect = Callable[..., OpenAIAssistant]


@pytest.fixture
def connect_serve(connect: Connect, transformers_endpoint: Endpoint) -> Connect:
    return partial(connect, timeout=60.0, concurrency=1, **asdict(transformers_endpoint))


def test_check_passes_though_the_server_cannot_list_models(connect_serve: Connect) -> None:
    assistant = connect_serve()
    assert assistant.check().startswith(f"{assistant.name} at http://127.0.0.1:")


def test_same_seed_gives_the_same_completions_though_the_server_ignores_n(connect_serve: Connect) -> None:
    assistant, sampling = connect_serve(), Sampling(max_new_tokens=8, seed=3)
    drawn = assistant.complete(SHORT, 3, sampling)
    assert all(completion.completion_tokens is not None for completion in drawn)
    texts = [completion.text for completion in drawn]
    assert texts == [completion.text for completion in assistant.complete(SHORT, 3, sampling)]
    assert len(texts) == 3 and len(set(texts)) > 1


def test_field_that_the_server_does_not_know_is_named(connect_serve: Connect) -> None:
    with pytest.raises(EndpointError, match=r"refuses the parameter 'top_k' \(422\): Unexpected fields"):
        connect_serve(extra_body={"top_k": 5}).complete(SHORT, 1, Sampling(max_new_tokens=8))


def test_wrong_model_is_answered_with_the_right_one(connect_serve: Connect, transformers_endpoint: Endpoint) -> None:
    pinned = rf"the model 'other' \(400\): Server is pinned to '{transformers_endpoint.model}'"
    with pytest.raises(EndpointError, match=pinned):
        connect_serve(model="other").check()


def test_vllm_assistant_says_that_this_is_not_vllm(connect_serve: Connect) -> None:
    with pytest.raises(EndpointError, match="not as vLLM"):
        connect_serve(kind=VLLMAssistant).check()
