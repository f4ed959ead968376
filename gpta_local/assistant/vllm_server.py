"""Starts a vLLM server for a model folder and stops it.

Knows vLLM's command line, its environment and its life cycle; sends no request but the one for its
health. The class `vllm.VLLMAssistant` is the other side: it asks, and starts nothing.

The server answers on 127.0.0.1 only, and that is its protection: vLLM's key guards what is below
/v1 and leaves other routes open, among them one that completes texts and one that loads adapters.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from gpta_local.assistant.vllm_memory import OTHER_SIZES, Parallel, check_cards, check_machine, sizes
from gpta_local.errors import InputError, OutputError, ServerError
from gpta_local.system.files import owner_only
from gpta_local.system.network import OFFLINE

HOST = "127.0.0.1"
MODULE = "vllm.entrypoints.launchers.api_server.entry"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.32 takes for --max-lora-rank."""

STOP_SECONDS = 20.0
"""From the request to end to the end by force."""
REST_SECONDS = 2.0
"""What the children have, once the server itself has ended."""
REPORT_SECONDS = 10.0
LOG_END = 100_000
"""Bytes at the end of the log in which the reason of a failure is looked for."""

OURS = "it belongs before the --"
REFUSED = {
    "--host": f"the server answers on {HOST} only",
    "--uds": f"the server answers on {HOST} only",
    "--api-key": "the list of processes would show the key; it is read from an environment variable",
    "--trust-remote-code": "code that comes with a model is not run",
    "--allowed-origins": "any page in a browser could use the routes that ask for no key",
    "--config": "the file could hold what is refused here; write its options out",
    "--model": OURS,
    "--port": OURS,
    "--served-model-name": "it is the option --name, before the --",
    "--tensor-parallel-size": "it is the option --tensor-parallel, before the --",
    "--data-parallel-size": "it is the option --data-parallel, before the --",
}
"""Arguments of vLLM that are not passed on, and why."""

SCRUBBED = (
    "VLLM_LOGGING_LEVEL",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
)
"""Not inherited: the level that trl sets (and that could log prompts), and what opens routes, runs
pickles or logs replies. Other VLLM_* variables are the user's tuning and stay."""

PRIVATE = OFFLINE | {"PYTHONSAFEPATH": "1"}  # `python -m` would import what lies in the current directory
OWN_ADDRESS = {"VLLM_HOST_IP": HOST}
"""vLLM would find it out by a socket to 8.8.8.8."""
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

_ASK = (
    "import importlib.util, sys\n"
    "if importlib.util.find_spec('vllm') is None: sys.exit('vllm is not installed there')\n"
    "import torch\n"
    "print([torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())])"
)
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Interpreter:
    """A Python that has vLLM, and the GPUs that it would run it on: bytes free and bytes of all of each."""

    path: Path
    gpus: tuple[tuple[int, int], ...] = ()

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpus)


def find_interpreter(path: Path | None = None) -> Interpreter:
    """The Python at `path`; if None this one, should it have vLLM, or that of GPTA_VLLM_PYTHON.

    Raises:
        InputError: if there is none, or it has no vLLM.
    """
    if path is None and importlib.util.find_spec("vllm"):
        path = Path(sys.executable)
    elif path is None and os.environ.get("GPTA_VLLM_PYTHON"):
        path = Path(os.environ["GPTA_VLLM_PYTHON"])
    if path is None:
        what = "vLLM is not installed beside gpta-local"
        fix = "Name a Python that has it: --python PATH, or the environment variable GPTA_VLLM_PYTHON"
        raise InputError(what, fix=fix)
    fix = "Give the python of an environment into which vLLM is installed"
    try:
        asked = subprocess.run([path, "-c", _ASK], env=os.environ | PRIVATE, capture_output=True, text=True)
    except OSError as exc:
        raise InputError(f"no Python can be started there ({exc.strerror})", where=str(path), fix=fix) from exc
    if asked.returncode != 0:
        said = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        raise InputError(f"this Python cannot run vLLM: {said}", where=str(path), fix=fix)
    found = json.loads(asked.stdout.splitlines()[-1].replace("(", "[").replace(")", "]"))
    return Interpreter(path, tuple((free, whole) for free, whole in found))


