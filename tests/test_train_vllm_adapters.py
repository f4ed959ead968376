"""The whole loop against a real vLLM server: propose, score, teach, swap, and again."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from difflib import SequenceMatcher
from pathlib import Path

import httpx2
import pytest
from samples import QUICKSTART, Silent
from servers import Endpoint

from gpta_local.config import load
from gpta_local.dialogue_gradient.train import taught_replies
from gpta_local.record.history import open_existing
from gpta_local.run.loop import Run
from gpta_local.schema import DialogueGradientStep, ProposalFigures, StepVerdict

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BY_HEART = {
    "steps": 80,
    "learning_rate": 1e-2,
    "rank": 16,
    "winners": 0.01,
    "dialogues_per_winner": 2,
    "batch_size": 4,
    "temperature": 0.2,
}
"""Enough to make an adapter say hardly anything but what it was taught."""


def models(endpoint: Endpoint) -> list[str]:
    """The names that the server answers to."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    reply = httpx2.get(f"{endpoint.base_url}/models", headers=headers, trust_env=False, timeout=20)
    return [model["id"] for model in reply.json()["data"]]


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
def run(
    near_prefixes_count: None, vllm_endpoint: Endpoint, sentence: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Watcher]:
    """A run of three rounds with two dialogue gradients."""
    assistant = {"backend": "vllm", "base_url": vllm_endpoint.base_url, "model": vllm_endpoint.model}
    assistant |= {"api_key_env": "GPTA_TEST_KEY", "max_new_tokens": 8}
    overrides = [
        "search.rounds=3",
        "search.proposals=16",
        "search.label_text_samples=0",
        f"downstream.backbone={sentence}",
        "training.steps=2",
        "finish.finalists=1",
        "finish.plain_control=false",
        f"assistant={json.dumps(assistant)}",
        f"dialogue_gradient={json.dumps(BY_HEART)}",
    ]
    folder, watcher = tmp_path_factory.mktemp("run") / "run", Watcher(vllm_endpoint)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GPTA_TEST_KEY", str(vllm_endpoint.api_key))
        Run(load(QUICKSTART / "quickstart.yaml", overrides), watcher).run(folder)
    return folder, watcher


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


def said_by_heart(folder: Path, adapter: str, replies: list[tuple[str, str]]) -> float:
    """The share of the replies that are much like what an adapter was taught; so small a model leaves words out."""
    taught = set(taught_replies(folder / "adapters" / adapter))
    alike = [max(SequenceMatcher(None, text.strip(), reply).ratio() for reply in taught) for text, _ in replies]
    return sum(ratio > 0.5 for ratio in alike) / len(alike)


def test_completions_after_each_swap_come_from_the_new_adapter(run: tuple[Path, Watcher]) -> None:
    folder, _ = run
    asked = replies_by_adapter(folder / "history.sqlite")
    assert set(asked) >= {"", "001", "002"}
    for adapter in ("001", "002"):
        assert said_by_heart(folder, adapter, asked[adapter]) > 0.5, f"adapter {adapter} says what it was taught"
        assert {model for _, model in asked[adapter]} == {f"tiny+{adapter}"}
    later = asked[""][16:]
    assert not later or said_by_heart(folder, "001", later) < 0.5


def test_the_adapter_that_lost_is_gone_from_the_server(run: tuple[Path, Watcher]) -> None:
    _, watcher = run
    assert watcher.after_step[0] == 2, "the base and the adapter on trial"
    assert len(watcher.after_verdict) == 2
    kept = False
    for verdict, loaded in watcher.after_verdict:
        kept = kept or verdict == "kept"
        assert loaded == 1 + kept, "the base, and the one adapter that is trusted"


def test_history_says_what_became_of_each_step_and_nothing_is_left_on_the_server(
    run: tuple[Path, Watcher], vllm_endpoint: Endpoint
) -> None:
    folder, watcher = run
    steps = open_existing(folder).steps()
    assert [(number, step.adapter) for number, step, _ in steps] == [(1, "001"), (2, "002")]
    assert [verdict for *_, verdict in steps] == [verdict for verdict, _ in watcher.after_verdict]
    assert models(vllm_endpoint) == [vllm_endpoint.model]
