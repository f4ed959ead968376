"""`accelerate launch -m gpta_local train`: several processes train one model together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import ROOT, invoke
from samples import Silent, label_text_reply, record_replies, sentiment_rows, write_config, write_jsonl

from gpta_local.config import load
from gpta_local.downstream.team import Order, Team
from gpta_local.errors import DataError
from gpta_local.record.checkpoints import Checkpoint
from gpta_local.run.loop import Run, take_part
from gpta_local.run.plan import THOUSANDS_OF_ROWS

pytestmark = pytest.mark.slow

LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    *("-m", "gpta_local"),
)
"""--multi_gpu is accelerate's word for several processes; without a GPU they talk by gloo."""


@pytest.fixture(scope="module")
def folder(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An online run of few rows, and a backbone without dropout: what one process and two draw would differ."""
    folder = tmp_path_factory.mktemp("team")
    backbone = Path(shutil.copytree(sentence, folder / "backbone"))
    config = next(backbone.rglob("config.json"))
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | plain))
    for split in ("train", "validation", "test"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows()[: 24 if split == "train" else 11])
    record_replies(folder / "record", [label_text_reply({"bad": "a sad visit", "good": "a glad visit"})], ["Mood:"] * 6)
    changes = {
        "data": {"test": "test.jsonl", "validation": "validation.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(backbone)},
        "search": {"regime": "online", "rounds": 2},
        "training": {"steps": 30, "batch_size": 7, "checkpoint_seconds": 0},
    }
    write_config(folder / "guests.yaml", changes)
    return folder


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCH, "train", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    with start(*arguments) as process:
        output, messages = process.communicate(timeout=300)
    return subprocess.CompletedProcess(LAUNCH, process.returncode, output, messages)


@pytest.fixture(scope="module")
def together(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = launch(folder / "guests.yaml", "--output", folder / "together")
    assert done.returncode == 0, done.stderr
    return folder / "together", done


def losses(run: Path) -> dict[str, list[float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["title"]: line["losses"] for line in lines}


def figures(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    return {name: (arm["accuracy"], arm["loss"]) for name, arm in summary["arms"].items()}


def test_two_processes_find_what_one_does(
    folder: Path, together: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    assert invoke("train", folder / "guests.yaml", "--output", folder / "alone").exit_code == 0
    alone, run = losses(folder / "alone"), losses(together[0])
    assert alone.keys() == run.keys() and len(alone) == 4
    for title in alone:
        assert run[title] == pytest.approx(alone[title], abs=1e-4)
    for name, (accuracy, loss) in figures(folder / "alone").items():
        assert figures(together[0])[name] == (accuracy, pytest.approx(loss, abs=1e-4))


def test_two_processes_find_on_thousands_of_rows_what_one_does(folder: Path) -> None:
    """They compare on shares of the rows, and train the winner on all."""
    cities = ["Rome", "Oslo", "Lima", "Cairo", "Delhi", "Paris", "Kiev"]
    more = [f"in {city} on {day} May" for city in cities for day in range(1, 13)]
    rows = [{**row, "text": f"{row['text']} {words}"} for words in more for row in sentiment_rows()]
    assert len(rows) >= THOUSANDS_OF_ROWS
    write_jsonl(folder / "many.jsonl", rows)
    (folder / "many.yaml").write_text(
        (folder / "guests.yaml").read_text("utf-8").replace("train.jsonl", "many.jsonl").replace("online", "auto")
    )
    done = launch(folder / "many.yaml", "--output", folder / "many-together")
    assert done.returncode == 0, done.stderr
    assert invoke("train", folder / "many.yaml", "--output", folder / "many-alone").exit_code == 0
    alone, run = losses(folder / "many-alone"), losses(folder / "many-together")
    assert list(run) == list(alone) and len(alone) in (3, 5) and "on 1/16 of the rows" in next(iter(alone))
    for title in alone:
        assert run[title] == pytest.approx(alone[title], abs=1e-4)
    for name, (accuracy, loss) in figures(folder / "many-alone").items():
        assert figures(folder / "many-together")[name] == (accuracy, pytest.approx(loss, abs=1e-4))


def test_one_process_speaks(together: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = together
    assert done.stderr.count("2 processes: share its trainings") == 1
    assert done.stdout.count("audit head") == 1 and done.stderr.count("round 1 of 2") == 1


def test_stopped_launch_goes_on_as_if_it_had_not_been(
    folder: Path, together: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    output = folder / "stopped"
    process = start(folder / "guests.yaml", "--output", output)
    while not list(output.glob("checkpoints/plain-0000001*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert not (output / "summary.json").exists()
    done = launch(folder / "guests.yaml", "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert "figures can differ" not in done.stderr
    assert losses(output) == losses(together[0]) and figures(output) == figures(together[0])
    weights = [next(run.glob("model/**/model.safetensors")).read_bytes() for run in (output, together[0])]
    assert weights[0] == weights[1]


def played_team(order: Order | None = None) -> Any:
    return SimpleNamespace(size=2, rank=1, main=False, next_order=lambda: order)


def test_few_rows_are_the_work_of_one_process(folder: Path) -> None:
    heard = Silent()
    run = Run(load(folder / "guests.yaml", ["search.regime=low-resource"]), heard, team=played_team())
    assert "2 processes: few rows are trained on by one of them" in heard.notes
    assert run.plan.training(run.plan.task.build_plain()).processes == 1


def test_what_both_find_wrong_is_told_by_one(folder: Path) -> None:
    wrong = partial(load, folder / "guests.yaml", ["data.train=gone.jsonl"])
    take_part(wrong, played_team())  # the main process is gone: it has told
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        take_part(wrong, played_team(Order("", 1, 1, Checkpoint({}, {}))))


def test_seeds_are_no_work_of_a_launch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    result = invoke("train", folder / "guests.yaml", "--seeds", "2")
    assert result.exit_code == 2 and "leave --seeds out" in result.stderr


def test_shares_of_a_batch_are_all_of_it_and_nobody_is_left_without_a_row() -> None:
    for batch in ([5, 3, 1, 7, 2], [4]):
        shares = [Team.share(SimpleNamespace(rank=rank, size=2), batch) for rank in range(2)]  # type: ignore[arg-type]
        assert all(rows for rows, _ in shares) and sum(weight for _, weight in shares) == 1
        assert sorted(row for rows, weight in shares if weight for row in rows) == sorted(batch)
