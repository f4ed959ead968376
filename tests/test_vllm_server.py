"""`gpta-local assistant serve`: with a vLLM that is only played, and with a real one on the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import PROGRAM, assert_refused, invoke
from servers import VLLM_PYTHON, require_vllm

from gpta_local.assistant.vllm_server import Interpreter, VLLMServer, failure_reason, private_file
from gpta_local.errors import InputError
from gpta_local.system.network import OFFLINE

NAME = "nano-assistant"
CPU, GPU = Interpreter(Path("python"), on_gpu=False), Interpreter(Path("python"), on_gpu=True)

PLAYED_VLLM = """
import http.server, os, signal, subprocess, sys
print("(APIServer pid=1) INFO 01-01 00:00:00 [entry.py:1] starting", flush=True)
manner = os.environ["MANNER"]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if manner == "breaks":
    print("(Worker pid=3) ERROR 01-01 00:00:00 [core.py:1] ValueError: the weights are short", flush=True)
    print("(EngineCore pid=2) INFO 01-01 00:00:00 [core.py:1] stopping", flush=True)
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
if manner == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if manner == "slow" else 200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def server(folder: Path = Path("model"), **changes: Any) -> VLLMServer:
    return VLLMServer(folder, "served", **{"interpreter": CPU, "api_key": "secret"} | changes)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


# The command line and the environment


def test_server_binds_to_this_machine_only() -> None:
    assert option(server().command, "--host") == "127.0.0.1"


def test_key_is_in_the_environment_and_not_on_the_command_line() -> None:
    made = server(api_key="very-secret")
    assert made.environment["VLLM_API_KEY"] == "very-secret"
    assert not any("very-secret" in word for word in made.command)


def test_command_line_on_a_cpu_has_what_the_cpu_needs() -> None:
    made = server(interpreter=CPU)
    assert option(made.command, "--dtype") == "bfloat16"
    assert option(made.command, "--max-num-batched-tokens") == "16384"
    assert "--gpu-memory-utilization" not in made.command
    assert made.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_command_line_on_a_gpu_says_only_its_share_of_the_memory() -> None:
    made = server(interpreter=GPU, gpu_memory_utilization=0.4)
    assert option(made.command, "--gpu-memory-utilization") == "0.4"
    assert "--dtype" not in made.command and "--max-num-batched-tokens" not in made.command
    assert not any(variable.startswith("VLLM_CPU") for variable in made.environment)


@pytest.mark.parametrize(("asked", "given"), [(1, "1"), (9, "16"), (16, "16"), (17, "32"), (300, "320")])
def test_rank_is_rounded_up_to_one_that_vllm_takes(asked: int, given: str) -> None:
    assert option(server(lora_rank=asked).command, "--max-lora-rank") == given


@pytest.mark.parametrize("rank", [0, 513])
def test_rank_that_vllm_cannot_take_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match="between 1 and 512"):
        server(lora_rank=rank)


def test_without_adapters_nothing_of_them_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    made = server(lora_rank=None)
    assert not any("lora" in word for word in made.command)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in made.environment


def test_length_of_the_context_is_passed_on_if_given() -> None:
    assert option(server(max_model_len=512).command, "--max-model-len") == "512"
    assert "--max-model-len" not in server().command


def test_further_arguments_come_last() -> None:
    assert server(extra=("--seed", "3")).command[-2:] == ["--seed", "3"]


def test_server_reports_to_nobody() -> None:
    assert OFFLINE.items() <= server().environment.items()


def test_address_of_the_server_is_not_found_out_by_a_socket_to_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server().environment["VLLM_HOST_IP"] == "127.0.0.1"
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.5")
    assert server().environment["VLLM_HOST_IP"] == "10.0.0.5"


