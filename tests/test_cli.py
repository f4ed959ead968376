"""The commands: what they print, how they end, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import PROGRAM, ROOT, assert_refused, invoke, run_command
from safetensors import SafetensorError
from samples import (
    LABEL_TEXTS,
    PREFIXES,
    QUICKSTART,
    label_text_reply,
    pair_rows,
    read_rows,
    record_replies,
    sentiment_rows,
    write_config,
    write_jsonl,
)


@pytest.fixture
def project(tmp_path: Path, bert: Path) -> Path:
    """A folder with rows, recorded replies and a tiny backbone; `train` would work here."""
    write_jsonl(tmp_path / "train.jsonl", sentiment_rows())
    record_replies(
        tmp_path / "record", ["bad: a bad visit\ngood: a good visit"], ["Review:", "Guest:", "The visit was"]
    )
    return tmp_path


def settings(bert: Path, changes: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(bert)},
        "finish": {"plain_control": False},
    }
    for section, values in changes.items():
        base[section] = {**base[section], **values} if isinstance(base.get(section), dict) else values
    return base


@pytest.fixture
def config(project: Path, bert: Path) -> Path:
    return write_config(project / "config.yaml", settings(bert, {}))


class TestHelp:
    def test_help_takes_less_than_three_tenths_of_a_second(self) -> None:
        """Of the processor: on a busy machine a clock on the wall says little."""
        times = []
        for _ in range(3):
            before = os.times()
            done = subprocess.run([*PROGRAM, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30)
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
            assert done.returncode == 0, done.stderr
        assert min(times) < 0.3

    @pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
    def test_help_imports_nothing_heavy(self, arguments: list[str]) -> None:
        script = (
            "import sys; from gpta_local.cli.main import main; main(sys.argv[1:], standalone_mode=False);"
            "print('loaded:', *{m.split('.')[0] for m in sys.modules})"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        loaded = done.stdout.rpartition("loaded:")[2].split()
        assert "click" in loaded
        assert not {"torch", "openai", "numpy", "transformers", "datasets", "pydantic"} & set(loaded)

    def test_every_command_has_help(self) -> None:
        listing = invoke("--help").stdout.partition("Commands:\n")[2]
        names = [line.split()[0] for line in listing.splitlines() if line.strip()]
        assert {"train", "predict", "evaluate", "export", "history", "init"} <= set(names)
        for name in names:
            assert invoke(name, "--help").exit_code == 0

    def test_unknown_option_is_told(self) -> None:
        result = invoke("train", "x.yaml", "--outptu", "y")
        assert result.exit_code == 2
        assert "--output" in result.stderr


class TestBadInput:
    """Besides the many of test_broken_inputs.py."""

    def test_assistant_without_a_chat_template(self, project: Path, bert: Path) -> None:
        from tiny_models import tiny_llama

        tiny_llama(project / "llama")
        changes = {"downstream": {"backbone": str(bert)}, "assistant": {"model": "llama"}}
        path = write_config(project / "config.yaml", changes)
        assert_refused(invoke("train", path, "--output", project / "run"), "no chat template")
        assert not (project / "run").exists()

    def test_output_that_is_not_empty(self, config: Path) -> None:
        (config.parent / "run").mkdir()
        (config.parent / "run" / "mine").write_text("mine", encoding="utf-8")
        result = invoke("train", config, "--output", config.parent / "run")
        assert_refused(result, "there is something in this directory already")
        assert [path.name for path in (config.parent / "run").iterdir()] == ["mine"]

    def test_output_below_a_file(self, config: Path) -> None:
        assert_refused(invoke("train", config, "--output", config / "run"), "cannot be written")

    def test_output_is_checked_before_anything_is_loaded(self, config: Path) -> None:
        (config.parent / "train.jsonl").unlink()
        assert_refused(invoke("train", config, "--output", config), "a file, not a directory")

    def test_message_is_the_same_in_a_process_of_its_own(self, config: Path) -> None:
        (config.parent / "train.jsonl").write_text('{"text": "a", "label"\n', encoding="utf-8")
        done = run_command("init", config.parent / "train.jsonl")
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error: ") == 1
        assert f"{config.parent}/train.jsonl:1: broken JSON" in done.stderr


class TestFailureWhileRunning:
    """What was recorded stays, the product is not there, and the exit code says what happened."""

    def end(self, config: Path, code: int, *options: str) -> str:
        result = invoke("train", config, "--output", config.parent / "run", "--quiet", *options)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit)
        assert not (config.parent / "run" / "model").exists()
        assert not (config.parent / "run" / "summary.json").exists()
        assert invoke("history", config.parent / "run").exit_code == 0
        return result.stderr

    def test_loss_that_is_no_number_ends_with_code_1(self, config: Path) -> None:
        changes = ("encoder_learning_rate=1e37", "steps=20")
        stderr = self.end(config, 1, *[option for change in changes for option in ("--set", f"training.{change}")])
        assert stderr.startswith("error: the training loss is nan at step")
        assert "Lower the learning rates" in stderr

    @pytest.mark.parametrize(
        ("problem", "code", "told"),
        [
            (KeyboardInterrupt(), 3, "stopped."),
            (RuntimeError("CUDA out of memory. Tried …"), 1, "error: out of memory. Lower training.batch_size"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), 1, "error: out of memory."),
            (SafetensorError("Error: I/O error: File too large (os error 27)"), 2, "error: RUN: File too large"),
            (
                OSError(28, "No space", "metrics.jsonl"),
                1,
                "error: metrics.jsonl: the disk is full. Make room",
            ),
            (sqlite3.OperationalError("database or disk is full"), 1, "error: RUN/history.sqlite: the disk is full"),
            (sqlite3.OperationalError("disk I/O error"), 1, "error: RUN/history.sqlite: the disk fails"),
            (
                sqlite3.OperationalError("database is locked"),
                2,
                "error: RUN/history.sqlite: the history cannot be used",
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, BaseException) else "",
    )
    def test_what_stops_a_run_is_one_message_with_its_code(
        self, config: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int, told: str
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise problem

        monkeypatch.setattr("gpta_local.run.finish.Finish.contest", fail)
        assert self.end(config, code).startswith(told.replace("RUN", str(config.parent / "run")))


class TestDryRun:
    def test_stages_and_their_sum_are_printed_and_nothing_is_written(self, config: Path) -> None:
        before = sorted(config.parent.iterdir())
        result = invoke("train", config, "--dry-run", "--output", config.parent / "run")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        seconds = [int(line.split()[-2]) for line in lines]
        assert lines[-1].startswith("all together")
        assert abs(sum(seconds[:-1]) - seconds[-1]) <= len(seconds)
        assert sorted(config.parent.iterdir()) == before

    def test_rows_that_two_splits_share_are_warned_of_and_counted(self, project: Path, bert: Path) -> None:
        write_jsonl(project / "test.jsonl", sentiment_rows()[:5])
        changes = {"data": {"train": "train.jsonl", "test": "test.jsonl"}}
        path = write_config(project / "config.yaml", settings(bert, changes))
        result = invoke("train", path, "--dry-run", "--quiet")
        assert result.exit_code == 0, result.output
        assert result.stderr.count("warning: ") == 1
        assert "warning: 5 training rows are also in test" in result.stderr


@pytest.fixture(scope="module")
def run(near_prefixes_count: None, sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the quickstart's rows and a tiny backbone; what it printed is beside it."""
    folder = tmp_path_factory.mktemp("quickstart")
    for split, rows in (("train", 84), ("validation", 14), ("test", 28)):
        write_jsonl(folder / f"{split}.jsonl", read_rows(split)[:rows])
    record_replies(folder / "record", [label_text_reply(LABEL_TEXTS)], PREFIXES)
    content = yaml.safe_load((QUICKSTART / "quickstart.yaml").read_text(encoding="utf-8"))
    changes = {
        "task": content["task"],
        "card": content["card"],
        "data": {"validation": "validation.jsonl", "test": "test.jsonl", "shots": 3},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "search": {"max_prefix_tokens": 40},
        "training": {"steps": 4},
    }
    path = write_config(folder / "config.yaml", changes)
    result = invoke("train", path, "--output", folder / "run")
    (folder / "stdout").write_text(result.stdout, encoding="utf-8")
    (folder / "stderr").write_text(result.stderr, encoding="utf-8")
    assert result.exit_code == 0, result.output
    return folder / "run"