class VLLMServer:
    """A vLLM server that lives as long as its `with` block, with all its children.

    Start it in a thread that lives as long: the server is told to end when that thread is gone,
    which is how it ends even when this process is killed.

    Args:
        folder: the model.
        name: the name under which requests know the model.
        interpreter: see `find_interpreter`. On a CPU, bfloat16 and a cache of 1 GiB are used; the
            variable VLLM_CPU_KVCACHE_SPACE changes the latter.
        api_key: what requests must carry; vLLM gets it by its environment.
        log: what vLLM prints is added to this file; None is vllm-PORT.log in the current directory.
        port: None takes a free one.
        lora_rank: the largest rank of an adapter, rounded up to one that vLLM takes; adapters can
            be loaded while it runs. None: no adapters.
        max_model_len: tokens of a request and its completion; None takes the model's own limit.
        gpu_memory_utilization: the part of the GPU's memory that vLLM takes for itself.
        parallel: how many GPUs, or on a CPU processes, the model is spread over, and copies of it.
        extra: further arguments of vLLM; they win over ours.

    Raises:
        InputError: if one of these cannot be used, or the memory is too small.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        interpreter: Interpreter,
        api_key: str,
        log: Path | None = None,
        port: int | None = None,
        lora_rank: int | None = 16,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        parallel: Parallel = Parallel(),  # noqa: B008  it is frozen
        extra: Sequence[str] = (),
    ) -> None:
        _check_extra(extra)
        self.name = name
        self.port = free_port() if port is None else _usable_port(port)
        self.log = log or Path(f"vllm-{self.port}.log")
        self.command = [str(interpreter.path), "-m", MODULE]
        self.command += ["--model", str(folder.absolute()), "--served-model-name", name, "--load-format", "safetensors"]
        self.command += ["--host", HOST, "--port", str(self.port)]
        if lora_rank is not None:
            self.command += ["--enable-lora", "--max-loras", "2", "--max-cpu-loras", "4"]
            self.command += ["--max-lora-rank", str(allowed_rank(lora_rank))]
        if max_model_len is not None:
            self.command += ["--max-model-len", str(max_model_len)]
        for kind, size in (("tensor", parallel.tensor), ("data", parallel.data)):
            if size > 1:
                self.command += [f"--{kind}-parallel-size", str(size)]
        if interpreter.on_gpu:
            self.command += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
        else:
            # vLLM 0.32 on a CPU dies of a seeded request whose prompt is taken in two parts
            self.command += ["--dtype", "bfloat16", "--max-num-batched-tokens", "16384"]
        self.command += extra
        inherited = {variable: value for variable, value in os.environ.items() if variable not in SCRUBBED}
        tuning = OWN_ADDRESS if interpreter.on_gpu else OWN_ADDRESS | ON_CPU
        self.environment = tuning | inherited | PRIVATE | {"VLLM_API_KEY": api_key}
        if lora_rank is not None:
            self.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if (needed := sizes(folder, max_model_len)) and not _other_sizes(extra):
            if interpreter.on_gpu:
                check_cards(name, needed, parallel, interpreter.gpus, gpu_memory_utilization)
            elif cache := _cache_of_cpu(self.environment):
                check_machine(name, needed, parallel, cache)

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    @owner_only()
    def __enter__(self) -> VLLMServer:
        """Start the server; it is not ready yet. Its log is its owner's alone.

        Raises:
            OutputError: if the log cannot be written.
        """
        try:
            output = self.log.open("ab")
            if self.log.is_file():  # and no terminal or /dev/null
                os.fchmod(output.fileno(), 0o600)  # one that was there would keep its mode
        except OSError as exc:
            raise OutputError(f"the log cannot be written ({exc.strerror})", where=str(self.log)) from exc
        with output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        stop(self._process)

    def wait_until_healthy(self, limit: float = 600, report: Callable[[float], None] | None = None) -> float:
        """Wait for the first good answer of /health; the seconds that it took.

        Args:
            limit: seconds to wait at most.
            report: called every ten seconds with the seconds waited so far.

        Raises:
            ServerError: if the server ends or the time is over.
        """
        start, reports = time.monotonic(), 1
        while not is_healthy(self.port):
            waited = time.monotonic() - start
            if self._process.poll() is not None:
                raise self._ended("while starting")
            if waited > limit:
                raise ServerError(f"vLLM is not ready after {limit:g} s", where=self.name, fix=f"See {self.log}")
            if report is not None and waited >= reports * REPORT_SECONDS:
                report(waited)
                reports += 1
            time.sleep(0.2)
        return time.monotonic() - start

    def wait(self) -> None:
        """Wait for the end of the server, which is always an error.

        Raises:
            ServerError: with the reason that the log gives.
        """
        self._process.wait()
        raise self._ended("by itself")

    def _ended(self, when: str) -> ServerError:
        with self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - LOG_END))
            reason = failure_reason(file.read().decode(errors="replace"))
        status = self._process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        what = f"vLLM ended {when} ({how}): {reason}"
        return ServerError(what, where=self.name, fix=f"The whole log: {self.log}")


def failure_reason(log: str) -> str:
    """What the end of vLLM's log says of a failure, without a final full stop.

    The processes of vLLM die one after the other, and each but the first says only to look above.
    """
    lines = [re.sub(r"^\([^)]* pid=\d+\) (?:[A-Z]+ \S+ \S+ \[\S+\] )?", "", line) for line in log.splitlines()]
    raised = [
        number
        for number, line in enumerate(lines)
        if re.match(r"[\w.]*(Error|Exception)\b|\S+: error: ", line)
        and not re.search(r"\bSee (root cause|stack trace)\b", line)
    ]
    if raised:
        after = lines[raised[-1] + 1 :]
        explained = takewhile(lambda line: line[:1] == " " and "errors.pydantic.dev" not in line, after)
        chosen = [lines[raised[-1]], *explained]
    else:
        chosen = [line for line in lines if line.strip()][-3:] or ["the log is empty"]
    reason = " ".join(line.strip() for line in chosen)
    return (f"{reason[:600]} …" if len(reason) > 600 else reason).rstrip(".")


@contextmanager
def private_file(path: Path, text: str) -> Iterator[None]:
    """A file that only its owner can read, as long as the block lasts.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        path.unlink(missing_ok=True)  # an existing file would keep its mode
        with owner_only(), path.open("x", encoding="utf-8") as output:
            output.write(text)
    except OSError as exc:
        raise OutputError(f"the file cannot be written ({exc.strerror})", where=str(path)) from exc
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_healthy(port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{HOST}:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def stop(leader: subprocess.Popen[bytes]) -> None:
    """Ask the leader of a process group to end; after a while, kill it; no child outlives it."""
    try:
        if leader.poll() is None:
            leader.terminate()
            with suppress(subprocess.TimeoutExpired):
                leader.wait(STOP_SECONDS)
        deadline = time.monotonic() + REST_SECONDS
        while leader.returncode is not None and _group_exists(leader.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _end_with_parent() -> None:
    """Linux sends SIGTERM to the server when we are gone, however that happened."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _usable_port(port: int) -> int:
    fix = "Choose another, or none for a free one"
    if not 0 < port < 65536:
        raise InputError("not between 1 and 65535", where=f"port {port}", fix=fix)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError as exc:
            raise InputError(f"cannot be used ({exc.strerror})", where=f"port {port}", fix=fix) from exc
    return port


def allowed_rank(rank: int) -> int:
    """The least rank that vLLM takes for adapters of this one."""
    if 0 < rank <= LORA_RANKS[-1]:
        return next(allowed for allowed in LORA_RANKS if allowed >= rank)
    raise InputError(f"vLLM takes adapters of a rank between 1 and {LORA_RANKS[-1]}", where=f"LoRA rank {rank}")


def _cache_of_cpu(environment: Mapping[str, str]) -> float:
    """GiB that the user, or we, give it; 0 where vLLM decides, or will say that it is no number."""
    try:
        return max(0.0, float(environment["VLLM_CPU_KVCACHE_SPACE"]))
    except ValueError:
        return 0.0


def _other_sizes(extra: Sequence[str]) -> bool:
    given = [argument.partition("=")[0].replace("_", "-") for argument in extra]
    return any(argument in OTHER_SIZES for argument in given)


def _check_extra(extra: Sequence[str]) -> None:
    if extra and not extra[0].startswith("-"):
        raise InputError("an argument too many", where=extra[0], fix="vLLM's own options follow after --")
    for argument in extra:
        option = argument.partition("=")[0].replace("_", "-")  # vLLM takes both signs, and abbreviations
        for refused, reason in REFUSED.items():
            if option.startswith("--") and refused.startswith(option):
                raise InputError(f"not passed on to vLLM: {reason}", where=argument)
