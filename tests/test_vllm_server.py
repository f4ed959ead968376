"""`gpta-local assistant serve`: with a vLLM that is only played, and with a real one on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from commands import assert_refused, invoke
from servers import VLLM, group_of, members, section, serving
from transformers import AutoModelForCausalLM

from gpta_local.assistant.vllm_memory import GIB, Parallel, Sizes, check_cards, check_machine, sizes
from gpta_local.assistant.vllm_server import Interpreter, VLLMServer, failure_reason, private_file
from gpta_local.errors import InputError, ServerError
from gpta_local.system.network import OFFLINE

CARD = (75 * GIB, 80 * GIB)
CPU, GPU = Interpreter(Path("python")), Interpreter(Path("python"), (CARD, CARD))

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


def test_key_is_in_the_environment_and_not_on_the_command_line() -> None:
    made = server(api_key="very-secret")
    assert made.environment["VLLM_API_KEY"] == "very-secret"
    assert not any("very-secret" in word for word in made.command)


def test_command_line_on_a_cpu_has_what_the_cpu_needs() -> None:
    made = server(interpreter=CPU, extra=("--seed", "3"))
    assert made.command[-2:] == ["--seed", "3"], "what the user adds wins"
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


def test_users_tuning_is_inherited_and_what_weakens_safety_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server().environment["VLLM_HOST_IP"] == "127.0.0.1", "or vLLM would find it out by a socket to elsewhere"
    tuning = {"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_HOST_IP": "10.0.0.5"}
    weakening = ("VLLM_LOGGING_LEVEL", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")
    for variable, value in [*tuning.items(), *((name, "1") for name in weakening)]:
        monkeypatch.setenv(variable, value)
    environment = server().environment
    assert (OFFLINE | tuning).items() <= environment.items()
    assert not any(variable in environment for variable in weakening)


def test_private_file_is_readable_by_its_owner_only_even_if_it_existed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old and much longer")
    file.chmod(0o644)
    with private_file(file, "new\n"):
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() == "new\n"
    assert not file.exists()


# How many cards, and how much memory


def test_sizes_are_vllms_own_options() -> None:
    made = server(interpreter=GPU, parallel=Parallel(tensor=2, data=4))
    assert option(made.command, "--tensor-parallel-size") == "2" and option(made.command, "--data-parallel-size") == "4"
    assert not any("parallel" in word for word in server(interpreter=GPU).command)


def test_sizes_of_a_model_are_read_from_its_files(chat_model: Path) -> None:
    found = sizes(chat_model, max_model_len=100)
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    config = model.config
    assert found is not None and found.tokens == 100 and found.heads == config.num_attention_heads
    assert found.weights == 2 * sum(weights.numel() for weights in model.parameters())
    assert found.cache == 100 * 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def test_model_that_does_not_say_its_sizes_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    assert sizes(tmp_path) is None


SEVEN_BILLION = Sizes(weights=14 * GIB, cache=2 * GIB, tokens=32768, heads=28)


@pytest.mark.parametrize(
    ("parallel", "cards", "words"),
    [
        (Parallel(), [(15 * GIB, 16 * GIB)], "14.0 GiB of weights and 2.0 GiB for one request of 32768 tokens"),
        (Parallel(tensor=2), [CARD], "1 × 2 GPUs are asked for, and vLLM's Python sees 1"),
        (Parallel(data=3), [CARD, CARD], "3 × 1 GPUs are asked for"),
        (Parallel(), [(20 * GIB, 80 * GIB)], "20.0 GiB of it are free.*at least 0.22 is needed"),
        (Parallel(tensor=3), [CARD] * 3, "28 attention heads cannot be spread over 3"),
    ],
)
def test_cards_that_are_too_few_or_too_small_are_told_before_the_start(
    parallel: Parallel, cards: list[tuple[int, int]], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_cards("m", SEVEN_BILLION, parallel, cards, 0.9)


def test_model_that_does_not_fit_on_a_card_fits_on_two() -> None:
    check_cards("m", SEVEN_BILLION, Parallel(tensor=2), [(15 * GIB, 16 * GIB)] * 2, 0.9)


@pytest.mark.parametrize(
    ("parallel", "cache", "words"),
    [
        (Parallel(), 1.0, "max-model-len 16384 or less, or export VLLM_CPU_KVCACHE_SPACE=2"),
        (Parallel(data=2), 2.0, "2 copies of 14.0 GiB of weights and 2 GiB of cache are needed, and 31.0 GiB are"),
    ],
)
def test_machine_with_too_little_memory_is_told_before_the_start(parallel: Parallel, cache: float, words: str) -> None:
    check_machine("m", SEVEN_BILLION, Parallel(), 2.0, available=31 * GIB)
    with pytest.raises(InputError, match=words):
        check_machine("m", SEVEN_BILLION, parallel, cache, available=31 * GIB)


def test_vllms_options_for_other_sizes_are_not_judged(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1000000")
    with pytest.raises(InputError, match="GiB of cache are needed"):
        server(chat_model)
    server(chat_model, extra=("--quantization=fp8",))


# The reason of a failure


LOGS = {
    "the first cause, not what points to it": (
        """\
