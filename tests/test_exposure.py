"""What others can reach: against real sockets, servers and file modes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_server import FaultServer, Reply, always

from gpta_local.assistant.vllm_server import free_port
from gpta_local.doctor import exposure
from gpta_local.errors import EndpointError


class TestListening:
    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
    def test_address_of_a_listening_socket_is_found(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as server:
            try:
                server.bind((address, 0))
            except OSError:
                pytest.skip(f"this machine has no {address}")
            server.listen()
            assert [str(found) for found in exposure.listening_on(server.getsockname()[1])] == [address]

    def test_port_without_a_listener_has_no_address(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            assert exposure.listening_on(bound.getsockname()[1]) == []

    def test_ipv4_address_of_an_ipv6_socket_counts_as_such(self) -> None:
        with socket.socket(socket.AF_INET6) as server:
            server.bind(("::ffff:127.0.0.1", 0))
            server.listen()
            (found,) = exposure.listening_on(server.getsockname()[1])
        assert (str(found), found.is_loopback) == ("127.0.0.1", True)


class TestThisMachine:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost"])
    def test_own_address_is_told(self, host: str) -> None:
        assert exposure.is_own_address(host)

    def test_address_of_another_is_none(self) -> None:
        assert not exposure.is_own_address("203.0.113.1")  # reserved for documentation


class TestRoutes:
    def test_route_that_refuses_is_not_found(self) -> None:
        with FaultServer(models=Reply(401, {"error": "Unauthorized"})) as server:
            assert set(exposure.keyless_routes(server.base_url, 5)) == {"/v1/chat/completions"}

    def test_route_that_answers_is_found_with_what_it_says_and_neither_a_key_nor_a_text_is_sent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-shell")
        with FaultServer() as server:
            found = exposure.keyless_routes(server.base_url, 5)
            assert set(found) == {"/v1/models", "/v1/chat/completions"}
            assert '"id": "m"' in found["/v1/models"]
        assert len(server.received) == len(exposure.ROUTES)
        for request in server.received:
            assert "authorization" not in request.headers
            assert "key-of-the-shell" not in str(request)
            assert request.body == {}

    def test_routes_are_looked_for_below_the_path_of_the_address(self) -> None:
        with FaultServer() as server:
            exposure.keyless_routes(server.base_url.replace("/v1", "/llm/v1"), 5)
        assert {"/llm/v1/models", "/llm/metrics"} < {request.path for request in server.received}

    def test_redirect_is_not_followed(self) -> None:
        with (
            FaultServer() as other,
            FaultServer(models=Reply(302, "", {"location": f"{other.base_url}/models"})) as server,
        ):
            exposure.keyless_routes(server.base_url, 5)
        assert other.received == []

    def test_server_that_is_not_there_is_an_error_and_not_a_safe_one(self) -> None:
        with pytest.raises(EndpointError, match="refused"):
            exposure.keyless_routes(f"http://127.0.0.1:{free_port()}/v1", 5)

    def test_silent_server_does_not_keep_one_waiting(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(EndpointError, match="timed out"):
            exposure.keyless_routes(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", 0.2)

    def test_server_that_breaks_off_counts_as_closed_on_that_route_only(self) -> None:
        with FaultServer(always(Reply(headers={"content-length": "-"}))) as server:
            assert "/v1/models" in exposure.keyless_routes(server.base_url, 5)


class TestModes:
    @pytest.mark.parametrize(("mode", "readable"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False)])
    def test_file_is_readable_by_others_by_its_mode(self, open_folder: Path, mode: int, readable: bool) -> None:
        file = open_folder / "rows.jsonl"
        file.touch()
        file.chmod(mode)
        assert exposure.readable_by_others(file) is readable

    def test_file_in_a_closed_folder_is_not_readable_by_others(self, open_folder: Path) -> None:
        (open_folder / "private").mkdir(mode=0o700)
        file = open_folder / "private" / "rows.jsonl"
        file.touch()
        file.chmod(0o644)
        assert not exposure.readable_by_others(file)

    def test_file_that_others_can_write_is_found_wherever_it_lies(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        for name, mode in (("model.safetensors", 0o644), ("inner/config.json", 0o666)):
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        assert exposure.writable_by_others(tmp_path) == [tmp_path / "inner" / "config.json"]


class TestFileSystem:
    @pytest.fixture
    def mount(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def mounted(**kinds: Path) -> None:
            mounts = [SimpleNamespace(mountpoint=str(place), fstype=kind) for kind, place in kinds.items()]
            monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)

        return mounted

    @pytest.mark.parametrize(
        ("kind", "told"), [("ext4", ""), ("tmpfs", ""), ("overlay", ""), ("nfs4", "nfs4"), ("fuse.sshfs", "fuse.sshfs")]
    )
    def test_network_file_system_is_told_by_its_type(
        self, mount: Callable[..., None], tmp_path: Path, kind: str, told: str
    ) -> None:
        mount(**{"xfs": Path("/"), kind: tmp_path})
        assert exposure.network_file_system(tmp_path) == told

    def test_the_deepest_mount_counts_and_of_two_the_latest(self, mount: Callable[..., None], tmp_path: Path) -> None:
        local = tmp_path / "local disk"
        local.mkdir()
        mount(nfs=tmp_path, cifs=local, xfs=local)
        assert exposure.network_file_system(local) == ""
        assert exposure.network_file_system(tmp_path) == "nfs"
