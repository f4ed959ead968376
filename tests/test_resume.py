"""Going on with a run that was stopped: what is done again, what is refused, and what the user is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import ROOT, assert_refused, invoke
from killing import outcome
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.downstream.training import Training
from gpta_local.errors import InputError
from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.finish import Finish
from gpta_local.run.loop import Run
from gpta_local.run.search import Search
from gpta_local.schema import Completion, Request, Sampling

REPLIES = ("Guest note:", "Said of the meal:", "The visit was", "Menu", "Table talk:", "Kitchen:")
NEEDS_MOUNTS = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount on Linux",
)


@pytest.fixture
def config(tmp_path: Path, sentence: Path) -> Path:
    """A configuration whose run takes a second, with validation and test rows."""
    rows = sentiment_rows()
    for split in ("validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    record_replies(tmp_path / "record", [label_text_reply({"bad": "an unhappy guest", "good": "a happy one"})], REPLIES)
    changes: dict[str, Any] = {
        "data": {"validation": "validation.jsonl", "test": "test.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "search": {"rounds": 2},
        "training": {"steps": 4, "checkpoint_seconds": 0},
    }
    config_of(tmp_path, rows, changes)
    return tmp_path / "config.yaml"


class Stop:
    """Stops a run instead of the n-th call of a method."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type, method: str, at: int = 1) -> None:
        original, self.calls = getattr(owner, method), 0

        def counted(of: Any, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise KeyboardInterrupt
            return original(of, *arguments, **named)

        patch.setattr(owner, method, counted)


def train(config: Path, *options: object, folder: str = "run") -> Result:
    return invoke("train", config, "--output", config.parent / folder, *options)


def stopped(config: Path, method: str = "contestants", owner: type = Finish, at: int = 1) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, owner, method, at)
        result = train(config)
    assert result.exit_code == 3, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    """All but the lock, which tells who was there last."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (Search, "choose_label_texts", 1),
        (Search, "propose", 2),
        (Search, "score", 1),
        (Search, "judge", 2),
        (FineTuner, "fine_tune", 2),
        (FineTuner, "measure", 3),
        (Run, "write", 1),
    ],
)
def test_run_that_was_stopped_ends_as_one_that_was_not(config: Path, owner: type, method: str, at: int) -> None:
    stopped(config, method, owner, at)
    result = train(config, "--resume")
    assert result.exit_code == 0, result.output
    assert train(config, folder="whole").exit_code == 0
    assert outcome(config.parent / "run") == outcome(config.parent / "whole")


class TestNothingIsDoneTwice:
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_only_the_request_that_was_not_answered_is_asked_again(self, config: Path, at: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            asked = Stop(patch, ReplayAssistant, "complete", at)
            assert train(config).exit_code == 3
            assert train(config, "--resume").exit_code == 0
        assert asked.calls == 3 + 1
        history = open_existing(config.parent / "run")
        assert [len(texts) for texts in history.texts().values()] == [1, 3, 3]
        history.close()

    def test_log_tells_that_a_request_was_sent_once_more(self, config: Path) -> None:
        stopped(config, "complete", ReplayAssistant, at=2)
        assert train(config, "--resume").exit_code == 0
        verdict = verify(config.parent / "run")
        assert verdict.problems == []
        assert [e.unanswered for e in verdict.entries if e.event == "resumed"] == [2]
        assert "request 2 is sent once more" in invoke("audit", "show", config.parent / "run").stdout

    def test_rounds_on_record_are_not_scored_again(self, config: Path) -> None:
        stopped(config, "propose", Search, at=2)
        with pytest.MonkeyPatch.context() as patch:
            scored = Stop(patch, Search, "score", at=0)
            assert train(config, "--resume").exit_code == 0
        assert scored.calls == 1

    def test_finished_fine_tunings_are_not_taken_again(self, config: Path) -> None:
        stopped(config, "evaluate")
        with pytest.MonkeyPatch.context() as patch:
            steps = Stop(patch, Training, "_step", at=0)
            assert train(config, "--resume").exit_code == 0
        assert steps.calls == 0

    def test_training_goes_on_from_its_checkpoint(self, config: Path) -> None:
        stopped(config, "_step", Training, at=3)
        with pytest.MonkeyPatch.context() as patch:
            steps = Stop(patch, Training, "_step", at=0)
            assert train(config, "--resume").exit_code == 0
            first = steps.calls
            assert train(config, folder="whole").exit_code == 0
        assert steps.calls - first == first + 2
        assert outcome(config.parent / "run") == outcome(config.parent / "whole")

    def test_damaged_checkpoint_is_named_and_the_one_before_used(self, config: Path) -> None:
        stopped(config, "_step", Training, at=4)
        newest = max((config.parent / "run" / "checkpoints").iterdir())
        newest.write_bytes(newest.read_bytes()[:-1])
        result = train(config, "--resume")
        assert result.exit_code == 0 and f"{newest} is damaged and left out" in result.stderr
        assert train(config, folder="whole").exit_code == 0
        assert outcome(config.parent / "run") == outcome(config.parent / "whole")

    def test_line_of_metrics_that_was_cut_off_is_written_again(self, config: Path) -> None:
        stopped(config, "evaluate")
        metrics = config.parent / "run" / "metrics.jsonl"
        whole = metrics.read_bytes()
        metrics.write_bytes(whole[:-30])
        assert train(config, "--resume").exit_code == 0
        titles = [json.loads(line)["title"] for line in metrics.read_text().splitlines()]
        assert len(titles) == len(set(titles)) and metrics.read_bytes().startswith(whole)

    def test_time_before_the_pause_counts(self, config: Path) -> None:
        stopped(config)
        with sqlite3.connect(config.parent / "run" / "history.sqlite") as db:
            db.execute("UPDATE runs SET seconds = 1000")
        assert train(config, "--resume").exit_code == 0
        summary = json.loads((config.parent / "run" / "summary.json").read_text())
        assert 1000 < summary["seconds"]["total"] < 1600


class TestWhatTheUserIsTold:
    def test_ctrl_c_names_the_command_to_go_on_with(self, config: Path) -> None:
        last = stopped(config).stderr.splitlines()[-1]
        run = config.parent / "run"
        assert last == f"stopped. To go on: gpta-local train {run}/config.yaml --output {run} --resume"
        assert invoke(*last.split()[5:]).exit_code == 0

    def test_folder_with_a_stopped_run_is_not_begun_in(self, config: Path) -> None:
        stopped(config)
        before = files(config.parent / "run")
        assert_refused(train(config), "a run of this configuration was stopped in this directory", "--resume")
        assert files(config.parent / "run") == before

    def test_folder_with_a_finished_run_is_not_begun_in(self, config: Path) -> None:
        assert train(config).exit_code == 0
        assert_refused(train(config), "a finished run is in this directory")

    def test_finished_run_is_said_to_be_finished(self, config: Path) -> None:
        assert train(config).exit_code == 0
        before = files(config.parent / "run")
        result = train(config, "--resume")
        assert result.exit_code == 0 and "the run is finished" in result.stdout
        assert files(config.parent / "run") == before

    def test_nothing_to_go_on_with_is_a_beginning(self, config: Path) -> None:
        (config.parent / "run").mkdir()
        (config.parent / "run" / "run.lock").write_text("{}", encoding="utf-8")
        assert train(config, "--resume").exit_code == 0
        assert (config.parent / "run" / "summary.json").is_file()

    def test_other_order_of_the_labels_is_another_configuration(self, config: Path) -> None:
        text = config.read_text(encoding="utf-8")
        card = "card:\n  labels: {bad: an unhappy guest, good: a happy one}\n"
        config.write_text(text.replace("card:\n", card), encoding="utf-8")
        stopped(config)
        other = "card:\n  labels: {good: a happy one, bad: an unhappy guest}\n"
        config.write_text(text.replace("card:\n", other), encoding="utf-8")
        assert_refused(train(config, "--resume"), "another configuration: card.labels")

    def test_other_configuration_is_refused_and_its_keys_named(self, config: Path) -> None:
        stopped(config)
        before = files(config.parent / "run")
        changed = train(config, "--resume", "--set", "search.rounds=3", "--set", "seed=1")
        assert_refused(changed, "another configuration: search.rounds, seed")
        assert_refused(train(config, "--set", "seed=1"), "a run of another configuration", "seed")
        assert files(config.parent / "run") == before

    @pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "config.yaml"])
    def test_file_that_was_changed_meanwhile_is_refused_by_name(self, config: Path, name: str) -> None:
        stopped(config)
        changed = config.parent / name if name != "config.yaml" else config.parent / "run" / name
        changed.write_bytes(changed.read_bytes() + b"\n")
        before = files(config.parent / "run")
        assert_refused(train(config, "--resume"), f"'{name}' is not the file that the run began with")
        assert files(config.parent / "run") == before

    def test_other_version_of_a_library_is_a_warning(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped(config)
        monkeypatch.setattr("gpta_local.record.audit.platform.python_version", lambda: "3.99.0")
        result = train(config, "--resume")
        assert result.exit_code == 0 and "warning: python is of another version" in result.stderr

    def test_purged_run_is_refused(self, config: Path) -> None:
        stopped(config)
        assert invoke("purge", config.parent / "run", "--yes").exit_code == 0
        assert_refused(train(config, "--resume"), "the texts of this run were purged")

    @pytest.mark.parametrize(("form", "words"), [(0, "gpta-local 9.8.7"), (99, "gpta-local 9.8.7")])
    def test_run_of_another_format_is_refused_with_the_version_it_needs(
        self, config: Path, form: int, words: str
    ) -> None:
        stopped(config)
        with sqlite3.connect(config.parent / "run" / "history.sqlite") as db:
            db.execute("UPDATE runs SET format = ?, written_by = '9.8.7'", (form,))
        assert_refused(train(config, "--resume"), "another format", words)

    def test_request_that_would_be_another_is_refused(self, config: Path) -> None:
        stopped(config, "score", Search)
        with sqlite3.connect(config.parent / "run" / "history.sqlite") as db:
            db.execute("UPDATE requests SET messages = '[]' WHERE kind = 'prefix'")
        assert_refused(train(config, "--resume"), "in round 1 the run had asked something else")

    def test_stopped_run_below_runs_is_offered_and_found(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(config.parent)
        with monkeypatch.context() as patch:
            Stop(patch, Finish, "contestants")
            assert invoke("train", config).exit_code == 3
        (folder,) = Path("runs").iterdir()
        offered = invoke("train", config, "--dry-run")
        assert f"train {folder}/config.yaml --output {folder} --resume" in offered.stderr
        assert invoke("train", config, "--resume").exit_code == 0
        assert [path.name for path in Path("runs").iterdir()] == [folder.name]
        assert (folder / "summary.json").is_file()


class TestOneAtATime:
    HOLD = """
