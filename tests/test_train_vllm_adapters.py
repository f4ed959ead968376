"""The whole loop against a real vLLM server: propose, score, teach, swap, and again."""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from commands import ROOT
from samples import Silent
from servers import Endpoint, vllm_server

from gpta_local.assistant.prompts import read_prefix
from gpta_local.config import load
from gpta_local.dialogue_gradient.train import taught_replies
from gpta_local.record.history import open_existing
from gpta_local.run.loop import Run
from gpta_local.schema import DialogueGradientStep, ProposalFigures, StepVerdict

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"
BY_HEART = {
    "method": "sft",
    "steps": 40,
    "learning_rate": 5e-3,
    "dialogues_per_winner": 1,
    "batch_size": 8,
    "temperature": 1.0,
}
"""Enough to make an adapter say hardly anything but what it was taught."""


@pytest.fixture(scope="module")
def endpoint(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with vllm_server(nano_assistant, tmp_path_factory.mktemp("vllm") / "server.log", lora_rank=16) as served:
        yield served


def models(endpoint: Endpoint) -> list[str]:
    """The names that the server answers to."""
    request = urllib.request.Request(
        f"{endpoint.base_url}/models", headers={"Authorization": f"Bearer {endpoint.api_key}"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        return [model["id"] for model in json.load(reply)["data"]]


class Watcher(Silent):
    """Notes what the server has loaded after each step and each verdict."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.after_step: list[int] = []
        self.after_verdict: list[tuple[StepVerdict, int]] = []

    def taught(self, step: DialogueGradientStep, refused: str) -> None:
        assert not refused
        self.after_step.append(len(models(self.endpoint)))

    def judged(self, before: ProposalFigures, after: ProposalFigures, verdict: StepVerdict) -> None:
        self.after_verdict.append((verdict, len(models(self.endpoint))))


@pytest.fixture(scope="module")
def run(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Watcher]]:
    """A run of three rounds with two dialogue gradients."""
    assistant = {"backend": "vllm", "base_url": endpoint.base_url, "model": endpoint.model}
    overrides = [
        "search.rounds=3",
        "search.proposals=16",
        "search.label_text_samples=2",
        "training.steps=2",
        "finish.finalists=1",
        "finish.plain_control=false",
        f"assistant={json.dumps(assistant | {'api_key_env': 'GPTA_TEST_KEY'})}",
        f"dialogue_gradient={json.dumps(BY_HEART)}",
    ]
    folder, watcher = tmp_path_factory.mktemp("run") / "run", Watcher(endpoint)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        Run(load(QUICKSTART, overrides), watcher).run(folder)
    yield folder, watcher


def replies_by_adapter(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Text and model of the replies, by the adapter that was asked; "" is the base model."""
    found: dict[str, list[tuple[str, str]]] = {}
    with closing(sqlite3.connect(file)) as connection:
        for adapter, text, model in connection.execute(
            "SELECT r.adapter, c.text, c.model FROM completions c JOIN requests r ON r.id = c.request_id"
            " WHERE r.kind = 'prefix' ORDER BY c.id"
        ):
            found.setdefault(adapter, []).append((text, model))
    return found


def test_completions_after_each_swap_come_from_the_new_adapter(run: tuple[Path, Watcher]) -> None:
    folder, _ = run
    asked = replies_by_adapter(folder / "history.sqlite")
    assert set(asked) >= {"", "001", "002"}
    for adapter in ("001", "002"):
        taught = set(taught_replies(folder / "adapters" / adapter))
        by_heart = [read_prefix(text) in taught for text, _ in asked[adapter]]
        assert sum(by_heart) > len(by_heart) / 2, f"adapter {adapter} says what it was taught"
        assert {model for _, model in asked[adapter]} == {f"nano-assistant+{adapter}"}
    taught = set(taught_replies(folder / "adapters" / "001"))
    later = [reply for reply in asked[""] if reply not in asked[""][:16]]
    assert sum(read_prefix(text) in taught for text, _ in later) < len(later) / 2


def test_the_adapter_that_lost_is_gone_from_the_server(run: tuple[Path, Watcher]) -> None:
    _, watcher = run
    assert watcher.after_step[0] == 2, "the base and the adapter on trial"
    assert len(watcher.after_verdict) == 2
    kept = False
    for verdict, loaded in watcher.after_verdict:
        kept = kept or verdict == "kept"
        assert loaded == 1 + kept, "the base, and the one adapter that is trusted"


def test_nothing_is_left_on_the_server_after_the_run(run: tuple[Path, Watcher], endpoint: Endpoint) -> None:
    assert models(endpoint) == [endpoint.model]


def test_history_says_what_became_of_each_step(run: tuple[Path, Watcher]) -> None:
    folder, watcher = run
    steps = open_existing(folder).steps()
    assert [(number, step.adapter) for number, step, _ in steps] == [(1, "001"), (2, "002")]
    assert [verdict for *_, verdict in steps] == [verdict for verdict, _ in watcher.after_verdict]