(Worker pid=7) ERROR 11-22 23:47:09 [multiproc_executor.py:953]     weights = safe_open(file)
(Worker pid=7) ERROR 11-22 23:47:09 [multiproc_executor.py:953] safetensors.SafetensorError: incomplete metadata
(EngineCore pid=6) ERROR 11-22 23:47:11 [core.py:1510] Exception: WorkerProc failed. See stack trace for root cause.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""",
        "safetensors.SafetensorError: incomplete metadata",
    ),
    "with its explanation": (
        """\
  File "config.py", line 3, in __init__
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, max_model_len is too large. [type=value_error]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
""",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
        "Value error, max_model_len is too large. [type=value_error]",
    ),
    "of the parser": ("usage: …\nentry.py: error: bad arguments: --x\n", "entry.py: error: bad arguments: --x"),
    "without any error, the end": ("one\ntwo\n\nthree\nfour\n", "two three four"),
}


@pytest.mark.parametrize("what", LOGS)
def test_reason_of_a_failure_is(what: str) -> None:
    log, reason = LOGS[what]
    assert failure_reason(log) == reason


# Bad input; vLLM is only played


Played = Callable[[str], None]


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """This Python, with a vLLM and a torch that are only played."""
    modules = tmp_path / "modules"
    entry = modules / "vllm" / "entrypoints" / "launchers" / "api_server" / "entry.py"
    entry.parent.mkdir(parents=True)
    entry.write_text(PLAYED_VLLM)
    (modules / "torch.py").write_text("class cuda: device_count = staticmethod(lambda: 0)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("GPTA_VLLM_PYTHON", sys.executable)
    monkeypatch.delenv("GPTA_VLLM_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda manner: monkeypatch.setenv("MANNER", manner)


@pytest.mark.parametrize(
    "argument",
    ["--host", "--host=0.0.0.0", "--hos", "--api-key", "--api_key=x", "--trust-remote-code", "--trust_remote", "--uds"],
)
def test_argument_that_would_undo_safety_is_refused(argument: str) -> None:
    with pytest.raises(InputError, match=rf"{argument}: not passed on to vLLM"):
        server(extra=(argument,))


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--", "--host"), ("--host", "not passed on to vLLM")),
        (("other",), ("other: an argument too many",)),
        (("--port", 0), ("port 0", "between 1 and 65535")),
        (("--port", 65536), ("port 65536", "between 1 and 65535")),
        (("--log", "nowhere/vllm.log"), ("nowhere/vllm.log", "the log cannot be written")),
        (("--python", "/no/python"), ("/no/python", "no Python")),
    ],
)
def test_wrong_argument_of_the_command_is_refused(
    chat_model: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    assert_refused(invoke("assistant", "serve", chat_model, *arguments), *words)


SERVED = {
    "assistant": {
        "backend": "vllm",
        "model": "ours",
        "base_url": "http://127.0.0.1:8123/v1",
        "api_key_env": "OUR_KEY",
        "serve": {"tensor_parallel": 2, "max_model_len": 4096},
    }
}


def served(folder: Path, **changes: Any) -> Path:
    """A configuration whose assistant is a server of this machine."""
    path = folder / "config.yaml"
    content = {"data": {"train": "train.jsonl"}, "assistant": SERVED["assistant"] | changes}
    path.write_text(yaml.safe_dump(content | {"card": {"description": "Messages of customers of a bank."}}))
    return path


def test_configuration_says_how_its_assistant_is_served_and_options_say_otherwise(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict[str, Any]()

    def started(folder: Path, name: str, **settings: Any) -> None:
        asked.update(settings, folder=folder, name=name)
        raise InputError("that is enough")

    monkeypatch.setattr("gpta_local.assistant.vllm_server.VLLMServer", started)
    monkeypatch.setattr("gpta_local.assistant.vllm_server.find_interpreter", lambda python: CPU)
    monkeypatch.setenv("OUR_KEY", "of the configuration")
    config = served(tmp_path, weights=str(chat_model))
    assert_refused(invoke("assistant", "serve", config, "--tensor-parallel", 4), "that is enough")
    assert (asked["name"], asked["port"], asked["folder"]) == ("ours", 8123, chat_model)
    assert asked["parallel"] == Parallel(4, 1), "an option is the last word"
    assert (asked["max_model_len"], asked["lora_rank"], asked["api_key"]) == (4096, 16, "of the configuration")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "openai", "serve": None}, ("assistant.backend", "not served")),
        ({"base_url": "https://127.0.0.1:8000/v1"}, ("assistant.base_url", "this machine alone")),
        ({"api_key_env": None}, ("assistant.api_key_env", "GPTA_VLLM_KEY")),
    ],
)
def test_configuration_of_a_server_that_is_not_ours_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = served(tmp_path, **changes)
    content = yaml.safe_load(path.read_text())
    content["assistant"] = {key: value for key, value in content["assistant"].items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    assert_refused(invoke("assistant", "serve", path), *words)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("assistant", "serve", tmp_path / "nowhere"), "no such model folder")


def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="in use"):
        server(port=other.getsockname()[1])


def test_interpreter_without_vllm_is_refused(chat_model: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    assert_refused(invoke("assistant", "serve", chat_model, "--python", python), str(python), "vllm is not installed")


def test_without_any_vllm_it_is_said_what_to_do(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTA_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_refused(
        invoke("assistant", "serve", chat_model), "vLLM is not installed", "--python PATH", "GPTA_VLLM_PYTHON"
    )


# The life of a server that is only played


def start(folder: Path) -> VLLMServer:
    """One whose log is in this folder, to be entered."""
    return server(interpreter=Interpreter(Path(sys.executable)), log=folder / "vllm.log")


def gone(group: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not members(group)


def test_ctrl_c_ends_a_healthy_server_with_all_its_children_and_its_key(
    chat_model: Path, tmp_path: Path, played: Played
) -> None:
    played("well")
    with serving(tmp_path, chat_model) as process:
        assert section(process)["api_key_env"] == "GPTA_VLLM_KEY"
        key_file = tmp_path / "vllm.log.key"
        key = key_file.read_text().strip()
        assert key_file.stat().st_mode & 0o777 == 0o600 and len(key) >= 32
        assert (tmp_path / "vllm.log").stat().st_mode & 0o777 == 0o600
        group = group_of(process)
        assert len(members(group)) == 2
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 0, messages
    assert not members(group)
    assert 'export GPTA_VLLM_KEY="$(cat vllm.log.key)"' in messages and key not in messages
    assert messages.splitlines()[-1] == "stopped"
    assert not key_file.exists()


def test_sigterm_ends_a_server_whose_key_of_the_environment_was_written_nowhere(
    chat_model: Path, tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "the-key-that-i-chose")
    played("well")
    with serving(tmp_path, chat_model, "--api-key-env", "MY_KEY") as process:
        assert section(process)["api_key_env"] == "MY_KEY"
        assert not (tmp_path / "vllm.log.key").exists()
        group = group_of(process)
        process.terminate()
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 0, messages
    assert not members(group)


def test_signal_before_the_server_is_ready_is_told_by_the_exit_code(
    chat_model: Path, tmp_path: Path, played: Played
) -> None:
    played("slow")
    with serving(tmp_path, chat_model) as process:
        while not (tmp_path / "vllm.log.key").exists():
            assert process.poll() is None
            time.sleep(0.1)
        group = group_of(process)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 3, messages
    assert gone(group) and "Traceback" not in messages


def test_server_ends_when_the_command_is_killed(chat_model: Path, tmp_path: Path, played: Played) -> None:
    played("well")
    with serving(tmp_path, chat_model) as process:
        section(process)
        group = group_of(process)
        process.kill()
        while group in members(group):
            time.sleep(0.1)
        for child in members(group):  # the played server has not told it to end; vLLM does
            os.kill(child, signal.SIGKILL)


def test_server_that_ends_while_starting_is_an_error_with_its_reason(
    chat_model: Path, tmp_path: Path, played: Played
) -> None:
    played("breaks")
    with serving(tmp_path, chat_model, "--name", "served") as process:
        output, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == "" and "Traceback" not in messages
    assert messages.splitlines()[-1] == (
        "error: served: vLLM ended while starting (status 1): ValueError: the weights are short. "
        "The whole log: vllm.log"
    )


def test_server_that_hears_no_request_to_end_is_killed(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpta_local.assistant.vllm_server.STOP_SECONDS", 0.5)
    played("deaf")
    with start(tmp_path) as deaf:
        deaf.wait_until_healthy(30)
        group = deaf._process.pid
    assert not members(group)


def test_server_that_ends_later_is_an_error_and_takes_its_children_along(tmp_path: Path, played: Played) -> None:
    played("well")
    with start(tmp_path) as ending, pytest.raises(ServerError, match=r"vLLM ended by itself \(signal 9\)"):
        ending.wait_until_healthy(30)
        os.kill(ending._process.pid, signal.SIGKILL)
        ending.wait()
    assert gone(ending._process.pid)


def test_waiting_is_reported_and_has_an_end(tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpta_local.assistant.vllm_server.REPORT_SECONDS", 0.3)
    played("slow")
    reported: list[float] = []
    with start(tmp_path) as slow, pytest.raises(ServerError, match="vLLM is not ready after 1 s"):
        slow.wait_until_healthy(1, reported.append)
    assert len(reported) >= 2 and reported == sorted(reported)


def test_log_that_others_could_read_before_is_its_owners_alone(tmp_path: Path, played: Played) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("of another day\n")
    log.chmod(0o644)
    played("well")
    with start(tmp_path):
        assert log.stat().st_mode & 0o777 == 0o600
        assert log.read_text().startswith("of another day\n")


# A real server on the CPU


@pytest.mark.vllm
def test_key_of_a_real_server_is_in_no_command_line_and_not_in_the_log(vllm_served: VLLM) -> None:
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    key = str(vllm_served.endpoint.api_key)
    assert any("vllm.entrypoints" in command for command in commands)
    assert not any(key in command for command in commands)
    assert key not in vllm_served.log.read_text(errors="replace")


@pytest.mark.vllm
def test_real_server_listens_on_this_machine_only(vllm_served: VLLM) -> None:
    listening = [
        connection.laddr
        for number in members(vllm_served.group)
        for connection in psutil.Process(number).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert f":{listening[0].port}/v1" in vllm_served.endpoint.base_url
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/load_lora_adapter", 405), ("/v1/unload_lora_adapter", 405), ("/server_info", 404)],  # the first want POST
)
def test_real_server_has_the_routes_of_adapters_and_none_for_developers(
    vllm_served: VLLM, path: str, status: int
) -> None:
    address = vllm_served.endpoint.base_url.removesuffix("/v1") + path
    key = {"Authorization": f"Bearer {vllm_served.endpoint.api_key}"}
    assert httpx2.get(address, headers=key, trust_env=False, timeout=30).status_code == status
