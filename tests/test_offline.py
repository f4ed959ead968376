"""A run goes nowhere: on a machine without a network by the kernel's own counts, and in the system
calls of the process. This covers what the guard inside Python cannot see."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from commands import PROGRAM
from isolated import Isolated, run_isolated
from samples import QUICKSTART, read_rows, write_config, write_jsonl
from servers import ROOT, require_vllm

NOTHING = {"IPv4": 0, "IPv6": 0}
SMALL = (
    *("search.rounds=2", "search.proposals=4", "search.label_text_samples=1", "training.steps=4"),
    "assistant.max_new_tokens=8",  # a random model says nothing usable for long
)
TAUGHT = ("dialogue_gradient.steps=2", "dialogue_gradient.batch_size=4")
TRACE = ["strace", "-f", "--seccomp-bpf", "-s", "0", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]


@dataclass(frozen=True)
class Quickstart:
    """One that teaches its assistant; `calls` are its system calls, None where they cannot be traced."""

    run: Path
    done: Isolated
    calls: list[str] | None


@pytest.fixture(scope="module")
def quickstart(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    settings = [word for key in (*SMALL, *TAUGHT, f"assistant.model={chat_model}") for word in ("--set", key)]
    command = [*PROGRAM, "train", QUICKSTART / "quickstart.yaml", "--output", folder / "run", *settings]
    tracing = [*TRACE, "-o", folder / "trace"] if can_trace() else []
    done = run_isolated([*tracing, *command], folder, timeout=600)
    return Quickstart(folder / "run", done, to_anybody(folder / "trace") if tracing else None)


def can_trace() -> bool:
    return shutil.which("strace") is not None and not subprocess.run([*TRACE, "true"], capture_output=True).returncode


def to_anybody(trace: Path) -> list[str]:
    """The calls that a command and its children made to reach anybody."""
    return [line for line in trace.read_text().splitlines() if re.search(r"\b(connect|sendto|sendm+sg)\(", line)]


class TestWithoutANetwork:
    """The kernel counts what was meant for another machine."""

    def test_connections_to_elsewhere_are_counted(self, tmp_path: Path) -> None:
        script = """
from socket import *
for kind in (SOCK_STREAM, SOCK_DGRAM):
    socket(AF_INET, kind).connect_ex(("203.0.113.1", 80))
    socket(AF_INET6, kind).connect_ex(("2001:db8::1", 80))
"""
        done = run_isolated([sys.executable, "-c", script], tmp_path)
        assert done.tried == {"IPv4": 2, "IPv6": 2}, done.stderr

    def test_one_look_up_of_a_name_is_counted(self, tmp_path: Path) -> None:
        hosts = Path("/etc/resolv.conf").read_text(encoding="utf-8") if Path("/etc/resolv.conf").exists() else ""
        if not re.search(r"^nameserver (?!127\.|::1)", hosts, re.MULTILINE):
            pytest.skip("names are looked up by a service of this machine, which lies outside of the namespace")
        done = run_isolated(["getent", "hosts", "example.org"], tmp_path)
        assert sum(done.tried.values()) > 0

    def test_connection_to_the_machine_itself_is_not_counted(self, tmp_path: Path) -> None:
        script = "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname())"
        done = run_isolated([sys.executable, "-c", script], tmp_path)
        assert (done.status, done.tried) == (0, NOTHING), done.stderr

    @pytest.mark.slow
    def test_quickstart_that_teaches_its_assistant_ends_well_and_tries_nothing(self, quickstart: Quickstart) -> None:
        assert quickstart.done.status == 0, quickstart.done.stderr
        assert "plain fine-tuning" in quickstart.done.stdout and "refused" not in quickstart.done.stderr
        assert (quickstart.run / "adapters" / "001").is_dir()
        assert quickstart.done.tried == NOTHING

    @pytest.mark.slow
    @pytest.mark.vllm
    def test_served_assistant_and_a_run_that_teaches_it_try_nothing(self, tmp_path: Path, chat_model: Path) -> None:
        require_vllm()
        write_jsonl(tmp_path / "train.jsonl", read_rows("train")[:30])
        config = write_config(
            tmp_path / "config.yaml",
            {
                "search": {"rounds": 2, "proposals": 6},
                "finish": {"plain_control": False},
                "dialogue_gradient": {"steps": 2, "batch_size": 2, "device": "cpu"},
            },
        )
        script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from commands import run_command
from servers import vllm_server

with vllm_server(Path({str(chat_model)!r}), Path({str(tmp_path / "vllm.log")!r}), lora_rank=16) as endpoint:
    served = f"base_url: {{endpoint.base_url}}, model: {{endpoint.model}}, api_key_env: KEY"
    assistant = f"{{{{backend: vllm, {{served}}, max_new_tokens: 8}}}}"
    settings = ["--output", {str(tmp_path / "run")!r}, "--set", f"assistant={{assistant}}"]
    done = run_command("train", {str(config)!r}, *settings, timeout=600)
print(done.stdout, done.stderr)
sys.exit(done.returncode)
"""
        done = run_isolated([sys.executable, "-c", script], tmp_path, timeout=900, KEY="key-of-the-test-server")
        assert done.status == 0, done.stdout + done.stderr
        assert "refused" not in done.stdout
        assert (tmp_path / "run" / "adapters" / "001" / "step.json").is_file(), done.stdout
        assert done.tried == NOTHING


def families(calls: list[str]) -> Counter[str]:
    """How many calls went to a socket of which family; "connected" are those that name no address."""
    named = (re.search(r"sa_family=(AF_\w+)", call) for call in calls)
    return Counter(found[1] if found else "connected" for found in named)


def addresses(calls: list[str]) -> set[str]:
    """The internet addresses in them."""
    return {address for call in calls for address in re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', call)}


class TestSystemCalls:
    def test_addresses_of_all_kinds_of_calls_are_read(self, tmp_path: Path) -> None:
        script = """
from socket import *
socket(AF_INET, SOCK_DGRAM).connect(("127.0.0.2", 9))
socket(AF_INET, SOCK_DGRAM).sendto(b"secret", ("127.0.0.3", 9))
socket(AF_INET6, SOCK_DGRAM).sendmsg([b"secret"], [], 0, ("::1", 9))
socket(AF_UNIX).connect_ex("/nowhere")
"""
        if not can_trace():
            pytest.skip("needs strace, and the right to trace processes")
        subprocess.run([*TRACE, "-o", tmp_path / "trace", sys.executable, "-c", script], check=True)
        calls = to_anybody(tmp_path / "trace")
        assert addresses(calls) == {"127.0.0.2", "127.0.0.3", "::1"}
        assert families(calls) == {"AF_INET": 2, "AF_INET6": 1, "AF_UNIX": 1}
        assert "secret" not in (tmp_path / "trace").read_text()

    @pytest.mark.slow
    def test_quickstart_names_no_address_but_loopback(self, quickstart: Quickstart) -> None:
        if quickstart.calls is None:
            pytest.skip("needs strace, and the right to trace processes")
        assert [address for address in addresses(quickstart.calls) if not ip_address(address).is_loopback] == []
        assert set(families(quickstart.calls)) <= {"AF_UNIX", "AF_NETLINK", "AF_INET", "AF_INET6", "connected"}
