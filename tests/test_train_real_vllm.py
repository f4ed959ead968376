"""A real assistant behind a real vLLM server learns within a run: two steps on its example texts, two swaps."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest
from samples import Silent, config_of, sentiment_rows, write_jsonl
from servers import vllm_server

from gpta_local.config import load
from gpta_local.dialogue_gradient.train import taught_replies
from gpta_local.record.history import open_existing
from gpta_local.run import judging, text_steps
from gpta_local.run.loop import Run
from gpta_local.system.library import assistant_folder

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_two_adapters_of_a_real_model_answer_one_after_the_other(
    smollm2: str, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "LEAST_AGREEMENT", -9.0)  # whatever the small model of the rows says
    monkeypatch.setattr(text_steps, "LEAST_AGREEMENT", 9.0)
    write_jsonl(tmp_path / "test.jsonl", sentiment_rows())
    weights, watcher = assistant_folder(smollm2), Silent()
    with vllm_server(weights, tmp_path / "vllm.log", lora_rank=16) as endpoint:
        monkeypatch.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        served = {"backend": "vllm", "base_url": endpoint.base_url, "model": endpoint.model, "weights": str(weights)}
        content = {
            "data": {"test": "test.jsonl"},
            "assistant": served | {"api_key_env": "GPTA_TEST_KEY", "cache": False},
            "downstream": {"backbone": str(sentence)},
            "knowledge": {"example_texts": 8},
            "search": {"rounds": 0, "label_text_samples": 0},
            "training": {"steps": 2},
            "dialogue_gradient": {"steps": 2, "batch_size": 2, "dialogues_per_winner": 2, "device": "cpu"},
        }
        config_of(tmp_path, sentiment_rows(), content)
        Run(load(tmp_path / "config.yaml"), watcher).run(tmp_path / "run")
    assert [refused for _, refused in watcher.steps] == ["", ""]
    texts = [json.loads(line)["text"] for line in (tmp_path / "run" / "examples.jsonl").open(encoding="utf-8")]
    assert all(taught_replies(tmp_path / "run" / "adapters" / name) for name in ("001", "002"))
    said = defaultdict(set)
    with closing(sqlite3.connect(tmp_path / "run" / "history.sqlite")) as db:
        for adapter, model, text in db.execute(
            "SELECT r.adapter, c.model, c.text FROM completions c JOIN requests r ON r.id = c.request_id"
        ):
            said[adapter, model].add(text)
    name = endpoint.model
    assert set(said) == {("", name), ("001", f"{name}+001"), ("002", f"{name}+002")}
    assert all(any(text in reply for replies in said.values() for reply in replies) for text in texts)
    steps = open_existing(tmp_path / "run").steps()
    assert [step.adapter for _, step, _ in steps] == ["001", "002"]
    assert {verdict for *_, verdict in steps} <= {"kept", "rolled back"}
