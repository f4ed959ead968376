"""Starts real model servers on 127.0.0.1 and stops them. Knows their command lines, not our client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VLLM_PYTHON = Path(os.environ.get("GPTA_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
STOP_SECONDS = 20


@dataclass(frozen=True)
class Endpoint:
    base_url: str
    model: str
    api_key: str | None


@contextmanager
def vllm_server(folder: Path, log: Path, start_seconds: float = 240) -> Iterator[Endpoint]:
    """Serve a model folder by vLLM on the CPU; about half a minute to start."""
    if not VLLM_PYTHON.exists():
        reason = f"there is no vLLM at {VLLM_PYTHON}: make vllm-env"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    port = _free_port()
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "nano-assistant", "key-of-the-test-server")
    # 16384 batched tokens: vLLM 0.32 on a CPU dies of a seeded request whose prompt is taken in parts
    command = [
        *(VLLM_PYTHON, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", folder, "--served-model-name", endpoint.model, "--api-key", endpoint.api_key),
        *("--host", "127.0.0.1", "--port", port),
        *("--dtype", "bfloat16", "--max-model-len", 2048, "--max-num-batched-tokens", 16384),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    with _running(command, environment, port, log, start_seconds):
        yield endpoint


@contextmanager
def transformers_server(folder: Path, log: Path, start_seconds: float = 120) -> Iterator[Endpoint]:
    """Serve a model folder by `transformers serve`, which knows the model by its path.

    The class behind that command is called, because the command line also imports `chat` and what
    that needs.
    """
    port = _free_port()
    serve = f"Serve(force_model={str(folder)!r}, host='127.0.0.1', port={port}, device='cpu')"
    command = [sys.executable, "-c", f"from transformers.cli.serve import Serve; {serve}"]
    with _running(command, {"HF_HOME": str(log.parent)}, port, log, start_seconds):
        yield Endpoint(f"http://127.0.0.1:{port}/v1", str(folder), None)


@contextmanager
def _running(
    command: Sequence[object], environment: dict[str, str], port: int, log: Path, start_seconds: float
) -> Iterator[None]:
    """Run a server in a process group of its own, from the first answer of /health on."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}  # trl sets some
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [str(word) for word in command],
            env=inherited | offline | environment,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + start_seconds
        while not _healthy(port):
            if server.poll() is not None or time.monotonic() > deadline:
                state = "is still starting" if server.poll() is None else f"ended with status {server.returncode}"
                pytest.fail(f"the server {state}; the end of {log}:\n{log.read_text(errors='replace')[-5000:]}")
            time.sleep(0.2)
        yield
    finally:
        _stop(server)


def _healthy(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; after a while, kill it; its children never outlive it."""
    server.send_signal(signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