class TestTrain:
    def test_run_directory_is_whole(self, run: Path) -> None:
        names = {path.name for path in run.iterdir()}
        assert {"config.yaml", "history.sqlite", "metrics.jsonl", "model", "summary.json"} <= names
        assert not [name for name in names if "partial" in name]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(lines) >= 2 and all(len(line["losses"]) == 4 for line in lines)

    def test_summary_has_the_label_texts_and_the_figures_of_every_arm(self, run: Path) -> None:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        names, meanings = summary["label_texts"][:2]
        assert set(names) == set(meanings) == set(LABEL_TEXTS)
        assert summary["label_texts"][2:] in ([], [LABEL_TEXTS]), "validation rows decide"
        assert {"gpta", "no_prefix", "plain"} <= set(summary["arms"])
        for arm in summary["arms"].values():
            assert arm["rows"] == 28
            assert arm["interval"][0] <= arm["accuracy"] <= arm["interval"][1]

    def test_result_goes_to_standard_output_and_the_rest_to_standard_error(self, run: Path) -> None:
        stdout = (run.parent / "stdout").read_text(encoding="utf-8")
        stderr = (run.parent / "stderr").read_text(encoding="utf-8")
        assert "plain fine-tuning" in stdout
        assert f"Model: {run}/model" in stdout
        assert "round 1 of 1" in stderr
        assert "round 1" not in stdout

    def test_configuration_of_the_run_gives_the_same_model_again(self, run: Path, tmp_path: Path) -> None:
        options = ("--quiet", "--set", "finish.plain_control=false")
        result = invoke("train", run / "config.yaml", "--output", tmp_path / "again", *options)
        assert result.exit_code == 0, result.output
        name = "0_Transformer/model.safetensors"
        assert (tmp_path / "again" / "model" / name).read_bytes() == (run / "model" / name).read_bytes()
        first, second = (json.loads((path / "summary.json").read_text()) for path in (run, tmp_path / "again"))
        assert first["arms"]["gpta"]["accuracy"] == second["arms"]["gpta"]["accuracy"]

    def test_more_rounds_than_steps_leave_rounds_without_training(self, project: Path, bert: Path) -> None:
        changes = {"search": {"rounds": 3, "proposals": 1, "regime": "online"}, "training": {"steps": 2}}
        path = write_config(project / "config.yaml", settings(bert, changes))
        result = invoke("train", path, "--output", project / "run")
        assert result.exit_code == 0, result.output
        lines = (project / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line)["title"] for line in lines if "round" in line]
        assert rounds == ["round 2: training", "round 3: training"]

    def test_run_directory_without_a_name_of_its_own_lies_below_runs(
        self, project: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(project)
        card = {"name": "../../a b/ü", "description": "What guests wrote."}
        path = write_config(project / "config.yaml", settings(bert, {"card": card}))
        assert invoke("train", path, "--quiet").exit_code == 0
        (folder,) = (project / "runs").iterdir()
        assert folder.name.startswith("a-b-ü-20")


class TestPredict:
    def test_every_row_gets_a_label_and_probabilities(self, run: Path) -> None:
        result = invoke("predict", run, run.parent / "test.jsonl", "--probabilities")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(lines) == 28
        for line in lines:
            assert list(line["probabilities"]) == list(LABEL_TEXTS)
            assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            best = max(line["probabilities"], key=line["probabilities"].__getitem__)
            assert (line["predicted_label"], line["probability"]) == (best, line["probabilities"][best])

    def test_file_gets_what_standard_output_gets(self, run: Path, tmp_path: Path) -> None:
        printed = invoke("predict", run, run.parent / "validation.jsonl").stdout
        result = invoke("predict", run, run.parent / "validation.jsonl", "--output", tmp_path / "out.jsonl")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == printed
        assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]

    @pytest.mark.parametrize(
        ("rows", "words"),
        [('{"tekst": "a"}\n', "no column 'text'"), ("garbage\n", "rows.jsonl:1: broken JSON"), ("", "no rows")],
    )
    def test_rows_that_cannot_be_used_are_told(self, run: Path, tmp_path: Path, rows: str, words: str) -> None:
        (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
        assert_refused(invoke("predict", run, tmp_path / "rows.jsonl"), words)

    def test_directory_as_output_is_told(self, run: Path) -> None:
        assert_refused(invoke("predict", run, run.parent / "validation.jsonl", "--output", "."), "a directory is there")

    def test_pipe_or_device_as_output_stays_what_it_is(self, run: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        read = threading.Thread(target=lambda: lines.extend((tmp_path / "pipe").read_text().splitlines()))
        lines: list[str] = []
        read.start()
        result = invoke("predict", run, run.parent / "validation.jsonl", "--output", tmp_path / "pipe")
        read.join(60)
        assert result.exit_code == 0 and len(lines) == 14 and (tmp_path / "pipe").is_fifo()

    def test_broken_model_is_told(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run / "model", tmp_path / "model")
        (tmp_path / "model" / "0_Transformer" / "model.safetensors").write_bytes(b"garbage")
        assert_refused(invoke("predict", tmp_path, run.parent / "test.jsonl"), "model.safetensors' is not the file")
        (tmp_path / "model" / "SHA256SUMS").unlink()
        assert_refused(invoke("predict", tmp_path, run.parent / "test.jsonl"), "the model cannot be loaded")

    def test_process_prints_lines_and_no_noise(self, run: Path) -> None:
        done = run_command("predict", run, run.parent / "validation.jsonl")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 14
        assert "Loading" not in done.stderr
        assert "warning" not in done.stderr.lower().replace("resourcewarning", "")


class TestEvaluate:
    def test_figures_on_the_test_rows_are_those_of_the_run(self, run: Path) -> None:
        figures = json.loads(invoke("evaluate", run, "--json").stdout)
        arm = json.loads((run / "summary.json").read_text(encoding="utf-8"))["arms"]["gpta"]
        assert figures["accuracy"] == arm["accuracy"]
        assert figures["macro_f1"] == pytest.approx(arm["macro_f1"])
        assert figures["interval"] == pytest.approx(arm["interval"])

    def test_table_has_a_line_for_each_label(self, run: Path) -> None:
        result = invoke("evaluate", run)
        assert result.exit_code == 0, result.output
        assert all(f"\n{name} " in result.stdout for name in LABEL_TEXTS)

    def test_unknown_label_is_told(self, run: Path, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "bilings"}])
        assert_refused(invoke("evaluate", run, path), "rows.jsonl:1: unknown label 'bilings'", "'billing'")

    def test_exported_folder_needs_rows(self, run: Path) -> None:
        assert_refused(invoke("evaluate", run / "model"), "Give a data file")


