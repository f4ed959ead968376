"""Runs that are killed, again and again, end as if they had not been: weights, history, choice and figures
to the bit, and an audit log in order. `make kills` runs the long form and prints its figures."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from chat_models import tiny_chat_llama
from killing import finish, killed, killed_and_resumed, outcome
from samples import LABEL_TEXTS, PREFIXES, QUICKSTART, label_text_reply, record_replies

MORE = tuple(f"{prefix} {word}" for word in ("now", "here", "please") for prefix in PREFIXES)
"""Enough proposals for three rounds."""
SMALL = (
    *("search.rounds=3", "search.proposals=4", "search.label_text_samples=1", "search.max_prefix_tokens=24"),
    *("training.steps=9", "training.precision=fp32", "training.checkpoint_seconds=0.02", "finish.finalists=2"),
    "data.test=validation.jsonl",
)
QUICKSTART_SIZE = (
    *("search.rounds=2", "search.proposals=6", "search.label_text_samples=2", "data.test=validation.jsonl"),
    *("training.steps=8", "training.checkpoint_seconds=1", "finish.finalists=1"),
)
TEACHING = "dialogue_gradient={steps: 3, batch_size: 4}"


def command(*overrides: str) -> list[object]:
    sets = (word for override in overrides for word in ("--set", override))
    return ["train", QUICKSTART / "quickstart.yaml", *sets]


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


@pytest.fixture
def small(tmp_path: Path, sentence: Path) -> list[str]:
    """A run of three rounds with a tiny backbone and recorded replies."""
    record_replies(tmp_path / "record", [label_text_reply(LABEL_TEXTS)], PREFIXES + MORE)
    return [*SMALL, f"downstream.backbone={sentence}", f"assistant={{backend: replay, run: {tmp_path / 'record'}}}"]


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["low-resource", "online"])
def test_run_killed_while_it_writes_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, small: list[str], regime: str
) -> None:
    given = command(*small, f"search.regime={regime}")
    finish([*given, "--output", tmp_path / "whole"], tmp_path / "whole.out")
    kills = 0
    while killed([*given, "--output", tmp_path / "run", "--resume"], tmp_path / "run.out", writes=2 + 3 * kills):
        kills += 1
    assert kills >= 5
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_run_killed_while_its_assistant_learns_ends_as_one_that_was_not(tmp_path: Path, small: list[str]) -> None:
    assistant = f"assistant={{backend: local, model: {tiny_chat_llama(tmp_path / 'chat')}}}"
    given = command(*small[:-1], "search.rounds=2", assistant, TEACHING)
    seconds = finish([*given, "--output", tmp_path / "whole"], tmp_path / "whole.out")
    kills = killed_and_resumed(given, tmp_path / "run", random.Random(7), seconds / 4, most=3)
    assert kills >= 1
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.kills
def test_fifty_kills_at_random_moments_change_nothing(chat_model: Path, tmp_path: Path) -> None:
    size = (*QUICKSTART_SIZE, f"assistant.model={chat_model}", "assistant.max_new_tokens=8")
    kinds = {
        "low-resource": command(*size),
        "low-resource, dialogue gradient": command(*size, TEACHING),
        "online, dialogue gradient": command(*size, TEACHING, "search.regime=online"),
    }
    rng, began, kills, runs = random.Random(0), time.monotonic(), 0, 0
    whole, seconds = {}, {}
    for kind, given in kinds.items():
        folder = tmp_path / kind.replace(", ", "-").replace(" ", "-")
        seconds[kind] = finish([*given, "--output", folder], folder.with_suffix(".out"), timeout=1200)
        whole[kind] = outcome(folder)
        say(f"{kind}: {seconds[kind]:.0f} s")
    while kills < 50:
        kind = list(kinds)[runs % len(kinds)]
        started, runs = time.monotonic(), runs + 1
        folder = tmp_path / f"run-{runs}"
        here = killed_and_resumed(kinds[kind], folder, rng, seconds[kind] / 3, most=min(8, 50 - kills))
        kills += here
        assert outcome(folder) == whole[kind], kind
        say(f"run {runs} ({kind}): {here} kills, {time.monotonic() - started:.0f} s, the same to the bit")
    say(f"{kills} kills in {runs} runs, {time.monotonic() - began:.0f} s")
