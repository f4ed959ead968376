"""Hundreds of inputs that cannot be used: each is one clear message and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_inputs import CANARY, CASES, write_good, write_rows
from commands import assert_refused, invoke

from gpta_local.config import load
from gpta_local.errors import InputError
from gpta_local.tasks import open_task

SEEN_BY_THE_COMMAND = (
    "search.max_prefix_tokens: 500",
    "training.device: tpu",
    "training.device: cuda:99",
    "training.device: cpu:x",
    "dialogue_gradient: {}",
    "assistant.run: missing",
    "assistant.run: train.jsonl",
    "assistant with an address of no host",
    "assistant with a port that is none",
    "assistant with a broken IPv6 address",
    "assistant with a password in the address",
    "assistant with a variable that is not set",
    "assistant with a missing key file",
    "assistant with terminal codes",
    "assistant whose model folder is missing",
    "assistant whose model folder is no model",
    "assistant whose adapter is missing",
    "card: an e-mail address",
    "assistant: a recorded run with too few replies",
)
"""Neither the configuration nor the rows are wrong by themselves."""
ONE_OF_EACH_KIND = (
    "config: missing",
    "config: a folder",
    "config: half JSON",
    "config: bytes",
    "config: keys of another tool",
    "training.steps: x",
    "downstream.backbone: missing",
    "jsonl with half a line",
    "csv with a field too many",
    "parquet cut off",
    "folder of broken JSON",
    "validation: a label that training rows have not",
)
WHILE_RUNNING = {"assistant: a recorded run with too few replies"}
"""What can only be seen once the run has begun; its record stays."""


def assert_clear(message: str) -> None:
    assert len(message.splitlines()) <= 15 and len(message) < 3000
    assert "\x1b" not in message and "\x00" not in message
    assert CANARY not in message


def test_what_the_cases_break_is_good_before(sentence: Path, tmp_path: Path) -> None:
    write_good(tmp_path, sentence)
    assert invoke("train", tmp_path / "config.yaml", "--output", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize("name", sorted(CASES.keys() - {*SEEN_BY_THE_COMMAND}))
def test_broken_input_is_one_clear_message_and_shows_no_row(name: str, sentence: Path, tmp_path: Path) -> None:
    damage, words = CASES[name]
    write_rows(tmp_path, sentence)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        open_task(load(tmp_path / "config.yaml"))
    message = str(caught.value)
    assert_clear(message)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", [*SEEN_BY_THE_COMMAND, *ONE_OF_EACH_KIND])
def test_command_says_it_ends_with_code_2_and_writes_nothing(name: str, sentence: Path, tmp_path: Path) -> None:
    damage, words = CASES[name]
    write_good(tmp_path, sentence)
    damage(tmp_path)
    result = invoke("train", tmp_path / "config.yaml", "--output", tmp_path / "run")
    assert_refused(result, *words)
    assert_clear(result.stderr[result.stderr.index("error: ") :])
    assert (tmp_path / "run").exists() == (name in WHILE_RUNNING)
