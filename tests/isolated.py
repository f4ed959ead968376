"""Runs a command on a machine with no network but loopback, and reads what the kernel says was tried.

A namespace of Linux is that machine. It has no route to anywhere else, so each packet and each
connected socket that was meant for elsewhere counts as one for which there was no route: whatever the
language that the code is written in, and name lookups too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


@dataclass(frozen=True)
class Isolated:
    """How the command ended, and how many routes to elsewhere were asked for, by IP version."""

    status: int
    stdout: str
    stderr: str
    tried: dict[str, int]


def require_namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("needs Linux and the right to make a network namespace (unshare -rn)")


def run_isolated(command: Sequence[object], folder: Path, timeout: float = 300, **environment: str) -> Isolated:
    """Run a command; `folder` is for the counts."""
    require_namespaces()
    counts = folder / "tried.json"
    inside = ["unshare", "-rn", sys.executable, __file__, counts, *command]
    done = subprocess.run(
        [str(word) for word in inside],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Isolated(done.returncode, done.stdout, done.stderr, json.loads(counts.read_text()))


def tried_routes() -> dict[str, int]:
    """The kernel's counts since the namespace was made."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines()[:2])
    version_6 = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return {"IPv4": int(values[names.index("OutNoRoutes")]), "IPv6": int(version_6["Ip6OutNoRoutes"])}


def _bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


if __name__ == "__main__":
    _bring_loopback_up()
    status = subprocess.run(sys.argv[2:]).returncode
    Path(sys.argv[1]).write_text(json.dumps(tried_routes()))
    sys.exit(status)
