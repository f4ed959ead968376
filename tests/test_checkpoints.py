"""Checkpoints: what is written comes back to the bit, the newest whole one counts, old ones go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpta_local.record.checkpoints import Checkpoints

TENSORS = {"a": torch.tensor([0.1, float("-inf"), 1e-45]), "b": torch.tensor(3.0), "c": torch.arange(4)[::2]}
STATE = {"losses": [0.1, 1 / 3, 2.0**-1074], "groups": [{"betas": [0.9, 0.999], "fused": True, "x": None}]}
WRITE_FOREVER = """
import sys, torch
from pathlib import Path
from gpta_local.record.checkpoints import Checkpoints
checkpoints, step = Checkpoints(Path(sys.argv[1]), 60, print), 0
while True:
    step += 1
    checkpoints.write("a", step, {"weights": torch.full((250_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, told: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", 60, told.append)


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name[:10] for path in (tmp_path / "checkpoints").iterdir())


def test_tensors_and_state_come_back_to_the_bit(checkpoints: Checkpoints) -> None:
    checkpoints.write("a", 1, TENSORS, STATE)
    found = checkpoints.newest("a")
    assert found is not None and found.state == STATE
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert found.tensors.keys() == TENSORS.keys()


def test_slot_without_a_checkpoint_has_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest("a") is None
    checkpoints.write("a-b", 1, TENSORS, {})
    assert checkpoints.newest("a") is None


def test_newest_counts_and_only_two_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoints.write("a", step, TENSORS, {"step": step})
    found = checkpoints.newest("a")
    assert found is not None and found.state == {"step": 100}
    assert names(tmp_path) == ["a-00000010", "a-00000100"]
    checkpoints.write("a", 101, TENSORS, {}, kept=1)
    assert names(tmp_path) == ["a-00000101"]


@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty"])
def test_damaged_one_is_named_and_the_one_before_is_used(
    checkpoints: Checkpoints, tmp_path: Path, told: list[str], damage: str
) -> None:
    for step in (1, 2):
        checkpoints.write("a", step, TENSORS, {"step": step})
    newest = max((tmp_path / "checkpoints").iterdir())
    content = newest.read_bytes()
    changed = {"cut off": content[:-1], "a bit": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}[damage]
    newest.write_bytes(changed)
    found = checkpoints.newest("a")
    assert found is not None and found.state == {"step": 1}
    assert told == [f"{newest} is damaged and left out"]


def test_writer_that_is_killed_leaves_a_whole_one(checkpoints: Checkpoints, tmp_path: Path, told: list[str]) -> None:
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "checkpoints")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(4)]
        writer.kill()
    found = checkpoints.newest("a")
    assert found is not None and found.state["step"] >= int(said[-1])
    assert bool((found.tensors["weights"] == found.state["step"]).all())
    assert told == []


def test_clear_leaves_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.clear()
    checkpoints.write("a", 1, TENSORS, {})
    (tmp_path / "checkpoints" / "a.partial").write_bytes(b"half")
    checkpoints.clear()
    assert not (tmp_path / "checkpoints").exists()
