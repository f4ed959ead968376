"""Each path with a branch for GPUs, on one card: `make gpu` runs these alone and prints a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import DIALOGUES, greedy, settings
from commands import ROOT, invoke, run_command
from samples import QUICKSTART, examples, label_text_reply, record_replies, sentiment_rows, write_config, write_jsonl
from servers import VLLM_PYTHON, section, serving
from test_team import LAUNCH

from gpta_local.assistant.local import LocalAssistant
from gpta_local.config import TrainingConfig
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.downstream.model import SentenceClassifier
from gpta_local.downstream.training import Training
from gpta_local.system.models import multiplies_in_bf16

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.xdist_group("gpu"),
]
ROWS = examples(sentiment_rows() * 8, ("bad", "good"))
Record = Callable[[str, object], None]


def training(backbone: Path, precision: str, steps: int = 40) -> Training:
    torch.manual_seed(0)
    model = SentenceClassifier(backbone, 2, None).to(DEVICE)
    config = TrainingConfig.model_validate({"steps": steps, "precision": precision, "batch_size": 16})
    return Training(model, ROWS, config, seed=0)


def run_of(folder: Path, backbone: Path, changes: dict[str, Any]) -> Path:
    for split in ("train", "validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows()[: 24 if split == "train" else 11])
    record_replies(folder / "record", [label_text_reply({"bad": "a sad visit", "good": "a glad visit"})], ["Mood:"] * 6)
    own: dict[str, Any] = {
        "data": {"validation": "validation.jsonl", "test": "test.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(backbone)},
        "training": {"steps": 20, "precision": "auto"},
    }
    return write_config(folder / "guests.yaml", own | changes)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_training_learns(precision: str, backbone: Path, record_property: Record) -> None:
    steps = training(backbone, precision)
    steps.run("", 10)  # the first ones load kernels
    before = steps.seconds
    steps.run("", 30)
    record_property("figure", f"{30 * 16 / (steps.seconds - before):,.0f} rows a second")
    assert steps.model.device.type == DEVICE
    assert sum(steps.losses[-5:]) < 0.5 * sum(steps.losses[:5])


def test_training_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(backbone: Path) -> None:
    whole, begun, resumed = (training(backbone, "auto", steps=12) for _ in range(3))
    whole.run("Mood:", 12)
    begun.run("Mood:", 5)
    resumed.load(begun.state())
    resumed.run("Mood:", 7)
    assert resumed.losses == whole.losses
    for name, tensor in whole.state().tensors.items():
        assert torch.equal(resumed.state().tensors[name], tensor), name


def test_bf16_is_used_where_the_card_has_it() -> None:
    has_it = torch.cuda.get_device_capability() >= (8, 0)
    assert multiplies_in_bf16("auto", torch.device(DEVICE)) == has_it


def test_run_ends_with_a_product_that_labels_on_the_card(
    tmp_path: Path, backbone: Path, record_property: Record
) -> None:
    config = run_of(tmp_path, backbone, {})
    started = time.monotonic()
    result = invoke("train", config, "--output", tmp_path / "run", "--quiet")
    record_property("figure", f"{time.monotonic() - started:.0f} s")
    assert result.exit_code == 0, result.output
    assert invoke("evaluate", tmp_path / "run").exit_code == 0


def test_run_that_was_killed_goes_on_bit_by_bit(tmp_path: Path, backbone: Path) -> None:
    config = run_of(tmp_path, backbone, {"training": {"steps": 60, "checkpoint_seconds": 0.2, "precision": "auto"}})
    assert run_command("train", config, "--output", tmp_path / "whole", "--quiet").returncode == 0
    command = [
        sys.executable,
        "-m",
        "gpta_local",
        "train",
        str(config),
        "--output",
        str(tmp_path / "killed"),
        "--quiet",
    ]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        while not list((tmp_path / "killed").glob("checkpoints/*.safetensors")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert run_command("train", config, "--output", tmp_path / "killed", "--resume", "--quiet").returncode == 0
    weights = [next((tmp_path / run).glob("model/**/model.safetensors")).read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_local_assistant_answers_the_same_for_a_seed(chat_model: Path) -> None:
    assistant = LocalAssistant(str(chat_model), "auto")
    assert DEVICE in assistant.check()
    assert greedy(assistant) == greedy(assistant)


def test_local_assistant_is_taught_on_the_card(chat_model: Path, tmp_path: Path, record_property: Record) -> None:
    assistant = LocalAssistant(str(chat_model), "auto")
    before = greedy(assistant)
    learn = settings(steps=60, learning_rate=1e-2, rank=16)
    step = train_adapter(*assistant.base(), DIALOGUES[:1], learn, tmp_path / "001", seed=0)
    record_property("figure", f"{step.seconds:.1f} s for 60 steps")
    assistant.use_adapter(tmp_path / "001")
    assert step.losses[-1] < 0.5 * step.losses[0]
    assert greedy(assistant) != before


@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason=f"there is no vLLM at {VLLM_PYTHON}: GPTA_VLLM_PYTHON names one")
def test_card_is_shared_with_vllm_while_its_model_is_taught(
    tmp_path: Path, chat_model: Path, sentence: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    options = ("--name", "tiny", "--max-model-len", 2048, "--python", VLLM_PYTHON, "--gpu-memory-utilization", 0.3)
    started = time.monotonic()
    with serving(tmp_path, chat_model, *options) as process:
        served = section(process)
        record_property("figure", f"vLLM ready after {time.monotonic() - started:.0f} s")
        monkeypatch.setenv("GPTA_VLLM_KEY", (tmp_path / "vllm.log.key").read_text().strip())
        changes = {
            "assistant": {**served, "max_new_tokens": 8},
            "search": {"rounds": 2, "proposals": 8, "label_text_samples": 0},
            "dialogue_gradient": {"steps": 4, "rank": 8, "device": "cuda:0", "winners": 0.5},
        }
        result = invoke("train", run_of(tmp_path, sentence, changes), "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "adapters" / "001").is_dir() or "nothing to learn" in result.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_cards_share_a_training(tmp_path: Path, backbone: Path) -> None:
    config = run_of(tmp_path, backbone, {"search": {"regime": "online", "rounds": 1, "proposals": 2}})
    command = [*LAUNCH, "train", str(config), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "2 processes: share its trainings" in done.stderr, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["arms"]


def test_quickstart_with_its_real_assistant(tmp_path: Path, record_property: Record) -> None:
    started = time.monotonic()
    result = invoke("train", QUICKSTART / "quickstart.yaml", "--output", tmp_path / "run", "--quiet")
    record_property("figure", f"{time.monotonic() - started:.0f} s")
    assert result.exit_code == 0, result.output
