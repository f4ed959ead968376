"""The network guard: what it lets through, what it refuses, and how it tells.

An audit hook cannot be taken away. So a guard of its own is asked here what it thinks of an event, and
where the hook itself is tried, that is in a process of its own; in a namespace without a network if the
machine can make one, where a refusal that came too late is counted by the kernel.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from commands import PROGRAM, ROOT, assert_refused, invoke
from fault_server import FaultServer
from isolated import Isolated, run_isolated
from samples import sentiment_rows, write_config, write_jsonl
from servers import VLLM_PYTHON, require_vllm

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.errors import AssistantError, EndpointError
from gpta_local.system.network import GUARD, OFFLINE, Guard, NotAllowed, is_this_machine, normal_host

TCP = socket.socket(socket.AF_INET)
HERE = ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "localhost", "LocalHost.", ""]
ELSEWHERE = ["203.0.113.1", "10.0.0.5", "169.254.169.254", "2001:db8::1", "fe80::1%lo", "::ffff:203.0.113.1"]
NAMES = ["example.org", "localhost.example.org", "127.0.0.1.example.org", "127.1", "2130706433", "<broadcast>"]


def python(
    script: str, *, interpreter: object = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(interpreter), "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused_by(guard: Guard, event: str, *arguments: Any) -> bool:
    try:
        guard.check(event, arguments)
    except NotAllowed:
        return True
    return False


class TestJudgement:
    @pytest.mark.parametrize("host", HERE)
    def test_this_machine_is_let_through(self, host: str) -> None:
        assert is_this_machine(host)
        assert not refused_by(Guard(), "socket.connect", TCP, (host, 80))
        assert not refused_by(Guard(), "socket.getaddrinfo", host, 80, 0, 0, 0)

    @pytest.mark.parametrize("host", [*ELSEWHERE, *NAMES])
    def test_another_machine_is_refused(self, host: str) -> None:
        assert not is_this_machine(host)
        assert refused_by(Guard(), "socket.connect", TCP, (host, 80))
        assert refused_by(Guard(), "socket.getaddrinfo", host, 80, 0, 0, 0)

    @pytest.mark.parametrize("event", ["socket.connect", "socket.sendto", "socket.sendmsg"])
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_all_ways_to_name_an_address_are_judged(self, event: str, family: int) -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as used:
            assert refused_by(Guard(), event, used, ("2001:db8::1", 80, 0, 0))

    @pytest.mark.parametrize("event", ["socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"])
    @pytest.mark.parametrize("name", ["example.org", b"example.org", bytearray(b"example.org")])
    def test_all_ways_to_look_up_a_name_are_judged(self, event: str, name: Any) -> None:
        assert refused_by(Guard(), event, name)

    def test_look_up_of_the_name_of_an_address_is_judged(self) -> None:
        assert refused_by(Guard(), "socket.getnameinfo", ("203.0.113.1", 80))
        assert not refused_by(Guard(), "socket.getnameinfo", ("127.0.0.1", 80))

    def test_message_on_a_connected_socket_and_look_up_of_no_name_are_let_through(self) -> None:
        assert not refused_by(Guard(), "socket.sendmsg", TCP, None)
        assert not refused_by(Guard(), "socket.getaddrinfo", None, 80, 0, 0, 0)

    @pytest.mark.parametrize(("family", "address"), [("AF_UNIX", "/run/some.sock"), ("AF_NETLINK", (0, 0))])
    def test_sockets_that_stay_on_the_machine_are_let_through(self, family: str, address: Any) -> None:
        with socket.socket(getattr(socket, family), socket.SOCK_DGRAM) as used:
            assert not refused_by(Guard(), "socket.connect", used, address)

    def test_sockets_of_other_families_are_refused(self) -> None:
        class Vsock:
            family = 40

        guard = Guard()
        assert refused_by(guard, "socket.connect", Vsock(), (2, 1024))
        assert [refusal.host for refusal in guard.refused] == ["a socket of the family 40"]

    def test_refusal_is_an_error_of_the_operating_system_with_host_and_remedy(self) -> None:
        with pytest.raises(PermissionError, match=r"'example\.org', which is neither this machine nor .*allow_hosts"):
            Guard().check("socket.getaddrinfo", ("example.org", 80, 0, 0, 0))

    def test_host_is_shown_without_control_characters_and_not_at_length(self) -> None:
        guard = Guard()
        refused_by(guard, "socket.getaddrinfo", "\x1b[2J" + "x" * 1000, 80, 0, 0, 0)
        (shown,) = map(str, guard.refused)
        assert "\x1b" not in shown and len(shown) < 200


class TestAllowedHosts:
    def test_named_host_is_let_through_and_no_other(self) -> None:
        guard = Guard()
        guard.allow(["llm.example.org"])
        assert not refused_by(guard, "socket.getaddrinfo", "LLM.example.org.", 80, 0, 0, 0)
        assert not refused_by(guard, "socket.connect", TCP, ("llm.example.org", 80))
        for host in ("example.org", "a.llm.example.org", "llm.example.org.example.com"):
            assert refused_by(guard, "socket.getaddrinfo", host, 80, 0, 0, 0)

    def test_hosts_of_before_are_forgotten_with_what_was_refused(self) -> None:
        guard = Guard()
        guard.allow(["llm.example.org", "10.0.0.5"])
        assert refused_by(guard, "socket.getaddrinfo", "a.example", 80, 0, 0, 0)
        guard.allow_only(["10.0.0.6"])
        assert not guard.refused and not refused_by(guard, "socket.connect", TCP, ("10.0.0.6", 80))
        assert refused_by(guard, "socket.connect", TCP, ("10.0.0.5", 80))
        assert refused_by(guard, "socket.getaddrinfo", "llm.example.org", 80, 0, 0, 0)

    @pytest.mark.parametrize(
        ("allowed", "written"),
        [("10.0.0.5", "10.0.0.5"), ("10.0.0.5", "::ffff:10.0.0.5"), ("2001:db8::5", "2001:0db8:0:0::5")],
    )
    def test_named_address_is_let_through_however_it_is_written(self, allowed: str, written: str) -> None:
        guard = Guard()
        guard.allow([allowed])
        assert not refused_by(guard, "socket.connect", TCP, (written, 80))
        assert refused_by(guard, "socket.connect", TCP, ("10.0.0.6", 80))

    @pytest.mark.parametrize(
        ("host", "normal"),
        [
            ("LLM.Example.org.", "llm.example.org"),
            ("gpu_server-2", "gpu_server-2"),
            ("10.0.0.5", "10.0.0.5"),
            ("2001:0DB8::5", "2001:db8::5"),
        ],
    )
    def test_host_has_one_way_to_be_written(self, host: str, normal: str) -> None:
        assert normal_host(host) == normal

    @pytest.mark.parametrize(
        "host",
        [
            *("", ".", "a b", "a..b", "a.org\n", "x" * 64, "münchen.de", "*.a.org"),
            *("http://a.org", "a.org/v1", "a.org:80", "10.0.0.0/8", "10.0.0.256", "127.1", "[::1]"),
        ],
    )
    def test_what_is_no_host_is_told_apart(self, host: str) -> None:
        assert normal_host(host) is None


INSTALL = "from gpta_local.system.network import GUARD; GUARD.install()\n"


class TestHook:
    """In a process of its own, and without a network: the kernel counts what comes through."""

    def test_every_way_out_is_refused_before_anything_is_sent(self, tmp_path: Path) -> None:
        calls = [
            "socket(AF_INET).connect(('203.0.113.1', 80))",
            "socket(AF_INET).connect_ex(('203.0.113.1', 80))",
            "socket(AF_INET6).connect(('2001:db8::1', 80))",
            "socket(AF_INET6).connect(('::ffff:203.0.113.1', 80))",
            "socket(AF_INET, SOCK_DGRAM).connect(('203.0.113.1', 53))",
            "socket(AF_INET, SOCK_DGRAM).sendto(b'x', ('203.0.113.1', 53))",
            "socket(AF_INET6, SOCK_DGRAM).sendto(b'x', ('2001:db8::1', 53))",
            "socket(AF_INET, SOCK_DGRAM).sendmsg([b'x'], [], 0, ('203.0.113.1', 53))",
            "create_connection(('example.org', 80))",
            "getaddrinfo('example.org', 80)",
            "gethostbyname('example.org')",
            "gethostbyname_ex('example.org')",
            "gethostbyaddr('203.0.113.1')",
            "getnameinfo(('203.0.113.1', 80), 0)",
        ]
        script = f"""{INSTALL}
