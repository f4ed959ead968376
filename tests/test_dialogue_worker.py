"""The dialogue gradient in a process of its own: the same adapter, and nothing left of the process."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chat_models import DIALOGUES, WORKER, settings, tiny_chat_llama
from safetensors.torch import load_file

from gpta_local.assistant.local import load_model
from gpta_local.dialogue_gradient import worker
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.dialogue_gradient.worker import train_in_process_of_its_own
from gpta_local.errors import ModelError, TrainingError
from gpta_local.system.network import GUARD, Refusal

pytestmark = pytest.mark.slow  # each process imports the training libraries


def workers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if process.is_running() and WORKER in " ".join(process.cmdline())]


def config_of(adapter: Path) -> dict[str, Any]:
    """peft writes a set: the order of the layers is that of the process."""
    content: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return content | {"target_modules": sorted(content["target_modules"])}


def rewards_of(texts: list[str]) -> list[float]:
    return [len(text) / 100 - text.count("e") for text in texts]


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [
        (None, "auto", "0"),
        (None, "cuda:1", "1"),
        ("2,3", "cuda:1", "3"),
        ("GPU-7", "auto", "GPU-7"),
        ("", "auto", ""),  # all are hidden
        ("2", "cuda:1", ""),
    ],
)
def test_hidden_gpu_stays_hidden(monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, shown: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker._on_one_gpu(device)[0] == {"CUDA_VISIBLE_DEVICES": shown}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_llama(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(autouse=True)
def nothing_survives() -> Iterator[None]:
    yield
    assert workers() == []


@pytest.mark.parametrize("method", ["weighted-sft", "grpo"])
def test_process_of_its_own_trains_the_same_adapter(folder: Path, tmp_path: Path, method: str) -> None:
    asked: dict[str, list[list[str]]] = {"here": [], "there": []}
    told: list[int] = []

    def reward(place: str, texts: list[str]) -> list[float]:
        asked[place].append(texts)
        return rewards_of(texts)

    config = settings(method, steps=3)
    there = train_in_process_of_its_own(
        folder,
        DIALOGUES,
        config,
        tmp_path / "there" / "001",
        seed=5,
        reward=lambda texts: reward("there", texts),
        on_step=lambda: told.append(1),
    )
    here = train_adapter(
        *load_model(folder, "cpu", "assistant"),
        DIALOGUES,
        config,
        tmp_path / "here" / "001",
        seed=5,
        reward=lambda texts: reward("here", texts),
    )
    for name in ("adapter_model.safetensors", "dialogues.jsonl"):
        assert (tmp_path / "here" / "001" / name).read_bytes() == (tmp_path / "there" / "001" / name).read_bytes()
    assert config_of(tmp_path / "here" / "001") == config_of(tmp_path / "there" / "001")
    assert there.losses == here.losses and (there.adapter, there.method, there.dialogues) == ("001", method, 3)
    assert len(told) == 3
    assert asked["here"] == asked["there"] and len(asked["there"]) == (3 if method == "grpo" else 0)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["001"], "no log is left"


def test_adapter_to_start_from_travels(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, "cpu", "assistant")
    train_adapter(*model, DIALOGUES, settings(), tmp_path / "start", seed=1)
    train_adapter(*model, DIALOGUES, settings(), tmp_path / "here", seed=2, start=tmp_path / "start")
    train_in_process_of_its_own(folder, DIALOGUES, settings(), tmp_path / "001", seed=2, start=tmp_path / "start")
    start, here, there = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("start", "here", "001"))
    moved = max(float((here[name] - start[name]).abs().max()) for name in start)
    apart = max(float((here[name] - there[name]).abs().max()) for name in start)
    assert apart < 0.05 * moved, "other processes may sum in another order, no more"


def test_broken_weights_are_told(folder: Path, tmp_path: Path) -> None:
    broken = tiny_chat_llama(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="the model cannot be loaded") as caught:
        train_in_process_of_its_own(broken, DIALOGUES, settings(), tmp_path / "001", seed=1)
    assert str(broken) in caught.value.where
    assert not (tmp_path / "001").exists()


def test_loss_that_is_no_number_is_told(folder: Path, tmp_path: Path) -> None:
    config = settings(steps=4, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"not a number.*learning_rate"):
        train_in_process_of_its_own(folder, DIALOGUES, config, tmp_path / "001", seed=1)
    assert not (tmp_path / "001").exists()


def test_process_that_is_killed_is_told_with_its_log(folder: Path, tmp_path: Path) -> None:
    def kill() -> None:
        (worker,) = workers()
        worker.kill()

    with pytest.raises(TrainingError, match=r"ended with status -9.*memory") as caught:
        train_in_process_of_its_own(folder, DIALOGUES, settings(steps=50), tmp_path / "001", seed=1, on_step=kill)
    assert caught.value.where == str(tmp_path / "001.log")
    assert (tmp_path / "001.log").is_file()
    assert not (tmp_path / "001").exists()


def test_process_that_says_nothing_for_too_long_is_ended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SILENT_SECONDS", 0.2)
    with pytest.raises(TrainingError, match="ended with status -9"):
        train_in_process_of_its_own(folder, DIALOGUES, settings(), tmp_path / "001", seed=1)
    assert workers() == []


def test_failure_that_nobody_foresaw_is_told_by_its_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "001").mkdir()
    with pytest.raises(TrainingError, match=r"ended with status 1: .*FileExistsError"):
        train_in_process_of_its_own(folder, DIALOGUES, settings(), tmp_path / "001", seed=1)
    assert not list((tmp_path / "001").iterdir())


def test_interruption_here_ends_the_process_there(folder: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_process_of_its_own(folder, DIALOGUES, settings(steps=50), tmp_path / "001", seed=1, on_step=interrupt)
    assert not (tmp_path / "001").exists()


def test_files_where_the_program_is_run_are_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trl.py").write_text("raise RuntimeError('a file of the user')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    train_in_process_of_its_own(folder, DIALOGUES, settings(), tmp_path / "adapters" / "001", seed=1)
    assert (tmp_path / "adapters" / "001" / "step.json").is_file()


def test_connection_that_was_refused_there_is_told_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a module that Python imports at its start, and that asks once the training libraries are there."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import socket, sys, threading, time
def ask():
    while "torch" not in sys.modules:
        time.sleep(0.01)
    socket.getaddrinfo("example.org", 80)
threading.Thread(target=ask, daemon=True).start()
""",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(GUARD, "refused", Counter())
    train_in_process_of_its_own(folder, DIALOGUES, settings(), tmp_path / "001", seed=1)
    assert GUARD.refused == {Refusal("sitecustomize", "example.org"): 1}
