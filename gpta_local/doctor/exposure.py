"""What others can reach or read: listening sockets, routes that ask for no key, files and folders.

Knows sockets, HTTP and file modes. Changes nothing and sends no key. Does not know the
configuration, nor how bad a finding is: that is `doctor`'s.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpta_local.errors import EndpointError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ROUTES = {
    **dict.fromkeys(
        ("/v1/models", "/health", "/ping", "/version", "/load", "/metrics", "/docs", "/openapi.json"), "GET"
    ),
    **dict.fromkeys(("/server_info", "/is_sleeping"), "GET"),  # vLLM's for development
    **dict.fromkeys(("/v1/chat/completions", "/v1/completions", "/invocations", "/generative_scoring"), "POST"),
    **dict.fromkeys(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"), "POST"),
    **dict.fromkeys(("/tokenize", "/detokenize"), "POST"),
}
"""Route → method. Each POST needs fields that are not sent: a server that takes it refuses its body."""
OPENS = {
    "/v1/chat/completions": "completes texts",
    "/v1/completions": "completes texts",
    "/invocations": "completes texts",
    "/generative_scoring": "scores texts",
    "/v1/load_lora_adapter": "loads adapters",
    "/v1/unload_lora_adapter": "unloads adapters",
    "/adapters": "loads adapters",
    "/server_info": "shows settings",
    "/is_sleeping": "can be put to sleep",
}
"""What a route gives to whoever reaches it; the others of `ROUTES` only tell something."""
GUARDED_OR_ABSENT = {401, 403, 404, 405, 407, 501}
NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|ceph|lustre|gpfs|beegfs\w*|afs|9p|glusterfs|fuse\.(sshfs|s3fs|glusterfs|ceph\w*|rclone|gcsfuse)"
)


def is_own_address(host: str) -> bool:
    """Whether a host name or address is one of this machine's own; false if it is not found."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)  # to any free port: only an address of this machine can be bound
            except OSError:
                continue
            return True
    return False


def listening_on(port: int) -> list[Address]:
    """The addresses of this machine at which something listens on the port, by the kernel's tables."""
    import psutil

    sockets = psutil.net_connections("tcp")
    listening = (s.laddr for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr.port == port)
    places = [ipaddress.ip_address(address.ip) for address in listening]
    return [getattr(place, "ipv4_mapped", None) or place for place in places]


def keyless_routes(base_url: str, timeout: float) -> dict[str, str]:
    """The routes of a server that answer without a key, each with the beginning of what it says.

    No proxy is used, no redirect is followed, no key is sent.

    Args:
        base_url: the address of the API; routes are looked for beside its /v1.
        timeout: seconds, in which all are asked at once.

    Raises:
        EndpointError: none of them could be asked.
    """
    import httpx2

    failures: list[Exception] = []
    root = base_url.rstrip("/").removesuffix("/v1")

    def ask(route: str) -> tuple[int, str] | None:
        body = b"{}" if ROUTES[route] == "POST" else None
        try:
            with client.stream(ROUTES[route], root + route, content=body) as reply:
                return reply.status_code, next(reply.iter_bytes(200), b"").decode(errors="replace")
        except (OSError, httpx2.HTTPError) as exc:
            failures.append(exc)
            return None

    headers = {"content-type": "application/json", "user-agent": "gpta-local"}
    client = httpx2.Client(headers=headers, timeout=timeout, trust_env=False, follow_redirects=False)
    with client, ThreadPoolExecutor(len(ROUTES)) as pool:
        answers = dict(zip(ROUTES, pool.map(ask, ROUTES), strict=True))
    if len(failures) == len(ROUTES):
        reason = f"which routes answer without a key cannot be asked ({failures[0]})"
        raise EndpointError(reason, where=f"assistant.base_url ({base_url})")
    return {route: answer[1] for route, answer in answers.items() if answer and answer[0] not in GUARDED_OR_ABSENT}


def readable_by_others(path: Path) -> bool:
    """Whether every account of this machine can read the file, or list the folder, by the modes."""
    path = path.resolve()
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def writable_by_others(folder: Path) -> list[Path]:
    """The folder and what is in it, as far as every account of this machine can write it, by the modes."""
    return [path for path in (folder, *sorted(folder.rglob("*"))) if path.exists() and path.stat().st_mode & 0o002]


def network_file_system(path: Path) -> str:
    """The type of the file system that an existing path is on, if its files lie on another machine; else empty."""
    import psutil

    path = path.resolve()
    mounts = [(Path(mount.mountpoint), mount.fstype) for mount in psutil.disk_partitions(all=True)]
    around = [(len(point.parts), i, kind) for i, (point, kind) in enumerate(mounts) if path.is_relative_to(point)]
    kind = max(around, default=(0, 0, ""))[2]  # the deepest, and of several at one place the latest
    return kind if NETWORK_FILE_SYSTEMS.fullmatch(kind) else ""