import multiprocessing, threading
from socket import *
from gpta_local.system.network import NotAllowed
def ask(call):
    try: eval(call)
    except NotAllowed: print("refused", flush=True)
for call in {calls}: ask(call)
for another in (threading.Thread, multiprocessing.get_context("fork").Process):
    started = another(target=ask, args=(call,))
    started.start()
    started.join()
"""
        done = run_isolated([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(ROOT))
        assert done.stdout.split() == ["refused"] * (len(calls) + 2), done.stderr
        assert done.tried == {"IPv4": 0, "IPv6": 0}

    def test_address_that_was_found_for_a_named_host_is_let_through_where_each_look_up_gives_another(
        self, tmp_path: Path
    ) -> None:
        script = """
import itertools, socket
numbers = itertools.count(1)
def each_time_another(host, port, *_, **__):
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"203.0.113.{next(numbers)}", port))]
socket.getaddrinfo = each_time_another
from gpta_local.system.network import GUARD
GUARD.install()
GUARD.allow(["llm.test"])
for host in ("LLM.test.", b"llm.test", "llm.test", "203.0.113.9", "other.test"):
    try: socket.create_connection((host, 80))
    except OSError as exc: print(type(exc).__name__)
"""
        done = run_isolated([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(ROOT))
        assert done.stdout.split() == ["OSError"] * 3 + ["NotAllowed"] * 2, done.stdout + done.stderr
        assert done.tried["IPv4"] == 3

    def test_proxy_on_this_machine_is_no_way_out(self) -> None:
        ask = """
