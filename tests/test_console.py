"""What is shown while a run waits, and how a command ends whose output nobody reads any more."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import PROGRAM, ROOT
from samples import record_replies, scored

from gpta_local.cli import console
from gpta_local.record.history import open_existing
from gpta_local.schema import Round


@pytest.fixture
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "HEARTBEAT_SECONDS", 0.1)


def test_what_is_waited_for_is_told_where_there_is_no_terminal(
    quick_heart: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.TerminalObserver(1) as observer:
        observer.stage("round 2: asking for prefixes", 2)
        observer.advance()
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3
    assert set(lines) == {"round 2: asking for prefixes: 1 of 2 after 0 s"}


def test_stage_that_is_done_and_a_run_that_has_ended_are_silent(
    quick_heart: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.TerminalObserver(1) as observer:
        observer.stage("evaluating", 1)
        observer.advance()
        time.sleep(0.25)
        observer.stage("writing", 1)
    time.sleep(0.25)
    assert capsys.readouterr().err.splitlines() == ["evaluating: done in 0.0 s"]


def test_quiet_run_has_no_heartbeat(quick_heart: None, capsys: pytest.CaptureFixture[str]) -> None:
    with console.TerminalObserver(1, quiet=True) as observer:
        observer.stage("evaluating", 1)
        time.sleep(0.25)
    assert capsys.readouterr().err == ""


def run_without_a_reader(*arguments: object) -> tuple[int, str]:
    """Status and messages of a command whose output's reader goes before it prints."""
    command: Sequence[str] = [*PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        return process.wait(60), process.stderr.read()


@pytest.mark.parametrize("command", ["history", "doctor"])
def test_output_that_nobody_reads_ends_the_command_as_it_ends_others(command: str, tmp_path: Path) -> None:
    """By the signal of a broken pipe and without a word; through click's printing and through rich's."""
    run = record_replies(tmp_path / "run", [], [])
    record = open_existing(run)
    record.add_round(Round(1, {}, (), (scored("Review:", 0.1),), scored("Review:", 0.1), None, 1.0))
    record.close()
    arguments = {"history": ("history", run), "doctor": ("doctor",)}[command]
    assert run_without_a_reader(*arguments) == (-signal.SIGPIPE, "")


def test_plain_model_that_is_the_product_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"accuracy": 0.75, "macro_f1": 0.75, "interval": [0.5, 0.9]}
    better = {"value": 0.1, "low": 0.01, "high": 0.2, "verdict": "gain"}
    result = {
        "prefix": "",
        "product_is_plain": True,
        "evaluated_on": "test",
        "seconds": {"total": 1.0},
        "cost": {"completions": 1},
        "audit_head": "0",
        "arms": dict.fromkeys(("gpta", "no_prefix", "plain"), figures),
        "differences": {"no_prefix": better},
        "templates": [],
        "example_texts": {"usable": 0, "kept": 0, "used": False},
    }
    console.show_result(result, "runs/one")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["plain fine-tuning", "training from the label texts"]
    assert lines[3] == ""
