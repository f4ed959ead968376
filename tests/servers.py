"""Starts real model servers on 127.0.0.1 and stops them. Knows nothing of our client."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpta_local.assistant.vllm_server import VLLMServer, find_interpreter, free_port, is_healthy, stop

ROOT = Path(__file__).parent.parent
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
            "nano-assistant",
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
