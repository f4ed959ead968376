"""A run whose server takes no adapter, refuses one, or dies while one is swapped in: what was learnt
and recorded is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import assert_refused, invoke
from fault_server import FakeVLLM, FaultServer, Json, Reply, completion, error, failed
from samples import QUICKSTART

from gpta_local.assistant.local import load_model
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.errors import GptaError, ModelError, TrainingError
from gpta_local.record.history import open_existing
from gpta_local.schema import DialogueGradientStep, StepVerdict
from gpta_local.system.adapters import check_adapter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near_prefixes_count")]

SHORT = {"steps": 1, "batch_size": 2, "rank": 4, "dialogues_per_winner": 2}
SMALL = (
    *("search.rounds=3", "search.proposals=4", "search.label_text_samples=0"),
    *("training.steps=1", "finish.finalists=1", "finish.plain_control=false", "data.test=null"),
    f"dialogue_gradient={json.dumps(SHORT)}",
)
TOPICS = (
    *("visit", "bill", "pill", "result", "record", "pain"),
    *("login", "form", "letter", "doctor", "nurse", "app"),
)


def propose(body: Json) -> Reply:
    """Another prefix for each seed."""
    topics = [TOPICS[(body["seed"] + i) % len(TOPICS)] for i in range(body.get("n", 1))]
    return Reply(body=completion(*(f"About the {topic}:" for topic in topics), model=body["model"]))


class Server(FakeVLLM):
    dead = False

    def _chat_as_vllm(self, body: Json) -> Reply:
        if self.dead:
            return error(500, "EngineCore encountered an issue.")
        known = body["model"] in {"m", *self.adapters}
        return propose(body) if known else error(404, f"The model `{body['model']}` does not exist.")


@pytest.fixture
def server(chat_model: Path) -> Iterator[Server]:
    with Server(chat_model) as server:
        yield server


Train = Callable[..., Result]


@pytest.fixture
def train(sentence: Path, tmp_path: Path) -> Train:
    """A run of three rounds in `tmp_path / "run"`."""

    def run(base_url: str, backend: str = "vllm", **assistant: Any) -> Result:
        settings = {"backend": backend, "base_url": base_url, "model": "m", "max_retries": 0, **assistant}
        keys = [*SMALL, f"assistant={json.dumps(settings)}", f"downstream.backbone={sentence}"]
        words = [word for key in keys for word in ("--set", key)]
        return invoke("train", QUICKSTART / "quickstart.yaml", "--output", tmp_path / "run", *words)

    return run


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are trained here: a process of its own would spend its time on imports."""

    def train_here(weights: Path, *arguments: Any, **settings: Any) -> DialogueGradientStep:
        return train_adapter(*load_model(weights, "cpu", "dialogue_gradient"), *arguments, **settings)

    monkeypatch.setattr("gpta_local.dialogue_gradient.trial.train_in_process_of_its_own", train_here)


def verdicts(run: Path) -> list[StepVerdict]:
    return [verdict for *_, verdict in open_existing(run).steps()]


def test_adapters_go_into_the_server_and_out_again(server: Server, train: Train, tmp_path: Path) -> None:
    result = train(server.base_url)
    assert result.exit_code == 0, result.output
    assert [Path(body["lora_path"]).name for body in server.sent("load")][1:] == ["001", "002"], "the first is a probe"
    assert set(verdicts(tmp_path / "run")) <= {"kept", "rolled back"}
    assert server.adapters == {}, "nothing stays on the server after the run"


def test_server_whose_rank_is_too_low_gets_no_adapter_and_the_run_goes_on(
    server: Server, chat_model: Path, train: Train, tmp_path: Path
) -> None:
    def refuse(body: Json) -> Reply:
        seen = Path(body["lora_path"]).is_dir()
        return failed("LoRA rank 4 is greater than max_lora_rank 1.") if seen else server._load(body)

    server.on_load = refuse
    result = train(server.base_url)
    assert result.exit_code == 0, result.output
    assert "--max-lora-rank" in result.stderr
    assert verdicts(tmp_path / "run") == ["saved only", "saved only"]
    for adapter in ("001", "002"):
        check_adapter(tmp_path / "run" / "adapters" / adapter, chat_model)


def test_server_without_lora_is_known_before_the_run_and_adapters_are_saved(
    server: Server, train: Train, tmp_path: Path
) -> None:
    server.on_load = lambda body: failed("LoRA is not enabled. Use --enable-lora to enable LoRA.")
    result = train(server.base_url)
    assert result.exit_code == 0, result.output
    warning = result.stderr.index("--enable-lora")
    assert warning < result.stderr.index("round 1"), "said before the first round"
    assert verdicts(tmp_path / "run") == ["saved only", "saved only"]


def test_plain_endpoint_with_known_weights_gets_adapters_on_disk(
    chat_model: Path, train: Train, tmp_path: Path
) -> None:
    with FaultServer(propose) as server:
        result = train(server.base_url, backend="openai", weights=str(chat_model))
    assert result.exit_code == 0, result.output
    assert verdicts(tmp_path / "run") == ["saved only", "saved only"]
    check_adapter(tmp_path / "run" / "adapters" / "001", chat_model)


def test_plain_endpoint_with_unknown_weights_is_refused_before_the_run(train: Train, tmp_path: Path) -> None:
    with FaultServer(propose) as server:
        result = train(server.base_url, backend="openai")
    assert_refused(result, "dialogue_gradient", "assistant.weights")
    assert not (tmp_path / "run").exists()


def test_server_that_dies_during_the_swap_ends_the_search_and_nothing_is_lost(
    server: Server, chat_model: Path, train: Train, tmp_path: Path
) -> None:
    def die(body: Json) -> Reply:
        server.dead = Path(body["lora_path"]).is_dir()
        return error(500, "EngineCore encountered an issue.") if server.dead else server._load(body)

    server.on_load = die
    result = train(server.base_url)
    assert result.exit_code == 0, result.output
    assert "adapter 001 is saved but does not answer" in result.stderr
    assert "The search ended before its last round: The assistant failed in round 2 of 3" in result.stdout
    assert verdicts(tmp_path / "run") == ["saved only"]
    history = open_existing(tmp_path / "run")
    assert [number for number, *_ in history.rounds()] == [1]
    assert history.scored()
    check_adapter(tmp_path / "run" / "adapters" / "001", chat_model)


@pytest.mark.parametrize("kind", [TrainingError, ModelError])
def test_dialogue_gradient_that_fails_does_not_end_the_run(
    kind: type[GptaError], server: Server, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("the process of the dialogue gradient ended with status -9")

    monkeypatch.setattr("gpta_local.dialogue_gradient.trial.train_in_process_of_its_own", fail)
    result = train(server.base_url)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("status -9") == 2
    assert verdicts(tmp_path / "run") == []
