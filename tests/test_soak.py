"""Long runs: memory and the time of a round stay as they are. `make soak` prints the figures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from samples import Silent, config_of, label_text_reply, record_replies, sentiment_rows

from gpta_local.run.loop import Run
from gpta_local.schema import Round

ROUNDS = 500
WARM = 100
"""Rounds after which all that is kept once is there."""
MEBIBYTES = 16
"""That memory may grow in the rounds after."""


def resident() -> float:
    """MiB of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Watch(Silent):
    """Notes memory and time after each round."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[float] = []
        self.times: list[float] = []

    def round(self, entry: Round) -> None:
        self.memory.append(resident())
        self.times.append(time.monotonic())


@pytest.mark.soak
@pytest.mark.parametrize("regime", ["low-resource", "online"])
def test_memory_is_flat_over_five_hundred_rounds(tmp_path: Path, sentence: Path, regime: str) -> None:
    words = ("taste", "table", "soup", "visit", "guest", "waiter", "price", "noise", "garden", "menu")
    replies = [f"{a} of {b} {c}:" for a in words for b in words for c in words]
    record_replies(tmp_path / "record", [label_text_reply({"bad": "unhappy", "good": "happy"})], replies)
    changes: dict[str, Any] = {
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "search": {"rounds": ROUNDS, "proposals": 2, "regime": regime},
        "training": {"steps": ROUNDS},
        "finish": {"plain_control": False},
    }
    watch = Watch()
    Run(config_of(tmp_path, sentiment_rows(), changes), watch).run(tmp_path / "run")
    assert len(watch.memory) == ROUNDS
    for number in (1, WARM, 200, 300, 400, 500):
        seconds = watch.times[number - 1] - watch.times[0]
        sys.stderr.write(f"{regime}, round {number}: {watch.memory[number - 1]:.0f} MiB after {seconds:.0f} s\n")
    assert max(watch.memory[WARM:]) - watch.memory[WARM - 1] < MEBIBYTES
