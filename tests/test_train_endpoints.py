"""`gpta-local train` with the quickstart's configuration against real model servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from servers import ROOT, Endpoint

from gpta_local.cli import main
from gpta_local.history import open_existing

SMALL = (
    "search.rounds=2",
    "search.proposals=6",
    "search.label_text_samples=2",
    "training.steps=4",
    "finish.finalists=1",
)


def train(assistant: dict[str, Any], folder: Path) -> str:
    overrides = [*SMALL, f"assistant={json.dumps(assistant)}"]
    arguments = ["train", str(ROOT / "configs/quickstart/quickstart.yaml"), "--output", str(folder)]
    result = CliRunner().invoke(main, [*arguments, *(word for key in overrides for word in ("--set", key))])
    assert result.exit_code == 0, result.output
    return result.output


def test_quickstart_through_transformers_serve(transformers_endpoint: Endpoint, tmp_path: Path) -> None:
    assistant = {"backend": "openai", "base_url": transformers_endpoint.base_url, "model": transformers_endpoint.model}
    output = train(assistant, tmp_path / "run")
    assert "plain fine-tuning" in output
    history = open_existing(tmp_path / "run" / "history.sqlite")
    assert len(history.completions("prefix")) == 12, "the server ignores n, the client asks again"


@pytest.mark.vllm
def test_quickstart_through_vllm(vllm_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTA_TEST_KEY", str(vllm_endpoint.api_key))
    assistant = {"backend": "vllm", "base_url": vllm_endpoint.base_url, "model": vllm_endpoint.model}
    output = train({**assistant, "api_key_env": "GPTA_TEST_KEY"}, tmp_path / "run")
    assert "plain fine-tuning" in output
    history = open_existing(tmp_path / "run" / "history.sqlite")
    assert {completion.model for completion in history.completions("prefix")} == {vllm_endpoint.model}
    assert history.scored(), "the served embedded assistant proposes usable prefixes"
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or str(vllm_endpoint.api_key).encode() not in path.read_bytes(), path
