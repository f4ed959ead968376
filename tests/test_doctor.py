"""The doctor: each finding is caused for real, by a file, a mode, a variable or a server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from chat_models import tiny_chat_llama
from commands import ROOT, assert_refused, invoke
from fault_server import FakeVLLM, FaultServer, Reply, error, failed, model_list
from packaging.requirements import Requirement
from samples import SENTIMENT, Silent, record_replies, sentiment_rows, write_config, write_jsonl
from servers import Endpoint

from gpta_local.config import load
from gpta_local.doctor import checks, files, machine, rows, server
from gpta_local.doctor.findings import Case, Finding, Outcome
from gpta_local.errors import ModelError
from gpta_local.record.folder import HISTORY_ROOM
from gpta_local.run.loop import Run
from gpta_local.system.manifests import write_manifest

OF_THE_MACHINE = ["python", "packages", "devices", "disk", "environment"]
KEY = "key-of-this-test"

Config = Callable[..., Path]


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and a shell that asks for no traffic."""
    for name in [name for name in os.environ if machine.INVITING.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPTA_TEST_KEY", KEY)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def config(tmp_path: Path, sentence: Path, llama: Path) -> Config:
    """Write a configuration over 24 rows, changed; the quickest that there is."""

    def write(changes: Mapping[str, Any] | None = None) -> Path:
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        path = write_config(tmp_path / "config.yaml", {"downstream": {"backbone": str(sentence)}})
        changes = {"assistant": {}, **(changes or {})}
        if "backend" not in changes["assistant"]:
            changes["assistant"] = {"model": str(llama), **changes["assistant"]}
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, keys in changes.items():
            content[section] = {**content.get(section, {}), **keys} if isinstance(keys, dict) else keys
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """An assistant's folder to spoil."""
    return shutil.copytree(llama, tmp_path / "model")


def examine(path: Path | None = None, *arguments: object) -> tuple[list[dict[str, str]], int]:
    """The findings of the command and its exit code."""
    result = invoke("doctor", *([path] if path else []), "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)["checks"], result.exit_code


def lines(findings: Iterable[Finding]) -> str:
    return "\n".join(f"{f.grade}: {f.finding} -> {f.fix}" for f in findings)


def told(check: Callable[[], Iterable[Outcome]]) -> str:
    """What a check of the machine finds: grade, finding, fix of each."""
    return lines(checks._findings(check.__name__, check))


def look(path: Path, *run: Callable[[Case], Iterable[Outcome]]) -> str:
    """What the last of these checks of a configuration finds, after the others."""
    case = Case(load(path), path)
    findings = [list(checks._findings(check.__name__, partial(check, case))) for check in run]
    if case.assistant is not None:
        case.assistant.close()
    return lines(findings[-1])


def served(endpoint: FaultServer, backend: str = "openai", **keys: object) -> dict[str, Any]:
    keys = {"backend": backend, "base_url": endpoint.base_url, "model": "m", "api_key_env": "GPTA_TEST_KEY", **keys}
    return {"assistant": keys}


class TestReport:
    def test_without_a_configuration_only_the_machine_is_checked(self) -> None:
        findings, code = examine()
        assert list(dict.fromkeys(f["check"] for f in findings)) == OF_THE_MACHINE
        assert code == 0

    def test_keys_of_the_json_are_stable_and_nothing_is_changed(self, config: Config, tmp_path: Path) -> None:
        path = config()
        before = tree(tmp_path)
        report = json.loads(invoke("doctor", path, "--json").stdout)
        assert tree(tmp_path) == before
        assert list(report) == ["versions", "checks"]
        assert {"gpta-local", "python", "torch", "transformers"} <= set(report["versions"])
        assert all(list(finding) == ["check", "grade", "finding", "fix"] for finding in report["checks"])
        assert {finding["grade"] for finding in report["checks"]} <= {"ok", "warning", "error"}
        assert list(dict.fromkeys(finding["check"] for finding in report["checks"])) == [
            *OF_THE_MACHINE,
            *("modes", "backbone-files", "assistant-files", "data", "backbone", "assistant", "requests"),
        ]

    def test_quickstart_has_no_error(self) -> None:
        findings, code = examine(ROOT / "configs" / "quickstart" / "quickstart.yaml")
        assert [f for f in findings if f["grade"] == "error"] == []
        assert code == 0

    def test_configuration_that_cannot_be_read_is_exit_code_2(self, config: Config) -> None:
        assert_refused(invoke("doctor", config({"search": {"round": 2}})), "'search.round'", "'rounds'")
        result = invoke("doctor", "--set", "seed=1")
        assert result.exit_code == 2 and "CONFIG" in result.stderr

    def test_override_is_heard_and_an_error_is_exit_code_1(self, config: Config) -> None:
        findings, code = examine(config(), "--set", "assistant.device=cuda:7")
        (wrong,) = [f for f in findings if f["grade"] == "error"]
        assert wrong["check"] == "assistant" and "cuda:7" in wrong["finding"]
        assert code == 1

    def test_table_fits_80_columns_and_needs_no_colour(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        result = invoke("doctor", config({"data": {"label": "labels"}}))
        assert result.exit_code == 1
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert "\x1b" not in result.stdout
        assert re.search(r"(?m)^data +error +\S", result.stdout)
        assert re.search(r"(?m)^ +→ Did you mean 'label'\?", result.stdout)
        assert "1 error, " in result.stdout
        assert result.stderr == ""
        assert not [text for text, _ in SENTIMENT if text in result.output], "no row is told"

    def test_check_that_breaks_is_an_error_and_the_others_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def strange() -> Iterator[Outcome]:
            yield "ok", "so far"
            raise KeyError("secret words")

        def broken() -> Iterator[Outcome]:
            raise ModelError("not there", where="here", fix="Look elsewhere")
            yield

        monkeypatch.setattr(checks, "OF_THE_MACHINE", (strange, broken, machine.python))
        findings = checks.examine(None)
        assert findings[:3] == [
            Finding("strange", "ok", "so far"),
            Finding("strange", "error", "could not be checked (KeyError)", "Please report this"),
            Finding("broken", "error", "here: not there", "Look elsewhere"),
        ]
        assert findings[3].check == "python"


class TestMachine:
    @pytest.mark.parametrize(
        ("version", "words"),
        [
            ("2.5.0", "error: torch 2.5.0 is out of the range"),
            ("2.99.0", "warning: .*torch 2.99.0 .tested 2.13.0"),
            (None, "error: torch is not installed -> pip install "),
        ],
    )
    def test_package_that_is_missing_out_of_range_or_untested_is_told(
        self, monkeypatch: pytest.MonkeyPatch, version: str | None, words: str
    ) -> None:
        real = importlib.metadata.version

        def installed(name: str) -> str:
            if name == "torch" and version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version if name == "torch" and version else real(name)

        monkeypatch.setattr(importlib.metadata, "version", installed)
        assert re.search(f"(?m)^{words}", told(machine.packages))

    def test_every_package_that_we_need_has_a_tested_version(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").lower()
        for dependency in project["dependencies"]:
            assert f"\n{Requirement(dependency).name.lower()}==" in pins

    def test_variables_that_invite_traffic_are_named_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("WANDB_API_KEY", "https_proxy", "HF_TOKEN"):
            monkeypatch.setenv(name, "a-secret-value")
        line = told(machine.environment)
        assert "warning: set in this shell: HF_TOKEN, WANDB_API_KEY, https_proxy" in line
        assert "unset HF_TOKEN WANDB_API_KEY https_proxy" in line
        assert "a-secret-value" not in line

    def test_more_threads_than_cores_are_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.get_num_threads", lambda: 999)
        assert re.search("(?m)^warning: .*export OMP_NUM_THREADS=", told(machine.devices))

    def test_place_of_the_runs_that_cannot_be_written_is_an_error(self) -> None:
        Path("runs").touch()
        assert told(machine.disk).startswith("error: ")

    def test_network_file_system_under_the_runs_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.doctor.exposure.network_file_system", lambda place: "nfs4")
        assert re.match(r"warning: .*network file system \(nfs4\).*SQLite", told(machine.disk))


class TestFiles:
    def spoilt(self, config: Config, model: Path) -> str:
        return look(config({"assistant": {"model": str(model)}}), files.assistant_files)

    def test_truncated_weights_are_an_error(self, config: Config, model: Path) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert f"error: {weights}: damaged or cut off" in self.spoilt(config, model)

    def test_folder_that_is_not_there_is_an_error_of_that_check_only(self, config: Config) -> None:
        path = config({"downstream": {"backbone": "elsewhere"}})
        assert "error: downstream.backbone" in look(path, files.backbone_files)
        assert look(path, rows.data).startswith("warning: not read")
        assert look(path, files.assistant_files).startswith("ok: ")

    def test_file_that_differs_from_its_checksum_is_an_error(self, config: Config, model: Path) -> None:
        write_manifest(model)
        assert "as in SHA256SUMS" in self.spoilt(config, model)
        (model / "config.json").write_text((model / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
        line = self.spoilt(config, model)
        assert line.startswith("error: ") and "config.json" in line

    def test_model_that_others_can_change_is_an_error(self, config: Config, model: Path) -> None:
        (model / "model.safetensors").chmod(0o666)
        line = self.spoilt(config, model)
        assert f"error: any account of this machine can change {model / 'model.safetensors'}" in line
        assert f"chmod -R o-w {model}" in line

    def test_pickle_and_code_beside_a_model_are_warnings(self, config: Config, model: Path) -> None:
        (model / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
        (model / "modeling_own.py").write_text("raise SystemExit\n", encoding="utf-8")
        content = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        content["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
        (model / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
        line = self.spoilt(config, model)
        assert f"warning: can run code, and are never loaded: {model / 'pytorch_model.bin'}" in line
        assert "never run: modeling_own.py, auto_map in tokenizer_config.json" in line

    def test_files_that_others_can_read_come_with_the_chmod(
        self, config: Config, open_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = shutil.copy(config(), open_folder)
        data = write_jsonl(open_folder / "train.jsonl", sentiment_rows())
        monkeypatch.chdir(open_folder)
        (open_folder / "runs" / "old one").mkdir(parents=True)
        Path("vllm-8000.log.key").touch()
        for file in (path, data, "runs/old one", "runs", "vllm-8000.log.key"):
            Path(file).chmod(0o755)
        line = look(Path(path), files.modes)
        names = "config.yaml train.jsonl vllm-8000.log.key 'runs/old one'"
        assert line.startswith("warning: ") and line.endswith(f"chmod -R o-rwx {names}")
        subprocess.run(["bash", "-c", line.partition("-> ")[2]], check=True)
        assert look(Path(path), files.modes).startswith("ok: ")


class TestRows:
    @pytest.mark.parametrize("keys", [{"train": "none.jsonl"}, {"text": "txt"}, {"shots": 99}])
    def test_error_is_that_of_the_run(self, config: Config, keys: dict[str, object]) -> None:
        path = config({"data": keys})
        run = invoke("train", path, "--dry-run")
        assert run.exit_code == 2
        said = next(line for line in run.stderr.splitlines() if line.startswith("error: "))
        assert look(path, rows.data).replace(" -> ", ". ") == said

    def test_few_rows_are_warnings(self, config: Config, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "test.jsonl", [{"text": f"row {i}", "label": "good"} for i in range(25)])
        line = look(config({"data": {"shots": 2, "test": "test.jsonl"}}), rows.data)
        assert "warning: 2 training rows of the label 'bad' for the 4 folds" in line
        assert "warning: 25 test rows tell an accuracy to within ± 20 points" in line

    def test_no_test_rows_and_rows_of_two_splits_are_warnings(self, config: Config) -> None:
        assert "warning: no test rows" in look(config(), rows.data)
        line = look(config({"data": {"test": "train.jsonl"}}), rows.data)
        assert "warning: 24 training rows are also in test" in line

    def test_words_of_a_row_in_the_card_are_an_error(self, config: Config) -> None:
        row = next(row["text"] for row in sentiment_rows() if len(row["text"].split()) >= 6)
        line = look(config({"card": {"description": f"Reviews such as: {row}"}}), rows.data)
        assert "error: card.description: " in line
        assert row not in line

    def test_scan_that_is_off_is_a_warning(self, config: Config) -> None:
        path = config({"privacy": {"leak_scan": {"enabled": False}}})
        assert "warning: privacy.leak_scan is off" in look(path, rows.data)

    def test_plain_encoder_is_a_warning_as_its_head_starts_at_random(self, config: Config, bert: Path) -> None:
        path = config({"downstream": {"backbone": str(bert)}})
        assert "warning: a plain encoder" in look(path, rows.data, rows.backbone)

    def test_prefix_limit_that_leaves_no_room_is_an_error(self, config: Config) -> None:
        path = config({"search": {"max_prefix_tokens": 90}})
        assert "error: search.max_prefix_tokens" in look(path, rows.data, rows.backbone)

    def test_disk_is_asked_for_all_the_weights_of_a_run(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        path = config()
        room = Run(load(path), Silent()).weights * 7 + HISTORY_ROOM  # as `train` needs it: 4 finalists, 2 controls
        for free in (room - 1, room):
            monkeypatch.setattr("shutil.disk_usage", lambda place, free=free: SimpleNamespace(free=free, total=free))
            assert ("error: a run needs" in look(path, rows.data, rows.backbone)) is (free < room)


class TestServer:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"card": {"description": "Of guests. " * 900}}, r"\d{4} tokens and 48 for the reply"),
            ({"assistant": {"max_new_tokens": 2000}}, r"\d{3} tokens and 2000 for the reply"),
        ],
    )
    def test_request_or_reply_that_does_not_fit_the_context_is_an_error(
        self, config: Config, llama: Path, changes: dict[str, Any], words: str
    ) -> None:
        path = config(changes | {"assistant": {"model": str(llama), **changes.get("assistant", {})}})
        line = look(path, rows.data, server.assistant, server.requests)
        assert re.search(rf"^error: to ask for a prefix takes about {words}, of 2048 -> Shorten card.desc", line), line

    def test_key_that_is_not_set_is_an_error(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GPTA_TEST_KEY")
        with FaultServer() as endpoint:
            line = look(config(served(endpoint)), server.assistant)
        assert line.startswith("error: assistant.api_key_env: the environment variable 'GPTA_TEST_KEY' is not set")

    def test_server_that_is_not_there_is_one_error(self, config: Config) -> None:
        endpoint = FaultServer()
        endpoint._http.server_close()
        findings, code = examine(config(served(endpoint)))
        (wrong,) = [f for f in findings if f["grade"] == "error"]
        assert wrong["check"] == "assistant" and "nothing listens on port" in wrong["finding"]
        assert code == 1

    def test_model_that_is_not_served_is_an_error(self, config: Config) -> None:
        chat = error(404, "The model `m` does not exist.")
        with FaultServer(models=model_list("other"), chat=lambda body: chat) as endpoint:
            line = look(config(served(endpoint)), server.assistant)
        assert line.startswith("error: ") and "The server lists: other" in line

    def test_failing_server_is_asked_once_whatever_the_configuration_says(self, config: Config) -> None:
        with FaultServer(chat=lambda body: Reply(503, "")) as endpoint:
            assert look(config(served(endpoint, max_retries=9)), server.assistant).startswith("error: ")
            assert len(endpoint.chats) == 1

    def test_silent_server_is_waited_for_as_long_as_the_doctor_is_patient(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "PATIENCE", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            section = {"backend": "openai", "base_url": url, "model": "m", "timeout": 900}
            assert "error: assistant.base_url" in look(config({"assistant": section}), server.assistant)

    @pytest.mark.parametrize(
        ("host", "words"),
        [
            ("127.0.0.1", ["ok: the server listens on 127.0.0.1 only", "warning: without a key, any account of this"]),
            (
                "0.0.0.0",
                ["warning: the server listens on 0.0.0.0", "--host 127.0.0.1", "error: without a key, any m"],
            ),
        ],
    )
    def test_route_without_a_key_is_a_warning_or_where_other_machines_reach_it_an_error(
        self, config: Config, host: str, words: list[str]
    ) -> None:
        with FaultServer(host=host) as endpoint:
            line = look(config(served(endpoint)), server.assistant, server.exposed_server)
        assert [word for word in (*words, "can use /v1/chat/completions") if word not in line] == []

    def test_plain_http_to_another_machine_is_an_error_and_https_is_ok(self, config: Config) -> None:
        def transport(address: str) -> str:
            changes = {"assistant": {"backend": "openai", "model": "m", "base_url": address}}
            return look(config(changes | {"privacy": {"allow_hosts": ["203.0.113.1"]}}), server.transport)

        line = transport("http://203.0.113.1:8080/v1")
        assert line.startswith("error: ") and "203.0.113.1 in clear" in line
        assert "ssh -N -L 8000:127.0.0.1:8080 203.0.113.1" in line
        assert transport("https://203.0.113.1/v1") == "ok: encrypted (https) -> "

    def test_key_is_in_no_finding(self, config: Config) -> None:
        with FaultServer(chat=lambda body: error(401, f"wrong key {KEY}")) as endpoint:
            assert KEY not in invoke("doctor", config(served(endpoint))).output


class TestDialogueGradient:
    def taught(self, path: Path) -> str:
        return look(path, server.assistant, server.dialogue_gradient)

    def test_replay_cannot_be_taught(self, config: Config, tmp_path: Path) -> None:
        record_replies(tmp_path / "record", ["bad: x\ngood: y"], ["Text:"])
        path = config({"assistant": {"backend": "replay", "run": "record"}, "dialogue_gradient": {}})
        assert "1 prefixes, 1 sets of label texts" in look(path, server.assistant)
        assert self.taught(path).startswith("error: dialogue_gradient: a replay cannot be taught")

    def test_where_several_gpus_are_visible_a_process_that_sees_one_trains(
        self, config: Config, llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = config({"assistant": {"model": str(llama)}, "dialogue_gradient": {}})
        assert self.taught(path) == "ok: the assistant is trained in this process -> "
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        assert self.taught(path).startswith("ok: the assistant is trained on ")

    def test_rank_that_the_server_takes_is_ok(self, config: Config, llama: Path) -> None:
        with FakeVLLM(llama) as endpoint:
            line = self.taught(config({**served(endpoint, "vllm"), "dialogue_gradient": {"rank": 8}}))
        assert "ok: the server takes adapters of rank 8" in line

    def test_rank_above_the_servers_is_an_error(self, config: Config, llama: Path) -> None:
        refusal = "LoRA rank 16 is greater than max_lora_rank 8"
        with FakeVLLM(llama) as endpoint:
            normal = endpoint._load
            endpoint.on_load = lambda body: failed(f"{refusal}.") if Path(body["lora_path"]).is_dir() else normal(body)
            line = self.taught(config({**served(endpoint, "vllm"), "dialogue_gradient": {}}))
        assert refusal in line and "--max-lora-rank 16" in line

    def test_server_that_takes_no_adapters_is_a_warning_or_with_an_adapter_to_begin_with_an_error(
        self, config: Config, llama: Path
    ) -> None:
        with FakeVLLM(llama) as endpoint:
            endpoint.on_load = lambda body: error(404, "Not Found")
            line = self.taught(config({**served(endpoint, "vllm"), "dialogue_gradient": {}}))
            assert "warning: adapters are trained and saved, but do not answer" in line
            assert "--enable-lora" in line
            line = self.taught(config(served(endpoint, "vllm", adapter="adapters/ours")))
            assert line.startswith("error: the run begins with an adapter")

    def test_weights_that_are_not_known_are_an_error(self, config: Config) -> None:
        with FaultServer() as endpoint:
            line = self.taught(config({**served(endpoint), "dialogue_gradient": {}}))
        assert line.startswith("error: ") and "assistant.weights" in line


@pytest.mark.vllm
@pytest.mark.slow
def test_real_server_is_ok_with_its_key_and_these_routes_answer_without(
    config: Config, vllm_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTA_TEST_KEY", str(vllm_endpoint.api_key))
    section = {"backend": "vllm", "base_url": vllm_endpoint.base_url, "model": vllm_endpoint.model}
    findings, code = examine(config({"assistant": {**section, "api_key_env": "GPTA_TEST_KEY"}}))
    assert [f for f in findings if f["grade"] == "error"] == [] and code == 0
    said = {f["check"]: f["finding"] for f in findings if f["grade"] == "ok"}
    assert "context of 2048 tokens" in said["assistant"]
    assert said["exposed-server"].startswith("vLLM 0.32")
    assert said["requests"].endswith("of 2048")
    (line,) = [f["finding"] for f in findings if f["check"] == "exposed-server" and "without a key" in f["finding"]]
    assert line.startswith("without a key, any account of this machine can use")
    answering = set(re.findall(r"(?<![\w.])/[\w/.]+", line))
    harmless = {"/health", "/ping", "/version", "/load", "/metrics", "/docs", "/openapi.json", "/tokenize"}
    assert answering - {"/adapters"} == {"/invocations", "/generative_scoring", "/detokenize", *harmless}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Mode and time of change of all that is in a folder."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mode, path.stat().st_mtime_ns) for path in paths}