import sys, time
from pathlib import Path
from gpta_local.record.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

    @pytest.mark.parametrize("options", [(), ("--resume",)])
    def test_second_run_is_refused_with_the_owner_of_the_first(self, config: Path, options: tuple[str, ...]) -> None:
        stopped(config)
        before = files(config.parent / "run")
        command = [sys.executable, "-c", self.HOLD, str(config.parent / "run")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            assert_refused(train(config, *options), "a run is going on in this directory", f"process {other.pid} on")
            other.kill()
        assert files(config.parent / "run") == before

    def test_lock_of_a_dead_process_does_not_matter(self, config: Path) -> None:
        stopped(config)
        assert (config.parent / "run" / "run.lock").is_file()
        assert train(config, "--resume").exit_code == 0
        assert not (config.parent / "run" / "run.lock").exists()

    def test_file_system_without_locks_is_told(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("gpta_local.record.folder.fcntl.flock", none)
        assert_refused(train(config), "the file system has no locks", "local disk")

    def test_history_that_another_program_holds_is_told(self, config: Path) -> None:
        stopped(config)
        with sqlite3.connect(config.parent / "run" / "history.sqlite", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert_refused(train(config, "--resume"), "history.sqlite", "database is locked")
        assert train(config, "--resume").exit_code == 0


@pytest.mark.slow
@NEEDS_MOUNTS
class TestDisks:
    def run(self, config: Path, script: str) -> subprocess.CompletedProcess[str]:
        """The script in a name space of its own, whose mounts end with it."""
        program = f'{sys.executable} -c "from gpta_local.cli.main import main; main()"'
        helpers = f"""
            cd {config.parent}
            train() {{ {program} train {config} --output $1 --quiet --resume; echo "exit $?"; }}
        """
        command = ["unshare", "-m", "sh", "-c", helpers + script]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def test_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(self, config: Path) -> None:
        """Wherever the disk fills up, from room for hardly anything to room for half of the run."""
        stopped(config, "choose_label_texts", Search)
        done = self.run(
            config,
            """
            mkdir disk && mount -t tmpfs -o size=64m none disk && cp -r run disk/run
            for kib in 12 150 400 700; do
                free=$(df --output=avail -k disk | tail -1)
                head -c $(( (free - kib) * 1024 )) /dev/zero > disk/ballast
                train disk/run; rm disk/ballast
            done
            train disk/run > last; tail -1 last; cp -r disk/run done
            """,
        )
        codes = done.stdout.split("exit ")[1:]
        assert codes.count("1\n") >= 3 and codes[-1] == "0\n", done.stdout + done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert len(errors) == codes.count("1\n") and all("the disk is full" in line for line in errors), done.stderr
        assert "Traceback" not in done.stderr and "to go on: gpta-local train disk/run/config.yaml" in done.stderr
        assert outcome(config.parent / "done")

    def test_folder_that_cannot_be_written_is_told(self, config: Path) -> None:
        stopped(config)
        done = self.run(config, "mount --bind run run && mount -o remount,ro,bind run && train run")
        assert done.stdout == "exit 2\n", done.stdout + done.stderr
        assert "Read-only file system" in done.stderr and "Traceback" not in done.stderr


def test_run_object_refuses_a_finished_folder_quietly(config: Path) -> None:
    assert train(config).exit_code == 0
    from gpta_local.config import load

    summary = Run(load(config), Silent()).run(config.parent / "run", resume=True)
    assert summary == json.loads((config.parent / "run" / "summary.json").read_text())


def test_error_of_the_endpoint_names_the_command_to_go_on_with(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpta_local.errors import EndpointError

    def gone(self: ReplayAssistant, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        raise EndpointError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(ReplayAssistant, "complete", gone)
        result = train(config)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("to go on: gpta-local train")
    assert train(config, "--resume").exit_code == 0


def test_wrong_input_names_no_command_to_go_on_with(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Search, number: int) -> str:
        raise InputError("no")

    monkeypatch.setattr(Search, "budget_reached", refuse)
    assert "to go on" not in train(config).stderr
