"""A real assistant out of its package: what it writes makes sense. The package holds data alone; it is installed
without what it requires (Makefile)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from gpta_local.assistant.local import LocalAssistant
from gpta_local.schema import Message, Request, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assistant(smollm2: str) -> Iterator[LocalAssistant]:
    with closing(LocalAssistant(smollm2)) as assistant:
        yield assistant


def test_answer_makes_sense(assistant: LocalAssistant) -> None:
    request = Request("prefix", (Message("user", "What is the capital of France?"),))
    (completion,) = assistant.complete(request, 1, Sampling(temperature=0, max_new_tokens=24))
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop", "it ends by itself"


def test_check_names_it_and_its_size(assistant: LocalAssistant) -> None:
    assert assistant.check().startswith("SmolLM2-135M-Instruct in this process, 134.5 million parameters")