class TestExport:
    def test_exported_folder_predicts_as_the_run_does(self, run: Path, tmp_path: Path) -> None:
        result = invoke("export", run, tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert f'SentenceTransformer("{tmp_path}/out")' in result.stdout
        rows = run.parent / "validation.jsonl"
        assert invoke("predict", tmp_path / "out", rows).stdout == invoke("predict", run, rows).stdout

    def test_directory_with_something_in_it_is_refused(self, run: Path) -> None:
        assert_refused(invoke("export", run, run.parent), "something in this directory already")

    def test_folder_without_a_model_is_told(self, tmp_path: Path) -> None:
        assert_refused(invoke("export", tmp_path, tmp_path / "out"), "no trained model here")
        assert not (tmp_path / "out").exists()


class TestHistory:
    def test_rounds_and_prefixes_are_shown(self, run: Path) -> None:
        result = invoke("history", run)
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0].startswith("round 1: 3 prefixes scored in ")
        assert {line.split("rows)  ")[1] for line in lines[1:]} == set(PREFIXES)
        gains = [float(line.split()[0]) for line in lines[1:]]
        assert gains == sorted(gains, reverse=True)

    def test_folder_without_a_history_is_told(self, tmp_path: Path) -> None:
        assert_refused(invoke("history", tmp_path), "no history here")

    def test_garbage_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "history.sqlite").write_bytes(b"garbage" * 100)
        assert_refused(invoke("history", tmp_path), "the history cannot be opened")


class TestInit:
    @pytest.mark.parametrize("rows", [sentiment_rows(), pair_rows()], ids=["single", "pair"])
    def test_output_with_a_description_is_a_configuration(
        self, tmp_path: Path, rows: list[dict[str, str]], bert: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_jsonl(tmp_path / "train.jsonl", rows)
        monkeypatch.chdir(tmp_path)
        result = invoke("init", "train.jsonl")
        assert result.exit_code == 0, result.output
        text = result.stdout.replace('description: ""', "description: What guests wrote.")
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        record_replies(tmp_path / "record", [], ["A prefix:"] * 8)
        changes = ("assistant={backend: replay, run: record}", f"downstream.backbone={bert}", "training.steps=1")
        options = [option for change in changes for option in ("--set", change)]
        done = invoke("train", "config.yaml", "--dry-run", *options)
        assert done.exit_code == 0, done.output
        assert f"2 labels; {len(rows)} training" in done.stderr
