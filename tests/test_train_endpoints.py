"""`gpta-local train` with the quickstart's configuration against real model servers."""

from __future__ import annotations

import json
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, assert_refused, invoke
from fault_server import FaultServer, Reply, always
from killing import start
from servers import Endpoint

from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify

QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"
SMALL = (
    "search.rounds=2",
    "search.proposals=6",
    "search.label_text_samples=2",
    "training.steps=4",
    "finish.finalists=1",
)


def train(assistant: dict[str, Any], folder: Path) -> str:
    overrides = [*SMALL, f"assistant={json.dumps(assistant)}"]
    result = invoke("train", QUICKSTART, "--output", folder, *(word for key in overrides for word in ("--set", key)))
    assert result.exit_code == 0, result.output
    return result.output


def test_quickstart_through_transformers_serve(transformers_endpoint: Endpoint, tmp_path: Path) -> None:
    assistant = {"backend": "openai", "base_url": transformers_endpoint.base_url, "model": transformers_endpoint.model}
    output = train(assistant, tmp_path / "run")
    assert "plain fine-tuning" in output
    history = open_existing(tmp_path / "run")
    assert len(history.completions("prefix")) == 12, "the server ignores n, the client asks again"


@pytest.mark.vllm
@pytest.mark.slow
def test_ten_runs_at_once_share_one_vllm_server(vllm_endpoint: Endpoint, tmp_path: Path) -> None:
    # in a file: the process that all runs are forked from may be older than a variable set here
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text(str(vllm_endpoint.api_key), encoding="utf-8")
    assistant = {"backend": "vllm", "base_url": vllm_endpoint.base_url, "model": vllm_endpoint.model}
    small = ["data.shots=2", "data.validation=null", "data.test=null", "training.steps=1", "finish.plain_control=false"]
    small += ["search.rounds=2", "search.proposals=6", "search.label_text_samples=2"]
    small += [f"assistant.api_key_file={key}"]
    overrides = [f"assistant={json.dumps(assistant)}", *small]

    def begin(seed: int) -> BaseProcess:
        keys = [word for key in [*overrides, f"seed={seed}"] for word in ("--set", key)]
        return start(
            ["train", QUICKSTART, "--output", tmp_path / str(seed), *keys], tmp_path / f"{seed}.txt", threads=1
        )

    processes = [begin(seed) for seed in range(10)]
    for seed, process in enumerate(processes):
        process.join(timeout=400)
        assert process.exitcode == 0, (tmp_path / f"{seed}.txt").read_text()
        history = open_existing(tmp_path / str(seed) / "history.sqlite")
        assert len(history.completions("prefix")) == 12
        assert history.scored()
        assert not verify(tmp_path / str(seed)).problems


@pytest.mark.vllm
def test_quickstart_through_vllm(vllm_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTA_TEST_KEY", str(vllm_endpoint.api_key))
    assistant = {"backend": "vllm", "base_url": vllm_endpoint.base_url, "model": vllm_endpoint.model}
    output = train({**assistant, "api_key_env": "GPTA_TEST_KEY"}, tmp_path / "run")
    assert "plain fine-tuning" in output
    history = open_existing(tmp_path / "run")
    assert {completion.model for completion in history.completions("prefix")} == {vllm_endpoint.model}
    assert history.scored(), "the served embedded assistant proposes usable prefixes"
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or str(vllm_endpoint.api_key).encode() not in path.read_bytes(), path


FAULTS = {
    "no key": (Reply(401, {"error": "Unauthorized"}), "api_key_env"),
    "no such model": (Reply(404, {"error": {"message": "The model `m` does not exist."}}), "assistant.model"),
    "a web page": (Reply(200, "<!doctype html><title>Sign in</title>"), "web page"),
    "other JSON": (Reply(200, {"hello": "there"}), "assistant.base_url"),
    "no completion": (Reply(200, {"object": "chat.completion", "model": "m", "choices": []}), "completion"),
}


def endpoint(base_url: str, **changes: Any) -> str:
    settings = {"backend": "openai", "base_url": base_url, "model": "m", "max_retries": 0, **changes}
    return f"assistant={json.dumps(settings)}"


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_an_endpoint_is_one_message_before_anything_is_written(fault: str, tmp_path: Path) -> None:
    reply, words = FAULTS[fault]
    with FaultServer(always(reply)) as server:
        result = invoke("train", QUICKSTART, "--output", tmp_path / "run", "--set", endpoint(server.base_url))
    assert_refused(result, words)
    assert not (tmp_path / "run").exists()


def test_endpoint_that_refuses_the_connection_is_named(tmp_path: Path) -> None:
    with FaultServer() as server:
        gone = server.base_url
    result = invoke("train", QUICKSTART, "--output", tmp_path / "run", "--set", endpoint(gone))
    assert_refused(result, "nothing listens", gone)


def test_endpoint_that_does_not_answer_in_time_is_named(tmp_path: Path) -> None:
    def sleepy(body: dict[str, Any]) -> Reply:
        time.sleep(1.0)
        return Reply(200, "")

    with FaultServer(sleepy) as server:
        result = invoke(
            "train", QUICKSTART, "--output", tmp_path / "run", "--set", endpoint(server.base_url, timeout=0.3)
        )
    assert_refused(result, "0.3 s", "assistant.timeout")


def test_missing_key_variable_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    setting = endpoint("http://127.0.0.1:9/v1", api_key_env="GPTA_NOT_SET")
    assert_refused(invoke("train", QUICKSTART, "--output", tmp_path / "run", "--set", setting), "GPTA_NOT_SET")
