"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from servers import ROOT, Endpoint, transformers_server, vllm_server

from gpta_local.system.network import OFFLINE

settings.register_profile("short", deadline=None, derandomize=True)
settings.load_profile("short")
settings.register_profile("fuzz", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
"""For `make fuzz`; a seed of its own each time."""

os.environ.update(OFFLINE)  # as the program does before it imports anything


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


@pytest.fixture(scope="session")
def backbone() -> Path:
    """all-MiniLM-L6-v2, from the package that the extra `demo` installs."""
    from gpta_local.system.models import backbone_folder

    return backbone_folder("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder checkpoint with a WordPiece tokenizer; 96 positions."""
    from tiny_models import tiny_bert

    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder checkpoint with a byte-level BPE tokenizer; 96 positions."""
    from tiny_models import tiny_roberta

    return tiny_roberta(tmp_path_factory.mktemp("models") / "roberta")


@pytest.fixture(scope="session")
def sentence(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a sentence-transformers folder with mean pooling."""
    from tiny_models import sentence_folder

    return sentence_folder(bert, tmp_path_factory.mktemp("models") / "sentence")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def audited_run(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, see `audited`; tests that change it take a copy."""
    from audited import train

    return train(tmp_path_factory.mktemp("audited"), sentence)


@pytest.fixture(scope="module")
def near_prefixes_count() -> Iterator[None]:
    """For runs with a random backbone, to which nearly all prefixes look alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpta_local.knowledge.prefixes.NEAR_DUPLICATE", 1.1)  # no cosine reaches it
        yield