def test_variables_that_trl_sets_or_that_weaken_safety_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("VLLM_LOGGING_LEVEL", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION"):
        monkeypatch.setenv(variable, "1")
        assert variable not in server().environment


def test_tuning_that_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert server().environment["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_private_file_is_readable_by_its_owner_only_even_if_it_existed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old and much longer")
    file.chmod(0o644)
    with private_file(file, "new\n"):
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() == "new\n"
    assert not file.exists()


# The reason of a failure


def test_reason_is_the_first_cause_and_not_the_error_that_points_to_it() -> None:
    log = """\
(Worker pid=7) ERROR 11-22 23:47:09 [multiproc_executor.py:953]     weights = safe_open(file)
(Worker pid=7) ERROR 11-22 23:47:09 [multiproc_executor.py:953] safetensors.SafetensorError: incomplete metadata
(EngineCore pid=6) ERROR 11-22 23:47:11 [core.py:1510] Exception: WorkerProc failed. See stack trace for root cause.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    assert failure_reason(log) == "safetensors.SafetensorError: incomplete metadata"


def test_reason_of_a_refused_setting_holds_its_explanation() -> None:
    log = """\
  File "config.py", line 3, in __init__
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, max_model_len is too large. [type=value_error]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
    assert failure_reason(log).endswith("for ModelConfig Value error, max_model_len is too large. [type=value_error]")


def test_reason_of_a_wrong_argument_is_what_the_parser_says() -> None:
    assert failure_reason("usage: …\nentry.py: error: unrecognized arguments: --x\n").endswith("arguments: --x")


def test_reason_without_any_error_is_the_end_of_the_log() -> None:
    assert failure_reason("one\ntwo\n\nthree\nfour\n") == "two three four"


# Bad input; vLLM is only played


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """This Python, with a vLLM and a torch that are only played."""
    modules = tmp_path / "modules"
    entry = modules / "vllm" / "entrypoints" / "launchers" / "api_server" / "entry.py"
    entry.parent.mkdir(parents=True)
    entry.write_text(PLAYED_VLLM)
    (modules / "torch.py").write_text("class cuda: is_available = staticmethod(lambda: False)\n")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("GPTA_VLLM_PYTHON", sys.executable)
    monkeypatch.delenv("GPTA_VLLM_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda manner: monkeypatch.setenv("MANNER", manner)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("assistant", "serve", tmp_path / "nowhere"), "no such model folder")


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    "argument",
    ["--host", "--host=0.0.0.0", "--hos", "--api-key", "--api_key=x", "--trust-remote-code", "--trust_remote", "--uds"],
)
def test_argument_that_would_undo_safety_is_refused(argument: str) -> None:
    assert_refused(invoke("assistant", "serve", NAME, "--", argument), argument, "not passed on to vLLM")


@pytest.mark.usefixtures("played")
def test_second_model_is_refused() -> None:
    assert_refused(invoke("assistant", "serve", NAME, "other"), "other: an argument too many")


@pytest.mark.usefixtures("played")
def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_refused(invoke("assistant", "serve", NAME, "--port", port), f"port {port}", "in use")


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("port", [0, 65536])
def test_port_out_of_range_is_refused(port: int) -> None:
    assert_refused(invoke("assistant", "serve", NAME, "--port", port), f"port {port}", "between 1 and 65535")


@pytest.mark.usefixtures("played")
def test_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "nowhere" / "vllm.log"
    assert_refused(invoke("assistant", "serve", NAME, "--log", log), str(log), "the log cannot be written")


def test_interpreter_that_does_not_exist_is_refused() -> None:
    assert_refused(invoke("assistant", "serve", NAME, "--python", "/no/python"), "/no/python", "no Python")


def test_interpreter_without_vllm_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    assert_refused(invoke("assistant", "serve", NAME, "--python", python), str(python), "vllm is not installed")


def test_without_any_vllm_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTA_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(invoke("assistant", "serve", NAME), "vLLM is not installed", "--python PATH", "GPTA_VLLM_PYTHON")


# The life of a server that is only played


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, in this folder."""

    def hear_ctrl_c() -> None:
        """A shell starts what it runs in the background deaf to SIGINT, and the test may run there."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [*PROGRAM, "assistant", "serve", *(str(argument) for argument in arguments)]
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


def processes() -> Iterator[tuple[int, int, int]]:
    """Number, parent and process group of all that live."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, group = file.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                yield int(file.parent.name), int(parent), int(group)


def group_of(process: subprocess.Popen[str]) -> int:
    """The process group that the command has started."""
    (leader,) = (number for number, parent, group in processes() if parent == process.pid and group == number)
    return leader


def members(group: int) -> list[int]:
    """The living processes of a group."""
    return [number for number, _, its_group in processes() if its_group == group]


def gone(group: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not members(group)


Played = Callable[[str], None]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_healthy_server_with_all_its_children(tmp_path: Path, played: Played, ending: int) -> None:
    played("well")
    with serving(tmp_path, NAME) as process:
        section(process)
        group = group_of(process)
        assert len(members(group)) == 2
        process.send_signal(ending)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 0, messages
    assert not members(group)
    assert messages.splitlines()[-1] == "stopped"


def test_signal_before_the_server_is_ready_is_told_by_the_exit_code(tmp_path: Path, played: Played) -> None:
    played("slow")
    with serving(tmp_path, NAME, "--log", "vllm.log") as process:
        while not (tmp_path / "vllm.log").exists():
            time.sleep(0.1)
        group = group_of(process)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 3, messages
    assert gone(group) and "Traceback" not in messages


def test_server_that_hears_no_request_to_end_is_killed(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpta_local.assistant.vllm_server.STOP_SECONDS", 0.5)
    played("deaf")
    with server(interpreter=Interpreter(Path(sys.executable), on_gpu=False), log=tmp_path / "log") as deaf:
        deaf.wait_until_healthy(30)
        group = deaf._process.pid
    assert not members(group)


def test_server_ends_when_the_command_is_killed(tmp_path: Path, played: Played) -> None:
    played("well")
    with serving(tmp_path, NAME) as process:
        section(process)
        group = group_of(process)
        (leader,) = (member for member in members(group) if member == group)
        process.kill()
        while leader in members(group):
            time.sleep(0.1)
        for child in members(group):  # the played server has not told it to end; vLLM does
            os.kill(child, signal.SIGKILL)


def test_server_that_ends_while_starting_is_an_error_with_its_reason(tmp_path: Path, played: Played) -> None:
    played("breaks")
    with serving(tmp_path, NAME, "--log", "vllm.log") as process:
        output, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == "" and "Traceback" not in messages
    assert messages.splitlines()[-1] == (
        "error: nano-assistant: vLLM ended while starting (status 1): ValueError: the weights are short. "
        "The whole log: vllm.log"
    )


def test_server_that_ends_later_is_an_error_and_takes_its_children_along(tmp_path: Path, played: Played) -> None:
    played("well")
    with serving(tmp_path, NAME) as process:
        section(process)
        group = group_of(process)
        os.kill(group, signal.SIGKILL)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "vLLM ended by itself (signal 9)" in messages
    assert gone(group)


def test_server_that_is_not_ready_in_time_is_an_error(tmp_path: Path, played: Played) -> None:
    played("slow")
    with serving(tmp_path, NAME, "--start-seconds", 1) as process:
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "vLLM is not ready after 1 s" in messages


def test_waiting_is_reported(tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpta_local.assistant.vllm_server.REPORT_SECONDS", 0.3)
    played("slow")
    reported: list[float] = []
    slow = server(interpreter=Interpreter(Path(sys.executable), on_gpu=False), log=tmp_path / "log")
    with slow, pytest.raises(Exception, match="not ready"):
        slow.wait_until_healthy(1, reported.append)
    assert len(reported) >= 2 and reported == sorted(reported)


def test_key_that_was_made_lies_beside_the_log_as_long_as_the_server_runs(tmp_path: Path, played: Played) -> None:
    played("well")
    with serving(tmp_path, NAME, "--log", "vllm.log") as process:
        assert section(process)["api_key_env"] == "GPTA_VLLM_KEY"
        file = tmp_path / "vllm.log.key"
        key = file.read_text().strip()
        assert file.stat().st_mode & 0o777 == 0o600 and len(key) >= 32
        process.terminate()
        _, messages = process.communicate(timeout=20)
    assert 'export GPTA_VLLM_KEY="$(cat vllm.log.key)"' in messages
    assert key not in messages
    assert not file.exists()


def test_log_is_its_owners_alone(tmp_path: Path, played: Played) -> None:
    played("well")
    with serving(tmp_path, NAME, "--log", "vllm.log") as process:
        assert section(process)
        assert (tmp_path / "vllm.log").stat().st_mode & 0o777 == 0o600


def test_log_that_others_could_read_before_is_its_owners_alone(tmp_path: Path, played: Played) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("of another day\n")
    log.chmod(0o644)
    played("well")
    with server(interpreter=Interpreter(Path(sys.executable), on_gpu=False), log=log):
        assert log.stat().st_mode & 0o777 == 0o600
        assert log.read_text().startswith("of another day\n")


def test_key_of_the_environment_is_written_nowhere(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "the-key-that-i-chose")
    played("well")
    with serving(tmp_path, NAME, "--log", "vllm.log", "--api-key-env", "MY_KEY") as process:
        assert section(process)["api_key_env"] == "MY_KEY"
        assert not (tmp_path / "vllm.log.key").exists()


# A real server on the CPU


class RealServer:
    """The command, serving the embedded assistant by vLLM."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.section = section(process)
        self.key = (folder / "vllm.log.key").read_text().strip()
        self.log = folder / "vllm.log"
        self.group = group_of(process)

    def get(self, path: str, key: str | None) -> tuple[int, str]:
        address = self.section["base_url"].removesuffix("/v1") + path
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    require_vllm()
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.delenv("GPTA_VLLM_KEY", raising=False)
        with serving(folder, NAME, "--python", VLLM_PYTHON, "--log", "vllm.log", "--", "--seed=1") as process:
            yield RealServer(process, folder)


@pytest.mark.vllm
def test_real_server_lists_the_model_under_its_name(real: RealServer) -> None:
    status, reply = real.get("/v1/models", real.key)
    assert status == 200
    assert [model["id"] for model in json.loads(reply)["data"]] == [NAME] == [real.section["model"]]


@pytest.mark.vllm
@pytest.mark.parametrize("key", [None, "wrong"])
def test_real_server_refuses_a_request_without_the_key(real: RealServer, key: str | None) -> None:
    assert real.get("/v1/models", key)[0] == 401


@pytest.mark.vllm
def test_key_of_a_real_server_is_in_no_command_line_and_not_in_the_log(real: RealServer) -> None:
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(file.read_text(errors="replace"))
    assert any("vllm.entrypoints" in command for command in commands)
    assert not any(real.key in command for command in commands)
    assert real.key not in real.log.read_text(errors="replace")


@pytest.mark.vllm
def test_real_server_listens_on_this_machine_only(real: RealServer) -> None:
    sockets = set()
    for member in members(real.group):
        for descriptor in Path(f"/proc/{member}/fd").iterdir():
            with suppress(OSError):
                sockets |= set(re.findall(r"^socket:\[(\d+)\]$", str(descriptor.readlink())))
    addresses = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in sockets:  # listening
                addresses.append(columns[1].split(":"))
    port = int(real.section["base_url"].removesuffix("/v1").rpartition(":")[2])
    assert port in {int(number, 16) for _, number in addresses}
    assert {host for host, _ in addresses} == {"0100007F"}


@pytest.mark.vllm
@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_real_server_has_the_routes_of_adapters(real: RealServer, path: str) -> None:
    assert real.get(path, real.key)[0] == 405  # they want POST


@pytest.mark.vllm
def test_real_server_has_no_routes_for_developers(real: RealServer) -> None:
    assert real.get("/server_info", real.key)[0] == 404


@pytest.mark.vllm
def test_real_server_leaves_no_process_after_ctrl_c(real: RealServer) -> None:
    group = real.group
    assert len(members(group)) >= 3
    real.process.send_signal(signal.SIGINT)
    _, messages = real.process.communicate(timeout=40)
    assert real.process.returncode == 0, messages
    assert "Traceback" not in messages
    assert not members(group)


@pytest.mark.vllm
def test_real_server_that_is_still_starting_leaves_no_process_after_sigterm(tmp_path: Path) -> None:
    require_vllm()
    with serving(tmp_path, NAME, "--python", VLLM_PYTHON, "--log", "vllm.log") as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "vllm.log").exists() or len(members(group_of(process))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        group = group_of(process)
        process.terminate()
        _, messages = process.communicate(timeout=40)
    assert process.returncode == 3, messages
    assert not members(group)


@pytest.mark.vllm
def test_model_that_vllm_cannot_load_is_an_error_with_its_reason(tmp_path: Path, nano_assistant: Path) -> None:
    require_vllm()
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (*nano_assistant.glob("*.json"), *nano_assistant.glob("*.jinja")):
        shutil.copy(file, broken)
    weights = (nano_assistant / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with serving(tmp_path, broken, "--python", VLLM_PYTHON, "--log", "vllm.log") as process:
        output, messages = process.communicate(timeout=180)
    assert process.returncode == 1
    assert output == "" and "Traceback" not in messages
    assert "broken: vLLM ended while starting (status 1): " in messages
    assert "SafetensorError: Error while deserializing header: incomplete metadata" in messages
    assert len(messages.splitlines()[-1]) < 400