import urllib.request, httpx2
for get in (urllib.request.urlopen, httpx2.get):
    try: get("http://example.org/")
    except OSError as exc: print(exc)
    except httpx2.HTTPError as exc: print(exc)
"""
        with FaultServer() as proxy:
            address = proxy.base_url.removesuffix("/v1")
            shell = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), address) | {"no_proxy": "", "NO_PROXY": ""}
            python(ask, **shell)
            assert [request.path for request in proxy.received] == ["http://example.org/"] * 2
            guarded = python(INSTALL + ask, **shell)
            assert len(proxy.received) == 2
        assert guarded.stdout.count("neither this machine") == 2, guarded.stderr


ASK = """
import json, os, sys, time
from gpta_local.system.network import GUARD, OFFLINE
GUARD.install()
for variable in OFFLINE:
    del os.environ[variable]  # as if the libraries did not heed them
time.sleep = lambda seconds: None  # between attempts

def transformers():
    from transformers import AutoModel
    AutoModel.from_pretrained("some/model")
def datasets():
    from datasets import load_dataset
    load_dataset("some/data")
def openai():
    import openai
    openai.OpenAI(api_key="none", base_url="https://example.org/v1", max_retries=0).models.list()
def torch():
    import torch
    torch.hub.load_state_dict_from_url("https://example.org/weights.pt", progress=False)
def pandas():
    import pandas
    pandas.read_csv("https://example.org/rows.csv")
def urllib():
    import urllib.request
    urllib.request.urlopen("https://example.org/")
def requests():
    import requests
    requests.get("https://example.org/")
def urllib3():
    import urllib3
    urllib3.PoolManager().request("GET", "https://example.org/", retries=False)
def aiohttp():
    import aiohttp, asyncio
    async def ask():
        async with aiohttp.ClientSession() as session:
            await session.get("https://203.0.113.1/")
    asyncio.run(ask())

