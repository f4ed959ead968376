"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from servers import VLLM, Endpoint, transformers_server, vllm

from gpta_local.system.network import GUARD, OFFLINE

Connect = Callable[..., Any]

settings.register_profile("short", deadline=None, derandomize=True)
settings.load_profile("short")
settings.register_profile("fuzz", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
"""For `make fuzz`; a seed of its own each time."""

os.environ.update(OFFLINE)  # as the program does before it imports anything
# pytest-xdist puts the working directory there, and with it an empty entry, which stands for any later one
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
CACHE = tempfile.TemporaryDirectory(prefix="gpta-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name  # what assistants answer in tests is not kept with what they answer to users


@pytest.fixture(autouse=True)
def nothing_refused_before() -> None:
    """What the guard of the network refused in an earlier test of this process is not told in the next."""
    GUARD.refused.clear()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): tests that share a worker of pytest-xdist")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of a server on one worker of pytest-xdist (`--dist loadgroup`): it is started once."""
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("vllm"))
        elif "transformers_endpoint" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("transformers"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random causal language model that chats; not to be changed."""
    from chat_models import tiny_chat_llama

    return tiny_chat_llama(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of a small real assistant. It is converted once and kept in the user's data directory."""
    from gpta_local.system.library import assistant_folder

    return assistant_folder("SmolLM2-135M-Instruct").name


@pytest.fixture(scope="session")
def vllm_served(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLM]:
    """The small model, served by a real vLLM that takes adapters up to rank 16; started once for all tests."""
    with vllm(chat_model, tmp_path_factory.mktemp("vllm")) as served:
        yield served


@pytest.fixture(scope="session")
def vllm_endpoint(vllm_served: VLLM) -> Endpoint:
    return vllm_served.endpoint


@pytest.fixture(scope="session")
def transformers_endpoint(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """`transformers serve` with the small model; started once for all tests."""
    with transformers_server(chat_model, tmp_path_factory.mktemp("transformers") / "server.log") as endpoint:
        yield endpoint


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make a client, closed after the test: `connect(base_url, kind, model, **changes)`."""
    from gpta_local.assistant.openai_api import OpenAIAssistant

    with ExitStack() as stack:

        def make(
            base_url: str, kind: type[OpenAIAssistant] = OpenAIAssistant, model: str = "m", **changes: Any
        ) -> OpenAIAssistant:
            settings: dict[str, Any] = {"api_key": None, "timeout": 10.0, "max_retries": 0, "concurrency": 4}
            assistant = kind(model, base_url=base_url, **settings | changes)
            stack.callback(assistant.close)
            return assistant

        yield make


@pytest.fixture
def connect_vllm(connect: Connect, vllm_endpoint: Endpoint) -> Connect:
    """Make a client of the real vLLM server: `connect_vllm(**changes)`."""
    from gpta_local.assistant.vllm import VLLMAssistant

    return partial(connect, kind=VLLMAssistant, timeout=60.0, **asdict(vllm_endpoint))


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
