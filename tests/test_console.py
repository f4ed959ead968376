"""What is shown while a run waits, and how a command ends whose output nobody reads any more."""

from __future__ import annotations

import re
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
from gpta_local.schema import ExampleText, Round


@pytest.fixture
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(console, "QUICK_SECONDS", 0.0)


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
    figures = {"rows": 40, "accuracy": 0.75, "macro_f1": 0.75, "interval": [0.5, 0.9]}
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
    assert lines[0].split("  ")[0] == "40 test rows"
    assert [line.split("  ")[0] for line in lines[1:3]] == ["training from the label texts", "plain fine-tuning"]
    assert lines[3] == ""


FOUND = {
    "prefix": "What this message asks for, in the words of the department that has to answer it:",
    "product_is_plain": False,
    "evaluated_on": "cross-validated training",
    "seconds": {"total": 100.0},
    "cost": {"completions": 40},
    "audit_head": "0" * 64,
    "arms": {
        name: {"rows": 48, "accuracy": 0.75, "macro_f1": 0.75, "interval": [0.5, 0.9]}
        for name in ("gpta", "no_prefix", "card", "plain")
    },
    "differences": {
        name: {"value": value, "low": 0.01, "high": 0.2, "verdict": "gain"}
        for name, value in (("no_prefix", 0.1), ("card", 0.11), ("plain", 0.12))
    },
    "templates": ["one", "two"],
    "example_texts": {"usable": 201, "kept": 98, "used": True},
}


def test_result_shows_what_a_buyer_compares_and_the_model_last(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_result(FOUND, "runs/one")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [
        "48 cross-validated training rows",
        "plain fine-tuning",
        "your label names and meanings alone",
        "this model",
    ]
    assert "All that the assistant wrote gains +11.0 points" in "\n".join(lines)


def test_no_line_breaks_a_word_on_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    meanings = {"appointments": "booking, moving or cancelling a visit", "technical_support": "trouble with the login"}
    text = "I cannot find the letter that you said you had sent to my employer three weeks ago, can you send it again?"
    with console.TerminalObserver(4) as observer:
        observer.note("clinic: text-classification, 7 labels; 56 training, 70 validation, 315 test rows; and so on, on")
        observer.warn("none of 8 replies had usable label texts; the head starts from the words of the card alone")
        observer.label_texts([meanings, meanings, meanings], 2, 8, 8)
        observer.example_texts([ExampleText("appointments", text), ExampleText("technical_support", text)], 32)
        observer.stage('training with "What this message asks for, in the words of the department that answers it:"', 3)
        observer.advance()
    console.show_result(FOUND, "runs/one")
    printed = capsys.readouterr()
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", line) for line in (printed.err + printed.out).splitlines()]
    shown = [line for line in lines if not re.fullmatch("[0-9a-f]{64}", line.removeprefix("audit head: "))]
    assert max(map(len, shown)) <= 80
    words = set(" ".join(shown).split())
    assert set(text.split()) <= words and {"cross-validated", "cancelling", "department"} <= words