told = {}
for name in sys.argv[2:]:
    GUARD.refused.clear()
    try:
        globals()[name]()
        error = ""
    except Exception as exc:
        error = type(exc).__name__
    told[name] = {"error": error, "asked": {refusal.asked_by: refusal.host for refusal in GUARD.refused}}
with open(sys.argv[1], "w") as file:
    json.dump(told, file)
"""
HUB = "huggingface_hub, httpx2, httpcore2"
LIBRARIES = {
    "transformers": (f"transformers (through {HUB})", "huggingface.co"),
    "datasets": (f"datasets (through {HUB})", "huggingface.co"),
    "openai": ("openai (through httpx2, httpcore2)", "example.org"),
    "torch": ("torch", "example.org"),
    "pandas": ("pandas", "example.org"),
    "urllib": ("__main__", "example.org"),
}
VLLM_LIBRARIES = {
    "requests": ("requests (through urllib3)", "example.org"),
    "urllib3": ("urllib3", "example.org"),
    "aiohttp": ("aiohttp (through aiohappyeyeballs)", "203.0.113.1"),
}


def ask_all(libraries: dict[str, Any], interpreter: object, folder: Path) -> tuple[dict[str, Any], Isolated]:
    done = run_isolated(
        [interpreter, "-c", ASK, folder / "told.json", *libraries],
        folder,
        PYTHONPATH=str(ROOT),
        HF_HOME=str(folder / "cache"),
        TORCH_HOME=str(folder),
    )
    assert done.status == 0, done.stderr
    return json.loads((folder / "told.json").read_text()), done


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Isolated]:
    return ask_all(LIBRARIES, sys.executable, tmp_path_factory.mktemp("libraries"))


@pytest.mark.slow
class TestLibraries:
    """Libraries that are asked to fetch something, in spite of being told to stay offline."""

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_library_is_refused_and_named(self, told: tuple[dict[str, Any], Isolated], library: str) -> None:
        who, host = LIBRARIES[library]
        assert told[0][library]["error"]
        assert told[0][library]["asked"].get(who) == host, told[0][library]

    def test_not_even_a_name_was_looked_up(self, told: tuple[dict[str, Any], Isolated]) -> None:
        assert told[1].tried == {"IPv4": 0, "IPv6": 0}

    @pytest.mark.vllm
    def test_libraries_beside_vllm_are_refused_and_named(self, tmp_path: Path) -> None:
        require_vllm()
        told, done = ask_all(VLLM_LIBRARIES, VLLM_PYTHON, tmp_path)
        assert {name: told[name]["asked"] for name in told} == {
            name: {who: host} for name, (who, host) in VLLM_LIBRARIES.items()
        }
        assert done.tried == {"IPv4": 0, "IPv6": 0}


class TestCommands:
    def test_program_is_guarded_and_tells_at_its_end_what_was_refused(self) -> None:
        """What nobody caught is one message."""
        script = """
import socket
from gpta_local.cli.main import main
@main.command()
def ask():
    for host in ("example.org", "203.0.113.1", "example.org"):
        try: socket.create_connection((host, 80))
        except OSError as exc: refused = exc
    raise refused
