"""The dialogue gradient in a process of its own: the same adapter, and nothing left of the process."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from chat_models import DIALOGUES, WORKER, settings

from gpta_local.assistant.local import load_model
from gpta_local.config.sections import DialogueGradientConfig
from gpta_local.dialogue_gradient import worker
from gpta_local.dialogue_gradient.train import METHOD, train_adapter
from gpta_local.dialogue_gradient.worker import train_in_process_of_its_own
from gpta_local.errors import ModelError, TrainingError
from gpta_local.system.network import GUARD, Refusal

pytestmark = pytest.mark.slow  # each process imports the training libraries

ASKING = """
import socket, sys, threading, time
def ask():
    while "torch" not in sys.modules:
        time.sleep(0.01)
    socket.getaddrinfo("example.org", 80)
threading.Thread(target=ask, daemon=True).start()
"""


def workers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if process.is_running() and WORKER in " ".join(process.cmdline())]


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


@pytest.fixture(autouse=True)
def nothing_survives() -> Iterator[None]:
    yield
    assert workers() == []


def teach(weights: Path, folder: Path, config: DialogueGradientConfig | None = None, **others: Any) -> None:
    train_in_process_of_its_own(weights, DIALOGUES, config or settings(), folder, seed=1, **others)


def test_process_of_its_own_trains_the_same_adapter_and_tells_what_was_refused_there(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among files that must not be imported. The connection is tried by a module that Python imports at its start, once
    the training libraries are there."""
    told: list[int] = []
    (tmp_path / "trl.py").write_text("raise RuntimeError('a file of the user')", encoding="utf-8")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(ASKING, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path / "start"), os.environ.get("PYTHONPATH")]))
    )
    monkeypatch.setattr(GUARD, "refused", Counter())
    model, config = load_model(chat_model, "cpu", "assistant"), settings(steps=3)
    dialogues = [replace(DIALOGUES[0], rival=DIALOGUES[1].request), *DIALOGUES[1:]]
    there = train_in_process_of_its_own(
        chat_model,
        dialogues,
        config,
        tmp_path / "there" / "001",
        on_step=lambda: told.append(1),
        seed=5,
    )
    here = train_adapter(*model, dialogues, config, tmp_path / "here" / "001", seed=5)
    for name in ("adapter_model.safetensors", "adapter_config.json", "dialogues.jsonl"):
        assert (tmp_path / "here" / "001" / name).read_bytes() == (tmp_path / "there" / "001" / name).read_bytes()
    assert there.losses == here.losses and (there.adapter, there.method, there.dialogues) == ("001", METHOD, 3)
    assert len(told) == 3
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["001"], "no log is left"
    assert GUARD.refused == {Refusal("sitecustomize", "example.org"): 1}


def test_error_there_is_told_here(chat_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(chat_model, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="the model cannot be loaded") as caught:
        teach(broken, tmp_path / "001")
    assert str(broken) in caught.value.where
    assert not (tmp_path / "001").exists()


def test_failure_that_nobody_foresaw_is_told_by_its_words(chat_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"ended with status 1: .*no/adapter/to/start/from"):
        teach(chat_model, tmp_path / "001", start=Path("/no/adapter/to/start/from"))
    assert not (tmp_path / "001").exists()


def test_process_that_is_killed_is_told_with_its_log(chat_model: Path, tmp_path: Path) -> None:
    def kill() -> None:
        (worker,) = workers()
        worker.kill()

    with pytest.raises(TrainingError, match=r"ended with status -9.*memory") as caught:
        teach(chat_model, tmp_path / "001", settings(steps=50), on_step=kill)
    assert caught.value.where == str(tmp_path / "001.log")
    assert (tmp_path / "001.log").is_file()
    assert not (tmp_path / "001").exists()


def test_process_that_says_nothing_for_too_long_is_ended(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SILENT_SECONDS", 0.2)
    with pytest.raises(TrainingError, match="ended with status -9"):
        teach(chat_model, tmp_path / "001")
    assert workers() == []


def test_interruption_here_ends_the_process_there(chat_model: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(chat_model, tmp_path / "001", settings(steps=50), on_step=interrupt)
    assert not (tmp_path / "001").exists()
