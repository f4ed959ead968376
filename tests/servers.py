"""Starts real model servers on 127.0.0.1 and stops them. Knows nothing of our client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import PROGRAM, ROOT

from gpta_local.assistant.vllm_server import VLLMServer, find_interpreter, free_port, is_healthy, stop

VLLM_PYTHON = Path(os.environ.get("GPTA_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))


@dataclass(frozen=True)
class Endpoint:
    base_url: str
    model: str
    api_key: str | None


@contextmanager
def vllm_server(
    folder: Path, log: Path, start_seconds: float = 240, lora_rank: int | None = None
) -> Iterator[Endpoint]:
    """Serve a model folder by vLLM; about half a minute to start on a CPU."""
    require_vllm()
    key = "key-of-the-test-server"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        server = VLLMServer(
            folder,
            "tiny-chat",
            interpreter=find_interpreter(VLLM_PYTHON),
            api_key=key,
            log=log,
            lora_rank=lora_rank,
            max_model_len=2048,
        )
    with server:
        server.wait_until_healthy(start_seconds)
        yield Endpoint(server.base_url, server.name, key)


def require_vllm() -> None:
    """Skip the test where there is no vLLM; fail it in continuous integration."""
    if not VLLM_PYTHON.exists():
        reason = f"there is no vLLM at {VLLM_PYTHON}: make vllm-env"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`gpta-local assistant serve` in a process of its own, in this folder; its log is `vllm.log` there."""

    def hear_ctrl_c() -> None:
        """A shell starts what it runs in the background deaf to SIGINT, and the test may run there."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [*PROGRAM, "assistant", "serve", "--log", "vllm.log", *(str(argument) for argument in arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, **pipes, preexec_fn=hear_ctrl_c) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def section(process: subprocess.Popen[str]) -> dict[str, str]:
    """What the command prints when the server is ready."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert process.poll() is None, process.communicate()
    return dict(yaml.safe_load("".join(lines))["assistant"])


def group_of(process: subprocess.Popen[str]) -> int:
    """The process group that the command has started."""
    (leader,) = psutil.Process(process.pid).children()
    return leader.pid


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


class VLLM:
    """A model folder, served by a real vLLM that the command has started."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.section = section(process)
        self.log = folder / "vllm.log"
        self.group = group_of(process)
        key = (folder / "vllm.log.key").read_text().strip()
        self.endpoint = Endpoint(self.section["base_url"], self.section["model"], key)


@contextmanager
def vllm(model: Path, folder: Path) -> Iterator[VLLM]:
    """Serve a model by the command until the block ends; then Ctrl-C must end it, with all its processes."""
    require_vllm()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.delenv("GPTA_VLLM_KEY", raising=False)
        options = ("--name", "tiny", "--max-model-len", 2048, "--max-lora-rank", 9, "--", "--seed=1")
        with serving(folder, model, "--python", VLLM_PYTHON, *options) as process:
            served = VLLM(process, folder)
            yield served
            assert len(members(served.group)) >= 3
            process.send_signal(signal.SIGINT)
            _, messages = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in messages, messages
    assert not members(served.group)


@contextmanager
def transformers_server(folder: Path, log: Path, start_seconds: float = 120) -> Iterator[Endpoint]:
    """Serve a model folder by `transformers serve`, which knows the model by its path.

    The class behind that command is called, because the command line also imports `chat` and what
    that needs.
    """
    port = free_port()
    serve = f"Serve(force_model={str(folder)!r}, host='127.0.0.1', port={port}, device='cpu')"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(log.parent)}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", f"from transformers.cli.serve import Serve; {serve}"],
            env=os.environ | offline | {"OMP_NUM_THREADS": "1"},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + start_seconds
        while not is_healthy(port):
            if server.poll() is not None or time.monotonic() > deadline:
                state = "is still starting" if server.poll() is None else f"ended with status {server.returncode}"
                pytest.fail(f"the server {state}; the end of {log}:\n{log.read_text(errors='replace')[-5000:]}")
            time.sleep(0.2)
        yield Endpoint(f"http://127.0.0.1:{port}/v1", str(folder), None)
    finally:
        stop(server)