main(["ask"])
"""
        done = python(script)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            "error: __main__ asked for 'example.org', which is neither this machine nor named in privacy.allow_hosts",
            "refused: 2 connections: __main__ asked for 'example.org'",
            "refused: 1 connection: __main__ asked for '203.0.113.1'",
        ]

    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        assistant = {"backend": "openai", "model": "m", "base_url": "http://203.0.113.1:80/v1", "max_retries": 0}
        sections = {"assistant": assistant, "privacy": {"allow_hosts": ["203.0.113.1"]}}
        return write_config(tmp_path / "config.yaml", sections)

    @pytest.mark.slow
    def test_run_may_reach_the_hosts_of_its_configuration(self, config: Path, tmp_path: Path) -> None:
        done = run_isolated([*PROGRAM, "train", config], tmp_path)
        assert done.status == 2 and "Network is unreachable" in done.stderr, done.stderr
        assert "refused" not in done.stderr
        assert done.tried["IPv4"] > 0

    def test_evaluation_of_an_assistant_may_too(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_assistant(_: object) -> None:
            raise AssistantError("none here")

        GUARD.allow_only([])
        monkeypatch.setattr("gpta_local.assistant.open_assistant", no_assistant)
        assert_refused(invoke("assistant", "evaluate", config), "none here")
        assert not refused_by(GUARD, "socket.connect", TCP, ("203.0.113.1", 80))
        assert refused_by(GUARD, "socket.connect", TCP, ("203.0.113.2", 80))

    def test_endpoint_that_is_not_allowed_is_explained_where_the_guard_meets_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def look_up(host: str, *_: object, **__: object) -> None:
            Guard().check("socket.getaddrinfo", (host, 80))

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        endpoint: dict[str, Any] = {"api_key": None, "timeout": 1, "max_retries": 0, "concurrency": 1}
        with (
            closing(OpenAIAssistant("m", base_url="http://llm.example.org/v1", **endpoint)) as assistant,
            pytest.raises(EndpointError, match=r"the guard of the network refuses .* add it to privacy.allow_hosts"),
        ):
            assistant.check()


class TestWorker:
    def test_process_of_the_dialogue_gradient_imports_no_library_before_its_guard_stands(self) -> None:
        script = """
import sys
there = set(sys.modules)
import gpta_local.dialogue_gradient.worker
new = {name.partition(".")[0] for name in set(sys.modules) - there}
print(*sorted(new - sys.stdlib_module_names))
"""
        assert python(script).stdout.split() == ["gpta_local"]


class TestOffline:
    def test_what_the_shell_has_set_does_not_win_and_can_be_had_for_programs_that_use_the_network(self) -> None:
        script = f"{INSTALL}import json, os; print(json.dumps([GUARD.environment_before(), dict(os.environ)]))"
        shell = {"NO_PROXY": "intern.example", "LATER": "1", "HF_HUB_OFFLINE": "0", "WANDB_MODE": "online"}
        before, inside = json.loads(python(script, **shell).stdout)
        assert shell.items() <= before.items()
        assert OFFLINE.items() <= inside.items()
        without = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert not set(OFFLINE) & set(json.loads(without.stdout)[0]), without.stderr

    @pytest.mark.slow
    def test_libraries_read_the_variables_and_the_trainer_reports_to_nobody_even_inside_a_cluster_that_asks_for_it(
        self, tmp_path: Path
    ) -> None:
        script = f"""{INSTALL}
import json, os
import datasets.config, huggingface_hub.constants as hub
from transformers.integrations import integration_utils as trackers
from trl import SFTConfig
def reports_to():
    return SFTConfig({str(tmp_path)!r}, report_to="none", use_cpu=True, bf16=False).report_to
print(json.dumps([
    hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE,
    hub.HF_HUB_DISABLE_TELEMETRY, hub.HF_HUB_DISABLE_UPDATE_CHECK, not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    not trackers.is_kubeflow_available(), not trackers.is_mlflow_available(), reports_to(),
]))
os.environ["DISABLE_KUBEFLOW_INTEGRATION"] = ""
print(reports_to())
"""
        done = python(script, KUBEFLOW_TRAINER_SERVER_URL="https://example.org")
        read, without = done.stdout.splitlines()
        assert json.loads(read) == [True] * 7 + [[]], done.stderr
        assert without == "['kubeflow']", "the cluster asks, and without the variable it is heard"

    @pytest.mark.slow
    @pytest.mark.vllm
    def test_vllm_sends_no_usage_statistics(self) -> None:
        require_vllm()
        script = "from vllm.usage.usage_lib import is_usage_stats_enabled as asked; print(asked())"
        none = dict.fromkeys(("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS"), "")
        assert python(script, interpreter=VLLM_PYTHON, **none).stdout.splitlines()[-1] == "True"
        assert python(script, interpreter=VLLM_PYTHON, **OFFLINE).stdout.splitlines()[-1] == "False"
