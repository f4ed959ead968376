"""`gpta-local train --seeds`: several runs of one configuration, and what they found together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from commands import assert_refused, invoke
from samples import label_text_reply, record_replies, sentiment_rows, write_config, write_jsonl

from gpta_local.metrics import mean_interval
from gpta_local.record.cache import CompletionCache
from gpta_local.schema import Ask, Completion, Message, Request, Sampling

LABEL_TEXTS = {"bad": "an unhappy visit", "good": "a happy evening"}
ASK = Ask(Request("prefix", (Message("user", "?"),)), 1, Sampling())


@pytest.fixture(scope="module")
def config(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows())
    record_replies(folder / "record", [label_text_reply(LABEL_TEXTS)], ["Guests say:", "Mood:", "Table:"])
    changes = {
        "data": {"test": "test.jsonl", "shots": 4},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "seed": 3,
    }
    return write_config(folder / "guests.yaml", changes)


@pytest.fixture(scope="module")
def finished(config: Path) -> tuple[Path, Result]:
    output = config.parent / "out"
    result = invoke("train", config, "--seeds", "2", "--jobs", "2", "--output", output)
    assert result.exit_code == 0, result.output
    return output, result


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text("utf-8")))


def losses(run: Path) -> list[float]:
    return [arm["loss"] for arm in summary(run)["arms"].values()]


def test_each_seed_is_the_run_that_it_is_alone(config: Path, finished: tuple[Path, Result], tmp_path: Path) -> None:
    output, _ = finished
    assert sorted(path.name for path in output.glob("seed-*")) == ["seed-3", "seed-4"]
    assert invoke("train", config, "--set", "seed=4", "--output", tmp_path / "alone").exit_code == 0
    assert losses(tmp_path / "alone") == pytest.approx(losses(output / "seed-4"), abs=1e-5)
    assert losses(output / "seed-3") != pytest.approx(losses(output / "seed-4"), abs=1e-5)


def test_table_ends_with_the_mean_and_its_interval(finished: tuple[Path, Result]) -> None:
    output, result = finished
    found = json.loads((output / "seeds.json").read_text("utf-8"))
    accuracies = [summary(output / f"seed-{seed}")["arms"]["gpta"]["accuracy"] for seed in (3, 4)]
    expected = mean_interval(np.array(accuracies))
    assert found["mean"]["accuracy"] == {"value": expected.value, "low": expected.low, "high": expected.high}
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[1:6]] == ["3", "4", "mean", "low", "high"]
    assert lines[1][1] == f"{accuracies[0]:.3f}" and lines[3][1] == f"{expected.value:.3f}"
    assert "less plain" in result.stdout and "24 test rows" in result.stdout


def test_same_command_makes_what_is_missing_and_no_more(
    config: Path, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished[0], tmp_path / "out"))
    before = (output / "seed-4" / "summary.json").stat().st_mtime_ns
    shutil.rmtree(output / "seed-3")
    result = invoke("train", config, "--seeds", "3,4", "--output", output)
    assert result.exit_code == 0 and "2 runs in" in result.stderr and "; 1 are there" in result.stderr
    assert (output / "seed-4" / "summary.json").stat().st_mtime_ns == before
    assert losses(output / "seed-3") == pytest.approx(losses(finished[0] / "seed-3"), abs=1e-5)


def test_runs_of_another_configuration_are_refused(config: Path, finished: tuple[Path, Result]) -> None:
    result = invoke("train", config, "--seeds", "2", "--set", "data.shots=5", "--output", finished[0])
    assert_refused(result, "another configuration", "data.shots", "--output")


def test_directory_of_something_else_is_refused(config: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x")
    assert_refused(invoke("train", config, "--seeds", "2", "--output", tmp_path), "something in this directory")


@pytest.mark.parametrize("seeds", ["0", "-1", "two", "3,3", "3,x", "1.5", "", "99999999999,1"])
def test_what_is_no_seed_is_one_message(config: Path, seeds: str, tmp_path: Path) -> None:
    result = invoke("train", config, f"--seeds={seeds}", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "seeds" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_fails_in_every_run_is_told_once(config: Path, tmp_path: Path) -> None:
    gone = ("--set", "data.train=gone.jsonl", "--seeds", "2", "--output", tmp_path / "out", "--quiet")
    assert_refused(invoke("train", config, *gone), "gone.jsonl")


def test_one_value_leaves_the_interval_open() -> None:
    assert mean_interval(np.array([0.5])).low == float("-inf")


def test_interval_is_that_of_student() -> None:
    found = mean_interval(np.array([0.70, 0.72, 0.74]))  # s = 0.02, t(0.975, 2) = 4.3027
    assert (found.value, found.high - found.value) == pytest.approx((0.72, 4.3027 * 0.02 / 3**0.5), abs=1e-5)


def test_who_asks_the_same_at_the_same_time_waits_for_the_answer(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from test_seeds import ASK\n"
        "from gpta_local.record.cache import CompletionCache; from gpta_local.schema import Completion\n"
        "cache = CompletionCache(Path(sys.argv[1]), 'm')\n"
        "with cache.asking([ASK]):\n"
        "    print('asking', flush=True); time.sleep(0.5); cache.keep(ASK, [Completion('yes', 'm')])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"asking\n"
        cache = CompletionCache(tmp_path, "m")
        assert not cache.known(ASK)
        with cache.asking([ASK]):
            assert cache.known(ASK) == [Completion("yes", "m")]
