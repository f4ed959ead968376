"""Hundreds of inputs that cannot be used: each is one clear message and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_inputs import CASES, write_good
from commands import assert_refused, invoke

LINES = 15
"""Most lines of a message."""
WHILE_RUNNING = {"assistant: a recorded run with too few replies"}
"""What can only be seen once the run has begun; its record stays."""


def test_what_the_cases_break_is_good_before(sentence: Path, tmp_path: Path) -> None:
    write_good(tmp_path, sentence)
    assert invoke("train", tmp_path / "config.yaml", "--output", tmp_path / "run").exit_code == 0


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 300


@pytest.mark.parametrize("name", CASES)
def test_broken_input_is_one_clear_message_and_nothing_is_written(name: str, sentence: Path, tmp_path: Path) -> None:
    damage, words = CASES[name]
    write_good(tmp_path, sentence)
    damage(tmp_path)
    result = invoke("train", tmp_path / "config.yaml", "--output", tmp_path / "run")
    assert_refused(result, *words)
    message = result.stderr[result.stderr.index("error: ") :]
    assert len(message.splitlines()) <= LINES
    assert len(message) < 3000
    assert "\x1b" not in message and "\x00" not in message
    assert (tmp_path / "run").exists() == (name in WHILE_RUNNING)
