"""The doctor: each finding is caused for real, by a file, a mode, a variable or a server."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from commands import ROOT, assert_refused, invoke
from fault_server import FakeVLLM, FaultServer, Reply, error, failed, model_list
from packaging.requirements import Requirement
from samples import SENTIMENT, Silent, record_replies, sentiment_rows, write_config, write_jsonl
from servers import Endpoint, vllm_server

from gpta_local.config import load
from gpta_local.doctor import checks
from gpta_local.errors import ModelError
from gpta_local.record.folder import HISTORY_ROOM
from gpta_local.run.loop import Run

OF_THE_MACHINE = ["python", "packages", "devices", "disk", "environment"]
KEY = "key-of-this-test"
ALLOWED = {"privacy": {"allow_hosts": ["203.0.113.1"]}}

Config = Callable[..., Path]
Findings = list[dict[str, str]]


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and a shell that asks for no traffic."""
    for name in [name for name in os.environ if checks.INVITING.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GPTA_TEST_KEY", KEY)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def config(tmp_path: Path, sentence: Path) -> Config:
    """Write a configuration over 24 rows, changed; the quickest that there is."""

    def write(changes: Mapping[str, Any] | None = None) -> Path:
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
        path = write_config(tmp_path / "config.yaml", {"downstream": {"backbone": str(sentence)}})
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, keys in (changes or {}).items():
            content[section] = {**content.get(section, {}), **keys} if isinstance(keys, dict) else keys
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def model(tmp_path: Path, nano_assistant: Path) -> Path:
    """A copy of the embedded assistant to spoil."""
    names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    (tmp_path / "model").mkdir()
    for name in (*names, "chat_template.jinja"):
        shutil.copy(nano_assistant / name, tmp_path / "model" / name)
    return tmp_path / "model"


def examine(path: Path | None = None, *arguments: object) -> tuple[Findings, int]:
    """The findings of the command and its exit code."""
    result = invoke("doctor", *([path] if path else []), "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)["checks"], result.exit_code


def of(findings: Findings, check: str) -> str:
    """A check's findings in one text: grade, finding, fix."""
    return "\n".join(f"{f['grade']}: {f['finding']} -> {f['fix']}" for f in findings if f["check"] == check)


def served(server: FaultServer, backend: str = "openai", **keys: object) -> dict[str, Any]:
    keys = {"backend": backend, "base_url": server.base_url, "model": "m", "api_key_env": "GPTA_TEST_KEY", **keys}
    return {"assistant": keys}


class TestReport:
    def test_without_a_configuration_only_the_machine_is_checked(self) -> None:
        findings, code = examine()
        assert list(dict.fromkeys(f["check"] for f in findings)) == OF_THE_MACHINE
        assert code == 0

    def test_keys_of_the_json_are_stable(self, config: Config) -> None:
        result = invoke("doctor", config(), "--json")
        report = json.loads(result.stdout)
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

    def test_an_error_is_exit_code_1(self, config: Config) -> None:
        findings, code = examine(config({"data": {"label": "labels"}}))
        assert [f["check"] for f in findings if f["grade"] == "error"] == ["data"]
        assert code == 1

    def test_configuration_that_cannot_be_read_is_exit_code_2(self, config: Config) -> None:
        assert_refused(invoke("doctor", config({"search": {"round": 2}})), "'search.round'", "'rounds'")

    def test_override_without_a_configuration_is_exit_code_2(self) -> None:
        result = invoke("doctor", "--set", "seed=1")
        assert result.exit_code == 2
        assert "CONFIG" in result.stderr

    def test_override_is_heard(self, config: Config) -> None:
        assert "cuda:7" in of(examine(config(), "--set", "assistant.device=cuda:7")[0], "assistant")

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

    def test_nothing_is_changed(self, config: Config, tmp_path: Path) -> None:
        path = config()
        before = tree(tmp_path)
        examine(path)
        assert tree(tmp_path) == before

    def test_no_text_of_a_row_is_told(self, config: Config) -> None:
        for path in (config(), config({"data": {"text": "txt"}}), config({"card": {"labels": ["bad", "new"]}})):
            output = invoke("doctor", path).output
            assert not [text for text, _ in SENTIMENT if text in output]

    def test_check_that_breaks_is_an_error_and_the_others_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def strange() -> Iterator[checks.Verdict]:
            yield "ok", "so far"
            raise KeyError("secret words")

        monkeypatch.setattr(checks, "OF_THE_MACHINE", (strange, checks.python))
        findings = checks.examine(None)
        assert [(f.check, f.grade) for f in findings] == [("strange", "ok"), ("strange", "error"), ("python", "ok")]
        assert findings[1].finding == "could not be checked (KeyError)"

    def test_error_of_ours_is_told_with_its_fix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> Iterator[checks.Verdict]:
            raise ModelError("not there", where="here", fix="Look elsewhere")
            yield

        monkeypatch.setattr(checks, "OF_THE_MACHINE", (broken,))
        assert checks.examine(None) == [checks.Finding("broken", "error", "here: not there", "Look elsewhere")]


class TestMachine:
    @pytest.mark.parametrize(
        ("version", "grade", "word"), [("2.5.0", "error", "out of the range"), ("2.99.0", "warning", "tested 2.13.0")]
    )
    def test_version_out_of_range_is_an_error_and_an_untested_one_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, version: str, grade: str, word: str
    ) -> None:
        real = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "torch" else real(name))
        line = of(examine()[0], "packages")
        assert re.search(rf"^{grade}: .*torch {version}", line), line
        assert word in line

    def test_package_that_is_missing_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            if name == "peft":
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(checks, "_requirements", lambda: [Requirement("peft>=0.21,<0.22")])
        assert of(examine()[0], "packages").startswith("error: peft is not installed -> pip install ")

    def test_every_package_that_we_need_has_a_tested_version(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").lower()
        for dependency in project["dependencies"]:
            assert f"\n{Requirement(dependency).name.lower()}==" in pins

    def test_variables_that_invite_traffic_are_named_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("WANDB_API_KEY", "https_proxy", "HF_TOKEN"):
            monkeypatch.setenv(name, "a-secret-value")
        result = invoke("doctor", "--json")
        line = of(json.loads(result.stdout)["checks"], "environment")
        assert "warning: set in this shell: HF_TOKEN, WANDB_API_KEY, https_proxy" in line
        assert "unset HF_TOKEN WANDB_API_KEY https_proxy" in line
        assert "a-secret-value" not in result.output

    def test_more_threads_than_cores_are_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.get_num_threads", lambda: 999)
        assert "warning: " in of(examine()[0], "devices")
        assert "export OMP_NUM_THREADS=" in of(examine()[0], "devices")

    def test_place_of_the_runs_that_cannot_be_written_is_an_error(self) -> None:
        Path("runs").touch()
        assert of(examine()[0], "disk").startswith("error: ")

    def test_network_file_system_under_the_runs_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.doctor.exposure.network_file_system", lambda place: "nfs4")
        assert re.match(r"warning: .*network file system \(nfs4\).*SQLite", of(examine()[0], "disk"))

    def test_disk_is_asked_for_all_the_weights_of_a_run(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        path = config()
        room = Run(load(path), Silent()).weights * 7 + HISTORY_ROOM  # as `train` needs it: 4 finalists, 2 controls
        for free, grade in ((room - 1, "error"), (room, "ok")):
            monkeypatch.setattr("shutil.disk_usage", lambda place, free=free: SimpleNamespace(free=free, total=free))
            findings, _ = examine(path)
            told = [line for line in findings if "the disk of" in str(line)]
            assert (grade == "error") is bool(told), findings


class TestFiles:
    def test_truncated_weights_are_an_error_and_the_rest_is_checked(self, config: Config, model: Path) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        findings, code = examine(config({"assistant": {"model": str(model)}}))
        assert f"error: {weights}: damaged or cut off" in of(findings, "assistant-files")
        assert of(findings, "data").startswith("ok: 2 labels; 24 training")
        assert code == 1

    def test_folder_that_is_not_there_is_an_error_of_that_check_only(self, config: Config) -> None:
        findings, _ = examine(config({"downstream": {"backbone": "elsewhere"}}))
        assert "error: downstream.backbone" in of(findings, "backbone-files")
        assert of(findings, "data").startswith("warning: not read")
        assert of(findings, "assistant-files").startswith("ok: ")

    def test_file_that_differs_from_its_checksum_is_an_error(self, config: Config, model: Path) -> None:
        names = ("config.json", "model.safetensors")
        lines = [f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (model / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
        others = sorted({path.name for path in model.iterdir()} - {*names, "SHA256SUMS"})
        with (model / "SHA256SUMS").open("a", encoding="utf-8") as sums:
            sums.writelines(f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in others)
        path = config({"assistant": {"model": str(model)}})
        assert "as in SHA256SUMS" in of(examine(path)[0], "assistant-files")
        (model / "config.json").write_text((model / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
        line = of(examine(path)[0], "assistant-files")
        assert line.startswith("error: ") and "config.json" in line

    def test_model_that_others_can_change_is_an_error(self, config: Config, model: Path) -> None:
        (model / "model.safetensors").chmod(0o666)
        line = of(examine(config({"assistant": {"model": str(model)}}))[0], "assistant-files")
        assert f"error: any account of this machine can change {model / 'model.safetensors'}" in line
        assert f"chmod -R o-w {model}" in line

    def test_pickle_and_code_beside_a_model_are_warnings(self, config: Config, model: Path) -> None:
        (model / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
        (model / "modeling_own.py").write_text("raise SystemExit\n", encoding="utf-8")
        content = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        content["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
        (model / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
        line = of(examine(config({"assistant": {"model": str(model)}}))[0], "assistant-files")
        assert f"warning: can run code, and are never loaded: {model / 'pytorch_model.bin'}" in line
        assert "never run: modeling_own.py, auto_map in tokenizer_config.json" in line

    def test_files_that_others_can_read_come_with_the_chmod(
        self, config: Config, open_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = shutil.copy(config(), open_folder)
        rows = write_jsonl(open_folder / "train.jsonl", sentiment_rows())
        monkeypatch.chdir(open_folder)
        (open_folder / "runs" / "old one").mkdir(parents=True)
        Path("vllm-8000.log.key").touch()
        for file in (path, rows, "runs/old one", "runs", "vllm-8000.log.key"):
            Path(file).chmod(0o755)
        line = of(examine(Path(path))[0], "modes")
        files = "config.yaml train.jsonl vllm-8000.log.key 'runs/old one'"
        assert line.startswith("warning: ") and line.endswith(f"chmod -R o-rwx {files}")
        subprocess.run(["bash", "-c", line.partition("-> ")[2]], check=True)
        assert of(examine(Path(path))[0], "modes").startswith("ok: ")


class TestData:
    @pytest.mark.parametrize("keys", [{"train": "none.jsonl"}, {"text": "txt"}, {"shots": 99}])
    def test_error_is_that_of_the_run(self, config: Config, keys: dict[str, object]) -> None:
        path = config({"data": keys})
        run = invoke("train", path, "--dry-run")
        assert run.exit_code == 2
        said = next(line for line in run.stderr.splitlines() if line.startswith("error: "))
        assert of(examine(path)[0], "data").replace(" -> ", ". ") == said

    def test_few_rows_are_warnings(self, config: Config, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "test.jsonl", [{"text": f"row {i}", "label": "good"} for i in range(25)])
        line = of(examine(config({"data": {"shots": 2, "test": "test.jsonl"}}))[0], "data")
        assert "warning: 2 training rows of the label 'bad' for the 4 folds" in line
        assert "warning: 25 test rows tell an accuracy to within ± 20 points" in line

    def test_no_test_rows_and_rows_of_two_splits_are_warnings(self, config: Config) -> None:
        assert "warning: no test rows" in of(examine(config())[0], "data")
        line = of(examine(config({"data": {"test": "train.jsonl"}}))[0], "data")
        assert "warning: 24 training rows are also in test" in line

    def test_plain_encoder_is_a_warning_as_its_head_starts_at_random(self, config: Config, bert: Path) -> None:
        line = of(examine(config({"downstream": {"backbone": str(bert)}}))[0], "backbone")
        assert "warning: a plain encoder" in line

    def test_prefix_limit_that_leaves_no_room_is_an_error(self, config: Config) -> None:
        assert "error: search.max_prefix_tokens" in of(
            examine(config({"search": {"max_prefix_tokens": 90}}))[0], "backbone"
        )


class TestAssistant:
    def test_request_that_does_not_fit_the_context_is_an_error(self, config: Config) -> None:
        line = of(examine(config({"card": {"description": "Of guests. " * 900}}))[0], "requests")
        assert re.search(r"^error: to ask for a prefix takes about \d{4} tokens and 48 for the reply, of 2048", line)
        assert "Shorten card.description" in line

    def test_reply_that_does_not_fit_the_context_is_an_error(self, config: Config) -> None:
        line = of(examine(config({"assistant": {"max_new_tokens": 2000}}))[0], "requests")
        assert re.search(r"^error: to ask for a prefix takes about \d{3} tokens and 2000 for the reply, of 2048", line)

    def test_key_that_is_not_set_is_an_error(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GPTA_TEST_KEY")
        with FaultServer() as server:
            line = of(examine(config(served(server)))[0], "assistant")
        assert line.startswith("error: assistant.api_key_env: the environment variable 'GPTA_TEST_KEY' is not set")

    def test_server_that_is_not_there_is_one_error(self, config: Config) -> None:
        server = FaultServer()
        server._http.server_close()
        findings, code = examine(config(served(server)))
        assert [f["check"] for f in findings if f["grade"] == "error"] == ["assistant"]
        assert "nothing listens on port" in of(findings, "assistant")
        assert code == 1

    def test_model_that_is_not_served_is_an_error(self, config: Config) -> None:
        with FaultServer(
            models=model_list("other"), chat=lambda body: error(404, "The model `m` does not exist.")
        ) as s:
            line = of(examine(config(served(s)))[0], "assistant")
        assert line.startswith("error: ") and "The server lists: other" in line

    def test_failing_server_is_asked_once_whatever_the_configuration_says(self, config: Config) -> None:
        with FaultServer(chat=lambda body: Reply(503, "")) as server:
            findings, _ = examine(config(served(server, max_retries=9)))
            assert len(server.chats) == 1
        assert of(findings, "assistant").startswith("error: ")

    def test_silent_server_is_waited_for_as_long_as_the_doctor_is_patient(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "PATIENCE", 0.3)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            section = {"backend": "openai", "base_url": url, "model": "m", "timeout": 900}
            assert "error: assistant.base_url" in of(examine(config({"assistant": section}))[0], "assistant")

    def test_route_without_a_key_is_a_warning_on_this_machine(self, config: Config) -> None:
        with FaultServer() as server:
            findings, code = examine(config(served(server)))
        line = of(findings, "exposed-server")
        assert "ok: the server listens on 127.0.0.1 only" in line
        assert re.search(r"warning: without a key, any account of this machine can use /v1/chat/completions", line)
        assert code == 0

    def test_route_without_a_key_is_an_error_where_other_machines_reach_it(self, config: Config) -> None:
        with FaultServer(host="0.0.0.0") as server:
            findings, code = examine(config(served(server)))
        line = of(findings, "exposed-server")
        assert "warning: the server listens on 0.0.0.0" in line and "--host 127.0.0.1" in line
        assert "error: without a key, any machine that reaches it can use /v1/chat/completions" in line
        assert code == 1

    def test_plain_http_to_another_machine_is_an_error(self, config: Config) -> None:
        changes = {"assistant": {"backend": "openai", "model": "m", "base_url": "http://203.0.113.1:8080/v1"}}
        case = checks.Case(load(config(changes | ALLOWED)), Path("config.yaml"))
        ((grade, finding, *fix),) = checks.transport(case)
        assert grade == "error" and "203.0.113.1 in clear" in finding
        assert "ssh -N -L 8000:127.0.0.1:8080 203.0.113.1" in fix[0]

    def test_https_is_ok(self, config: Config) -> None:
        changes = {"assistant": {"backend": "openai", "model": "m", "base_url": "https://203.0.113.1/v1"}} | ALLOWED
        assert list(checks.transport(checks.Case(load(config(changes)), Path("c")))) == [("ok", "encrypted (https)")]

    def test_key_is_in_no_finding(self, config: Config) -> None:
        with FaultServer(chat=lambda body: error(401, f"wrong key {KEY}")) as server:
            assert KEY not in invoke("doctor", config(served(server))).output


class TestDialogueGradient:
    def test_replay_cannot_be_taught(self, config: Config, tmp_path: Path) -> None:
        record_replies(tmp_path / "record", ["bad: x\ngood: y"], ["Text:"])
        replay = {"assistant": {"backend": "replay", "run": "record"}, "dialogue_gradient": {}}
        findings, _ = examine(config(replay))
        assert "1 prefixes, 1 sets of label texts" in of(findings, "assistant")
        assert of(findings, "dialogue-gradient").startswith("error: dialogue_gradient: a replay cannot be taught")

    def test_several_gpus_are_an_error_for_a_local_assistant(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = config({"dialogue_gradient": {}})
        assert of(examine(path)[0], "dialogue-gradient") == "ok: the assistant is trained in this process -> "
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        case = checks.Case(load(path), path)
        findings = [f for check in (checks.assistant, checks.dialogue_gradient) for f in attempt(check, case)]
        assert findings[-1].grade == "error"
        assert "CUDA_VISIBLE_DEVICES=0" in findings[-1].fix

    def test_server_that_takes_no_adapters_is_a_warning(self, config: Config, nano_assistant: Path) -> None:
        with FakeVLLM(nano_assistant) as server:
            server.on_load = lambda body: error(404, "Not Found")
            line = of(examine(config({**served(server, "vllm"), "dialogue_gradient": {}}))[0], "dialogue-gradient")
        assert "warning: adapters are trained and saved, but do not answer" in line
        assert "--enable-lora" in line

    def test_adapter_to_begin_with_is_an_error_where_none_is_taken(self, config: Config, nano_assistant: Path) -> None:
        with FakeVLLM(nano_assistant) as server:
            server.on_load = lambda body: error(404, "Not Found")
            findings, code = examine(config(served(server, "vllm", adapter="adapters/ours")))
        assert of(findings, "dialogue-gradient").startswith("error: the run begins with an adapter")
        assert code == 1

    def test_rank_above_the_servers_is_an_error(self, config: Config, nano_assistant: Path) -> None:
        with FakeVLLM(nano_assistant) as server:
            normal = server._load
            server.on_load = lambda body: (
                failed("LoRA rank 16 is greater than max_lora_rank 8.")
                if Path(body["lora_path"]).is_dir()
                else normal(body)
            )
            line = of(examine(config({**served(server, "vllm"), "dialogue_gradient": {}}))[0], "dialogue-gradient")
        assert "LoRA rank 16 is greater than max_lora_rank 8" in line
        assert "--max-lora-rank 16" in line

    def test_weights_that_are_not_known_are_an_error(self, config: Config) -> None:
        with FaultServer() as server:
            line = of(examine(config({**served(server), "dialogue_gradient": {}}))[0], "dialogue-gradient")
        assert line.startswith("error: ") and "assistant.weights" in line


@pytest.fixture(scope="module")
def endpoint(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A vLLM server that takes adapters up to rank 8."""
    with vllm_server(nano_assistant, tmp_path_factory.mktemp("vllm") / "server.log", lora_rank=8) as endpoint:
        yield endpoint


@pytest.mark.vllm
@pytest.mark.slow
class TestVLLM:
    def section(self, endpoint: Endpoint, **keys: object) -> dict[str, Any]:
        given = {"backend": "vllm", "base_url": endpoint.base_url, "model": endpoint.model}
        return {"assistant": {**given, "api_key_env": "GPTA_TEST_KEY", **keys}}

    def test_server_with_its_key_is_ok_and_so_is_a_rank_that_it_takes(
        self, config: Config, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        before = models_of(endpoint)
        findings, code = examine(config({**self.section(endpoint), "dialogue_gradient": {"rank": 8}}))
        assert [f for f in findings if f["grade"] == "error"] == []
        assert "context of 2048 tokens" in of(findings, "assistant")
        assert of(findings, "transport").startswith("ok: ")
        assert "ok: vLLM 0.32" in of(findings, "exposed-server")
        assert of(findings, "requests").count("of 2048") == 2
        assert "ok: the server takes adapters of rank 8" in of(findings, "dialogue-gradient")
        assert code == 0
        assert models_of(endpoint) == before, "nothing was loaded"

    def test_these_routes_answer_without_the_key(
        self, config: Config, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        line = of(examine(config(self.section(endpoint)))[0], "exposed-server")
        told = re.findall(r"(?<![\w.])/[\w/.]+", line.partition("without a key")[2].partition(" -> ")[0])
        dangerous = {"/invocations", "/generative_scoring", "/adapters"}
        harmless = {"/health", "/ping", "/version", "/load", "/metrics", "/docs", "/openapi.json", "/tokenize"}
        assert set(told) == dangerous | harmless | {"/detokenize"}
        assert "warning: without a key, any account of this machine can use" in line

    def test_rank_above_the_servers_is_an_error(
        self, config: Config, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        findings, code = examine(config({**self.section(endpoint), "dialogue_gradient": {"rank": 16}}))
        assert "LoRA rank 16 is greater than max_lora_rank 8" in of(findings, "dialogue-gradient")
        assert code == 1

    @pytest.mark.parametrize(
        ("key", "words"), [("GPTA_TEST_KEY", "refuses the key (401)"), (None, "asks for a key (401)")]
    )
    def test_wrong_key_and_none_are_errors(
        self, config: Config, endpoint: Endpoint, key: str | None, words: str
    ) -> None:
        findings, code = examine(config(self.section(endpoint, api_key_env=key)))
        assert words in of(findings, "assistant")
        assert code == 1

    def test_no_room_for_a_long_reply_is_an_error(
        self, config: Config, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GPTA_TEST_KEY", str(endpoint.api_key))
        line = of(examine(config(self.section(endpoint, max_new_tokens=2048)))[0], "requests")
        assert re.search(r"^error: .* and 2048 for the reply, of 2048", line)


def attempt(check: Callable[[checks.Case], Any], case: checks.Case) -> list[checks.Finding]:
    return list(checks._findings(check.__name__, lambda: check(case)))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Mode and time of change of all that is in a folder."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mode, path.stat().st_mtime_ns) for path in paths}


def models_of(endpoint: Endpoint) -> list[str]:
    import urllib.request

    request = urllib.request.Request(f"{endpoint.base_url}/models")
    request.add_header("authorization", f"Bearer {endpoint.api_key}")
    with contextlib.closing(urllib.request.urlopen(request, timeout=10)) as reply:
        return [model["id"] for model in json.loads(reply.read())["data"]]


class TestLeaks:
    def test_words_of_a_row_in_the_card_are_an_error(self, config: Config) -> None:
        row = next(row["text"] for row in sentiment_rows() if len(row["text"].split()) >= 6)
        findings, code = examine(config({"card": {"description": f"Reviews such as: {row}"}}))
        assert code == 1 and "error: card.description: " in of(findings, "data")
        assert row not in str(findings)

    def test_scan_that_is_off_is_a_warning(self, config: Config) -> None:
        findings, _ = examine(config({"privacy": {"leak_scan": {"enabled": False}}}))
        assert "warning: privacy.leak_scan is off" in of(findings, "data")
