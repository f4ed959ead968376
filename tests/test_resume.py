"""Going on with a run that was stopped: what is done again, what is refused, and what the user is told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from commands import ROOT, assert_refused, invoke
from killing import outcome
from samples import config_of, label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.downstream.training import Training
from gpta_local.errors import InputError
from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify
from gpta_local.run import loop
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.finish import Finish
from gpta_local.run.loop import Run
from gpta_local.run.search import Search
from gpta_local.schema import Completion, Request, Sampling

REPLIES = ("Guest note:", "Said of the meal:", "The visit was", "Menu", "Table talk:", "Kitchen:")


def make(folder: Path, backbone: Path) -> Path:
    """A configuration whose run takes a second, with validation and test rows."""
    rows = sentiment_rows()
    for split in ("validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", rows)
    record_replies(folder / "record", [label_text_reply({"bad": "an unhappy guest", "good": "a happy one"})], REPLIES)
    changes: dict[str, Any] = {
        "data": {"validation": "validation.jsonl", "test": "test.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(backbone)},
        "search": {"rounds": 2},
        "training": {"steps": 4, "checkpoint_seconds": 0},
    }
    config_of(folder, rows, changes)
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def config(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of all runs whose inputs stay as they are."""
    return make(tmp_path_factory.mktemp("config"), sentence)


@pytest.fixture
def own(sentence: Path, tmp_path: Path) -> Path:
    """A configuration whose files a test may change."""
    return make(tmp_path, sentence)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run of it from beginning to end."""
    assert train(config, config.parent / "whole").exit_code == 0
    return config.parent / "whole"


@pytest.fixture(scope="module")
def searched(config: Path) -> Path:
    """A run of it that was stopped after the search."""
    stopped(config, config.parent / "searched")
    return config.parent / "searched"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a test makes its run."""
    return tmp_path / "run"


@pytest.fixture
def begun(searched: Path, run: Path) -> Path:
    """A run in `run` that was stopped after the search."""
    return shutil.copytree(searched, run)


@pytest.fixture
def finished(whole: Path, run: Path) -> Path:
    """A finished run in `run`."""
    return shutil.copytree(whole, run)


class Stop:
    """Stops a run instead of the n-th call of a method."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: type | ModuleType, method: str, at: int = 1) -> None:
        original, self.calls = getattr(owner, method), 0

        def counted(of: Any, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise KeyboardInterrupt
            return original(of, *arguments, **named)

        patch.setattr(owner, method, counted)


def train(config: Path, run: Path, *options: object) -> Result:
    return invoke("train", config, "--output", run, *options)


def stopped(config: Path, run: Path, method: str = "contest", owner: type | ModuleType = Finish, at: int = 1) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, owner, method, at)
        result = train(config, run)
    assert result.exit_code == 3, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    """All but the lock, which tells who was there last."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (Search, "choose_label_texts", 1),
        (Search, "score", 1),
        (Search, "judge", 2),
        (FineTuner, "fine_tune", 2),
        (FineTuner, "measure", 3),
        (Run, "write", 1),
        (loop, "write_report", 1),
        (loop, "track", 1),
    ],
)
def test_run_that_was_stopped_ends_as_one_that_was_not(
    config: Path, run: Path, whole: Path, owner: type | ModuleType, method: str, at: int
) -> None:
    stopped(config, run, method, owner, at)
    result = train(config, run, "--resume")
    assert result.exit_code == 0, result.output
    assert outcome(run) == outcome(whole)


