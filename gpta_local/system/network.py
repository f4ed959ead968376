"""Nothing leaves this machine: libraries are told to stay offline, and a guard refuses connections to
other machines.

Knows the variables that libraries read, and what Python reports of a socket before it is used. Needs
nothing but the standard library, so that it can be in place before anything else is imported.

The guard stands before Python's own sockets and name lookups. It does not see what native code (Rust,
C++) opens by itself, nor other programs; and code that means to get around it can. Against those, run
the whole in a network namespace: `unshare -rn gpta-local ...`.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import FrameType
from typing import Any

OFFLINE = {
    # the hub of Hugging Face: huggingface_hub, transformers, sentence-transformers, datasets, trl
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # usage reports
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SCARF_NO_ANALYTICS": "true",
    # trackers: trl and transformers import some of those that are installed, asked or not
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",  # the only one that transformers uses in spite of report_to="none"
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "COMET_MODE": "disabled",
    "NEPTUNE_MODE": "debug",
    "SWANLAB_MODE": "disabled",
    "CLEARML_OFFLINE_MODE": "1",
    "OTEL_SDK_DISABLED": "true",
    # a proxy on this machine would be a way out that the guard takes for this machine
    "NO_PROXY": "*",
    "no_proxy": "*",
}
"""Variables for this process and those that it starts; they win over what the user's shell has set."""

TO_AN_ADDRESS = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
INTERNET = (socket.AF_INET, socket.AF_INET6)
LOCAL = tuple(getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK") if hasattr(socket, name))
"""Sockets to other processes of this machine, and to its kernel."""

HOST_CHARACTERS = 100
"""Characters of a host's name in a message."""


class NotAllowed(PermissionError):
    """A connection that the guard refused; for libraries the same as a machine without a network."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who asked for which host."""

    asked_by: str
    host: str

    def __str__(self) -> str:
        return f"{self.asked_by} asked for {self.host[:HOST_CHARACTERS]!r}"


class Guard:
    """Lets connections to this machine and to named hosts through, refuses all others, and counts those."""

    def __init__(self) -> None:
        self.refused: Counter[Refusal] = Counter()
        self._names: set[str] = set()
        self._addresses: set[IPv4Address | IPv6Address] = set()
        self._before: dict[str, str | None] = {}

    def install(self) -> None:
        """Set the variables of `OFFLINE` and guard this process for the rest of its life: Python cannot
        take an audit hook away. Once is enough."""
        if self._before:
            return
        self._before = {name: os.environ.get(name) for name in OFFLINE}
        os.environ.update(OFFLINE)
        watched, check = frozenset((*TO_AN_ADDRESS, *LOOKUPS)), self.check

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in watched:
                check(event, arguments)

        sys.addaudithook(hook)
        self._remember_look_ups()

    def environment_before(self) -> dict[str, str]:
        """The environment with what the user's shell has set in place of `OFFLINE`: for a program that is meant
        to use the network, by the user's proxy if there is one."""
        merged = {**os.environ, **self._before}
        return {name: value for name, value in merged.items() if value is not None}

    def allow_only(self, hosts: Iterable[str]) -> None:
        """Forget what was allowed and refused before, and let connections to these hosts through."""
        self.refused.clear()
        self._names.clear()
        self._addresses.clear()
        self.allow(hosts)

    def allow(self, hosts: Iterable[str]) -> None:
        """Let connections to further hosts through; `hosts` are such as `normal_host` gives."""
        for host in hosts:
            address = _address(host)
            if address is None:
                self._names.add(host)
            else:
                self._addresses.add(address)

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge one audit event of the module `socket`.

        Raises:
            NotAllowed: it goes to another machine that is not allowed.
        """
        host = _host(event, arguments)
        if host is None or self._allows(host):
            return
        refusal = Refusal(_asked_by(), host)
        self.refused[refusal] += 1
        what = f"{refusal}, which is neither this machine nor named in privacy.allow_hosts"
        raise NotAllowed(errno.EACCES, what)

    def _allows(self, host: str) -> bool:
        if is_this_machine(host) or _plain(host) in self._names:
            return True
        return _address(host) in self._addresses

    def _remember_look_ups(self) -> None:
        """Allow the addresses that the program is given for an allowed name: it connects to those."""
        look_up = socket.getaddrinfo

        @functools.wraps(look_up)
        def remembering(host: Any, *arguments: Any, **options: Any) -> Any:
            found = look_up(host, *arguments, **options)
            if _plain(_host("socket.getaddrinfo", (host,)) or "") in self._names:
                self._addresses.update(_unmapped(ip_address(place[0])) for *_, place in found)
            return found

        socket.getaddrinfo = remembering


GUARD = Guard()
"""The guard of this process; `gpta-local` installs it first of all, and widens it by privacy.allow_hosts."""


def is_this_machine(host: str) -> bool:
    """Whether a name or address means the machine itself; Linux takes 0.0.0.0 and :: for it too."""
    address = _address(host)
    if address is None:
        return _plain(host) in ("", "localhost")
    return address.is_loopback or address.is_unspecified


def normal_host(host: str) -> str | None:
    """The one way to write a host that connections are compared with; None if it is no name or address."""
    address = _address(host)
    if address is not None:
        return str(address)
    is_name = re.fullmatch(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", _plain(host))
    looks_like_an_address = host.rpartition(".")[2].isdigit()
    return _plain(host) if is_name and not looks_like_an_address else None


def _host(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Where the event goes; None if nowhere, or where a check was before: a connected socket."""
    if event in TO_AN_ADDRESS:
        used, address = arguments
        if address is None or used.family in LOCAL:
            return None
        if used.family not in INTERNET:
            return f"a socket of the family {int(used.family)}"
        host = address[0]
    else:
        host = arguments[0][0] if event == "socket.getnameinfo" else arguments[0]
    return bytes(host).decode("utf-8", "replace") if isinstance(host, bytes | bytearray) else host


def _asked_by() -> str:
    """The packages between our code and the socket, as in "transformers (through huggingface_hub, httpx2)"."""
    packages: list[str] = []
    program = "Python"
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if package in ("gpta_local", "__main__") and module != __name__:
            program = package
            break
        if package not in sys.stdlib_module_names and module != __name__ and package not in packages:
            packages.insert(0, package)
        frame = frame.f_back
    if not packages:
        return program
    return packages[0] + (f" (through {', '.join(packages[1:])})" if packages[1:] else "")


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return _unmapped(ip_address(host))
    except ValueError:
        return None


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address
