"""`gpta-local train` on the quickstart's data against real model servers."""

from __future__ import annotations

import json
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, invoke
from killing import start
from samples import QUICKSTART
from servers import Endpoint

from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify

CONFIG = QUICKSTART / "quickstart.yaml"
SMALL = (
    "search.rounds=2",
    "search.proposals=6",
    "search.label_text_samples=2",
    "training.steps=2",
    "finish.finalists=1",
)


def overrides(endpoint: Endpoint, sentence: Path, *others: str, **assistant: Any) -> list[str]:
    """The words of the command line."""
    section = {"base_url": endpoint.base_url, "model": endpoint.model, "max_new_tokens": 8, **assistant}
    keys = [*SMALL, f"assistant={json.dumps(section)}", f"downstream.backbone={sentence}", *others]
    return [word for key in keys for word in ("--set", key)]


def test_quickstart_through_transformers_serve(transformers_endpoint: Endpoint, sentence: Path, tmp_path: Path) -> None:
    words = overrides(transformers_endpoint, sentence, backend="openai")
    result = invoke("train", CONFIG, "--output", tmp_path / "run", *words)
    assert result.exit_code == 0, result.output
    assert "plain fine-tuning" in result.output
    history = open_existing(tmp_path / "run")
    assert len(history.completions("prefix")) == 12, "the server ignores n, the client asks again"


@pytest.mark.vllm
def test_quickstart_through_vllm(
    vllm_endpoint: Endpoint, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTA_TEST_KEY", str(vllm_endpoint.api_key))
    words = overrides(vllm_endpoint, sentence, backend="vllm", api_key_env="GPTA_TEST_KEY")
    result = invoke("train", CONFIG, "--output", tmp_path / "run", *words)
    assert result.exit_code == 0, result.output
    assert "plain fine-tuning" in result.output
    history = open_existing(tmp_path / "run")
    assert {completion.model for completion in history.completions("prefix")} == {vllm_endpoint.model}
    assert history.scored()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or str(vllm_endpoint.api_key).encode() not in path.read_bytes(), path


@pytest.mark.vllm
@pytest.mark.slow
def test_ten_runs_at_once_share_one_vllm_server(vllm_endpoint: Endpoint, sentence: Path, tmp_path: Path) -> None:
    # in a file: the process that all runs are forked from may be older than a variable set here
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(str(vllm_endpoint.api_key), encoding="utf-8")
    small = ("data.shots=2", "data.validation=null", "data.test=null", "finish.plain_control=false")
    words = overrides(vllm_endpoint, sentence, *small, backend="vllm", api_key_file=str(key))

    def begin(seed: int) -> BaseProcess:
        command = ["train", CONFIG, "--output", tmp_path / str(seed), *words, "--set", f"seed={seed}"]
        return start(command, tmp_path / f"{seed}.txt", threads=1)

    processes = [begin(seed) for seed in range(10)]
    for seed, process in enumerate(processes):
        process.join(timeout=400)
        assert process.exitcode == 0, (tmp_path / f"{seed}.txt").read_text()
        history = open_existing(tmp_path / str(seed))
        assert len(history.completions("prefix")) == 12
        assert history.scored()
        assert not verify(tmp_path / str(seed)).problems


def test_missing_key_variable_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    setting = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "GPTA_NOT_SET"}
    command = ("train", CONFIG, "--output", tmp_path / "run", "--set", f"assistant={json.dumps(setting)}")
    assert_refused(invoke(*command), "GPTA_NOT_SET")