class TestNothingIsDoneTwice:
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_only_the_request_that_was_not_answered_is_asked_again_and_the_log_tells(
        self, config: Path, run: Path, at: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            asked = Stop(patch, ReplayAssistant, "complete", at)
            assert train(config, run).exit_code == 3
            assert train(config, run, "--resume").exit_code == 0
        assert asked.calls == 3 + 1
        history = open_existing(run)
        assert [len(texts) for texts in history.texts().values()] == [1, 3, 3]
        history.close()
        found = verify(run)
        assert found.problems == []
        assert [e.unanswered for e in found.entries if e.event == "resumed"] == [at]
        assert f"request {at} is sent once more" in invoke("audit", "show", run).stdout

    def test_rounds_on_record_are_not_scored_again(self, config: Path, run: Path) -> None:
        stopped(config, run, "propose", Search, at=2)
        with pytest.MonkeyPatch.context() as patch:
            scored = Stop(patch, Search, "score", at=0)
            assert train(config, run, "--resume").exit_code == 0
        assert scored.calls == 1

    def test_finished_fine_tunings_are_not_taken_again(self, config: Path, run: Path) -> None:
        stopped(config, run, "evaluate")
        with pytest.MonkeyPatch.context() as patch:
            steps = Stop(patch, Training, "_step", at=0)
            assert train(config, run, "--resume").exit_code == 0
        assert steps.calls == 0

    def test_training_goes_on_from_its_checkpoint(self, config: Path, run: Path, whole: Path) -> None:
        stopped(config, run, "_step", Training, at=3)
        with pytest.MonkeyPatch.context() as patch:
            steps = Stop(patch, Training, "_step", at=0)
            assert train(config, run, "--resume").exit_code == 0
        lines = (whole / "metrics.jsonl").read_text().splitlines()
        assert steps.calls == sum(len(json.loads(line)["losses"]) for line in lines) - 2
        assert outcome(run) == outcome(whole)

    def test_line_of_metrics_that_was_cut_off_is_written_again(self, config: Path, run: Path) -> None:
        stopped(config, run, "evaluate")
        metrics = run / "metrics.jsonl"
        whole = metrics.read_bytes()
        metrics.write_bytes(whole[:-30])
        assert train(config, run, "--resume").exit_code == 0
        titles = [json.loads(line)["title"] for line in metrics.read_text().splitlines()]
        assert len(titles) == len(set(titles)) and metrics.read_bytes().startswith(whole)

    def test_time_before_the_pause_counts(self, config: Path, begun: Path) -> None:
        with sqlite3.connect(begun / "history.sqlite") as db:
            db.execute("UPDATE runs SET seconds = 1000")
        assert train(config, begun, "--resume").exit_code == 0
        summary = json.loads((begun / "summary.json").read_text())
        assert 1000 < summary["seconds"]["total"] < 1600


class TestWhatTheUserIsTold:
    def test_ctrl_c_names_the_command_to_go_on_with(self, config: Path, run: Path) -> None:
        last = stopped(config, run).stderr.splitlines()[-1]
        assert last == f"stopped. To go on: gpta-local train {run}/config.yaml --output {run} --resume"
        assert invoke(*last.split()[5:]).exit_code == 0

    def test_folder_with_a_stopped_run_is_not_begun_in(self, config: Path, begun: Path) -> None:
        before = files(begun)
        assert_refused(train(config, begun), "a run of this configuration was stopped in this directory", "--resume")
        assert files(begun) == before

    def test_folder_with_a_finished_run_is_not_begun_in(self, config: Path, finished: Path) -> None:
        assert_refused(train(config, finished), "a finished run is in this directory")

    def test_finished_run_is_said_to_be_finished(self, config: Path, finished: Path) -> None:
        before = files(finished)
        result = train(config, finished, "--resume")
        assert result.exit_code == 0 and "the run is finished" in result.stdout
        assert files(finished) == before

    def test_nothing_to_go_on_with_is_a_beginning(self, config: Path, run: Path) -> None:
        run.mkdir()
        (run / "run.lock").write_text("{}", encoding="utf-8")
        assert train(config, run, "--resume").exit_code == 0
        assert (run / "summary.json").is_file()

    def test_other_order_of_the_labels_is_another_configuration(self, own: Path, run: Path) -> None:
        text = own.read_text(encoding="utf-8")
        card = "card:\n  labels: {bad: an unhappy guest, good: a happy one}\n"
        own.write_text(text.replace("card:\n", card), encoding="utf-8")
        stopped(own, run)
        other = "card:\n  labels: {good: a happy one, bad: an unhappy guest}\n"
        own.write_text(text.replace("card:\n", other), encoding="utf-8")
        assert_refused(train(own, run, "--resume"), "another configuration: card.labels")

    def test_other_configuration_is_refused_and_its_keys_named(self, config: Path, begun: Path) -> None:
        before = files(begun)
        changed = train(config, begun, "--resume", "--set", "search.rounds=3", "--set", "seed=1")
        assert_refused(changed, "another configuration: search.rounds, seed")
        assert_refused(train(config, begun, "--set", "seed=1"), "a run of another configuration", "seed")
        assert files(begun) == before

    @pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "config.yaml"])
    def test_file_that_was_changed_meanwhile_is_refused_by_name(self, own: Path, run: Path, name: str) -> None:
        stopped(own, run)
        changed = own.parent / name if name != "config.yaml" else run / name
        changed.write_bytes(changed.read_bytes() + b"\n")
        before = files(run)
        assert_refused(train(own, run, "--resume"), f"'{name}' is not the file that the run began with")
        assert files(run) == before

    def test_other_version_of_a_library_is_a_warning(
        self, config: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpta_local.record.audit.platform.python_version", lambda: "3.99.0")
        result = train(config, begun, "--resume")
        assert result.exit_code == 0 and "warning: python is of another version" in result.stderr

    def test_purged_run_is_refused(self, config: Path, begun: Path) -> None:
        assert invoke("purge", begun, "--yes").exit_code == 0
        assert_refused(train(config, begun, "--resume"), "the texts of this run were purged")

    def test_run_of_an_earlier_version_is_refused(self, config: Path, begun: Path) -> None:
        with sqlite3.connect(begun / "history.sqlite") as db:
            db.execute("PRAGMA user_version = 4")
        assert_refused(train(config, begun, "--resume"), "the history is of version 4", "begin a new run")

    def test_request_that_would_be_another_is_refused(self, config: Path, run: Path) -> None:
        stopped(config, run, "score", Search)
        with sqlite3.connect(run / "history.sqlite") as db:
            db.execute("UPDATE requests SET messages = '[]' WHERE kind = 'prefix'")
        assert_refused(train(config, run, "--resume"), "in round 1 the run had asked something else")

    def test_stopped_run_below_runs_is_offered_and_found(
        self, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            Stop(patch, Finish, "contest")
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
    def test_second_run_is_refused_with_the_owner_of_the_first(
        self, config: Path, begun: Path, options: tuple[str, ...]
    ) -> None:
        before = files(begun)
        command = [sys.executable, "-c", self.HOLD, str(begun)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            assert_refused(
                train(config, begun, *options), "a run is going on in this directory", f"process {other.pid} on"
            )
            other.kill()
        assert files(begun) == before

    def test_lock_of_a_dead_process_does_not_matter(self, config: Path, begun: Path) -> None:
        assert (begun / "run.lock").is_file()
        assert train(config, begun, "--resume").exit_code == 0
        assert not (begun / "run.lock").exists()

    def test_file_system_without_locks_is_told(self, config: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("gpta_local.record.folder.fcntl.flock", none)
        assert_refused(train(config, run), "the file system has no locks", "local disk")

    def test_history_that_another_program_holds_is_told(self, config: Path, begun: Path) -> None:
        with sqlite3.connect(begun / "history.sqlite", isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert_refused(train(config, begun, "--resume"), "history.sqlite", "database is locked")
        assert train(config, begun, "--resume").exit_code == 0


@pytest.mark.parametrize("flushes", [3, 30])
def test_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    config: Path, run: Path, whole: Path, flushes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, fsync = iter(range(flushes)), os.fsync

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = train(config, run)
    assert result.exit_code == 1 and "Traceback" not in result.output
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error"))
    assert "the disk is full" in error and f"to go on: gpta-local train {run}/config.yaml" in result.stderr
    assert train(config, run, "--resume").exit_code == 0
    assert outcome(run) == outcome(whole)


def test_error_of_the_endpoint_names_the_command_to_go_on_with(
    config: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpta_local.errors import EndpointError

    def gone(self: ReplayAssistant, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        raise EndpointError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(ReplayAssistant, "complete", gone)
        result = train(config, run)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("to go on: gpta-local train")
    assert train(config, run, "--resume").exit_code == 0


def test_wrong_input_names_no_command_to_go_on_with(config: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Search, number: int) -> str:
        raise InputError("no")

    monkeypatch.setattr(Search, "budget_reached", refuse)
    assert "to go on" not in train(config, run).stderr
