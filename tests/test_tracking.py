"""What trackers are given of a run, read back by their own readers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import audited
import pytest
from commands import assert_refused, invoke
from samples import sentiment_rows

from gpta_local.report.trackers import TRACKING_FOLDER, track


@pytest.fixture(scope="module")
def tracked(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited.train(tmp_path_factory.mktemp("tracked"), sentence, {"tracking": ["tensorboard"]})


def losses(run: Path) -> list[list[float]]:
    return [json.loads(line)["losses"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def accuracy(run: Path) -> float:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))["arms"]["gpta"]["accuracy"]


def test_tensorboard_reads_losses_and_figures(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / TRACKING_FOLDER / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    found = [[event.value for event in events.Scalars(tag)] for tag in tags]
    assert found == [pytest.approx(values, rel=1e-5) for values in losses(tracked)]
    assert events.Scalars("gpta/accuracy")[0].value == pytest.approx(accuracy(tracked))


def test_mlflow_reads_losses_figures_and_settings(tracked: Path, tmp_path: Path) -> None:
    import mlflow

    run = audited.copy(tracked, tmp_path)
    track(run, ["mlflow"], pytest.fail)
    client = mlflow.MlflowClient(tracking_uri=(run / TRACKING_FOLDER / "mlflow").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "gpta-local"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["gpta/accuracy"] == pytest.approx(accuracy(run))
    assert found.data.params["training.steps"] == "2"
    names = [name for name in found.data.metrics if name.startswith("loss/")]
    histories = [[step.value for step in client.get_metric_history(found.info.run_id, name)] for name in names]
    assert sorted(histories) == [pytest.approx(values, rel=1e-5) for values in sorted(losses(run))]


def test_wandb_finds_the_offline_run(tracked: Path, tmp_path: Path) -> None:
    """Its reader sends all that it reads to a server, and with `--dry-run` names it: of the figures the file tells."""
    run = audited.copy(tracked, tmp_path)
    track(run, ["wandb"], pytest.fail)
    (folder,) = (run / TRACKING_FOLDER / "wandb").rglob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (file,) = folder.glob("*.wandb")
    assert file.name in done.stderr, done.stdout
    figures = re.findall(rb'"?gpta/accuracy"?[^0-9.]{1,9}([0-9.]+)', file.read_bytes())
    assert float(figures[0]) == pytest.approx(accuracy(run))


def test_no_text_of_the_assistant_and_no_row_is_given_to_a_tracker(tracked: Path) -> None:
    words = (*audited.SAID, *(row["text"] for row in sentiment_rows()))
    assert audited.files_with(tracked, audited.SAID), "they are elsewhere in the run"
    assert audited.files_with(tracked / TRACKING_FOLDER, words) == []


def test_run_is_still_whole_for_the_audit(tracked: Path) -> None:
    assert invoke("audit", "verify", tracked).exit_code == 0


def test_tracker_that_is_not_installed_is_told_before_the_run(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = invoke("train", tracked / "config.yaml", "--output", tmp_path / "run")
    assert_refused(result, "needs tensorboard", 'pip install "gpta-local[tensorboard]"')
    assert not (tmp_path / "run").exists()


def test_tracker_that_fails_is_told_and_the_next_is_written(tracked: Path, tmp_path: Path) -> None:
    run, told = audited.copy(tracked, tmp_path), []
    shutil.rmtree(run / TRACKING_FOLDER / "tensorboard")
    (run / TRACKING_FOLDER / "mlflow").touch()
    track(run, ["mlflow", "tensorboard"], told.append)
    assert len(told) == 1 and told[0].startswith("nothing is written for mlflow: ")
    assert list((run / TRACKING_FOLDER / "tensorboard").glob("events*"))
