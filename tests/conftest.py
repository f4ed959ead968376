"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ROOT, Endpoint, transformers_server, vllm_server


@pytest.fixture(scope="session")
def nano_assistant() -> Path:
    """The folder of the embedded assistant."""
    return ROOT / "models" / "nano-assistant"


@pytest.fixture(scope="session")
def vllm_endpoint(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A vLLM server with the embedded assistant; started once for all tests."""
    with vllm_server(nano_assistant, tmp_path_factory.mktemp("vllm") / "server.log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def transformers_endpoint(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """`transformers serve` with the embedded assistant; started once for all tests."""
    with transformers_server(nano_assistant, tmp_path_factory.mktemp("transformers") / "server.log") as endpoint:
        yield endpoint
