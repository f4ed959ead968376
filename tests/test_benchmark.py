"""`gpta-local benchmark` from end to end, with tiny models and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks import LEAKED, PAIR_ROWS, arm, write_sets, write_suite
from chat_models import tiny_chat_llama
from click.testing import Result
from commands import PROGRAM, ROOT, assert_refused, invoke
from samples import merge, sentiment_rows
from test_interrupt import hears_ctrl_c
from transformers import AutoModelForCausalLM

from gpta_local.benchmark.arms import (
    Bench,
    Listener,
    MeasuredTask,
    fold,
    perform,
    runs_of_words,
    trained_on,
    with_test_rows,
)
from gpta_local.benchmark.rivals import label_words
from gpta_local.benchmark.suite import load
from gpta_local.benchmark.trials import Job, Results, Trial, plan
from gpta_local.benchmark.zero_shot import label_by_assistant, log_likelihoods
from gpta_local.config import LocalAssistantConfig, TrainingConfig
from gpta_local.config import load as load_config
from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits
from gpta_local.downstream.model import SentenceClassifier
from gpta_local.downstream.training import Training, total_steps
from gpta_local.errors import InputError
from gpta_local.schema import Label
from gpta_local.system import engines
from gpta_local.system.models import load_pretrained
from gpta_local.tasks.classification import ClassificationTask

ARMS = [
    "gpta",
    "label_texts",
    "plain",
    "plain_longer",
    "logistic_regression",
    "example_texts_only",
    "example_texts_only_unfiltered",
    "best_prefix",
    "fixed_prefix",
    "random_prefix",
    "plain_with_prefix",
    "plain_with_best_prefix",
    "soft_prompt",
    "one round more",
    "one round more, label texts alone",
]
CHANGES: dict[str, Any] = {
    "variants": {"one round more": {"search.proposals": 2, "training.batch_size": 2}},
    "tables": {"main": {"sets": ["guests"], "shots": [4], "samples": 1, "arms": ARMS}},
    "curves": {"sets": ["guests"], "shots": 4, "samples": 1, "points": 3},
    "transfer": {"shots": 4, "samples": 1},
    "goals": [{"table": "main", "shots": 4, "theirs": "plain", "at_least": 5}],
}
SMALL = {"tables": {"main": {"sets": ["guests"], "shots": [4], "samples": 2, "arms": ["gpta", "fixed_prefix"]}}}
"""The run and a control, two samples of each: eight trials."""


Found = dict[Trial, dict[str, Any]]
ByArm = dict[str, dict[str, Any]]
Finished = tuple[Path, Result]


def benchmark(folder: Path, output: Path, *options: str) -> Result:
    return invoke("benchmark", folder / "suite.yaml", "--output", output, *options)


def records(output: Path) -> Found:
    return Results(output / "results.jsonl").records


def figures(output: Path) -> Found:
    """What must come out the same again."""
    names = ("accuracy", "macro_f1", "loss", "prefix", "best_prefix", "train", "points", "label_texts", "made_up")
    return {trial: {n: record[n] for n in names if n in record} for trial, record in records(output).items()}


def project(folder: Path, backbone: Path, changes: Mapping[str, Any]) -> Path:
    write_sets(folder, backbone)
    write_suite(folder, changes)
    return folder


@pytest.fixture(scope="module")
def folder(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("benchmark"), sentence, CHANGES)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """All arms on both sets, by one process."""
    output = tmp_path_factory.mktemp("finished") / "out"
    result = benchmark(folder, output)
    assert result.exit_code == 0, result.output
    return output, result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_are_measured_as_precisely_as_they_are_trained(folder: Path, precision: str) -> None:
    settings = load_config(folder / "guests.yaml", [f"training.precision={precision}"])
    task = MeasuredTask(settings)
    rows, model = task.splits().test, task.build(task.own_label_texts())
    measured, exact = (of.evaluate(model, rows, "").losses for of in (task, ClassificationTask(settings)))
    assert np.array_equal(measured, exact) == (precision == "fp32")
    assert measured == pytest.approx(exact, abs=0.05)


def job_of(folder: Path, of: str) -> Job:
    trial = arm("guests", of, shots=4)
    return next(job for job in plan(load(folder / "suite.yaml")) if job.trials[0] == trial)


@pytest.mark.slow
class TestWholeSuite:
    @pytest.fixture(scope="class")
    @staticmethod
    def found(finished: Finished) -> Found:
        return records(finished[0])

    @pytest.fixture(scope="class")
    @staticmethod
    def guests(found: Found) -> ByArm:
        """The record of each arm on the first set."""
        return {of: found[arm("guests", of, shots=4)] for of in ARMS}

    @pytest.fixture(scope="class")
    @staticmethod
    def bench(folder: Path) -> Bench:
        return Bench(job_of(folder, "gpta"))

    def test_every_trial_has_one_line(self, finished: Finished) -> None:
        lines = [json.loads(line) for line in (finished[0] / "results.jsonl").read_text().splitlines()]
        kinds = Counter((line["kind"], line["set"], line["arm"]) for line in lines)
        assert {("arm", "guests", of) for of in ARMS} <= set(kinds)
        assert kinds["curve", "guests", "plain"] == kinds["curve", "guests", "gpta"] == 1
        assert kinds["transfer", "guests", "best_prefix"] == kinds["transfer", "scenes", "best_prefix"] == 1
        assert set(kinds.values()) == {1} and not any("error" in line for line in lines)
        assert all({"digest", "versions", "finished", "processor_seconds"} <= set(line) for line in lines)

    def test_figures_are_those_of_the_run_that_is_kept(self, finished: Finished, guests: ByArm) -> None:
        run, product = finished[0] / "runs" / "guests" / "4-shots" / "sample-0" / "gpta", guests["gpta"]
        summary = json.loads((run / "summary.json").read_text())
        for of, name in (("gpta", "gpta"), ("label_texts", "no_prefix"), ("plain", "plain")):
            assert guests[of]["accuracy"] == summary["arms"][name]["accuracy"]
            assert guests[of]["train"] == summary["arms"][name]["on_training_rows"]
        assert product["label_texts"] == summary["label_texts"]
        assert product["templates"] == summary["templates"] and product["completions"] == 6
        assert product["seconds"]["search"] <= product["seconds"]["total"] < summary["seconds"]["total"]
        assert (run / "history.sqlite").is_file() and not (run / "model").exists()

    def test_control_of_a_run_is_the_same_as_by_itself(self, bench: Bench, guests: ByArm) -> None:
        label_texts = bench.task.build(guests["gpta"]["label_texts"])
        for of, model in (("plain", bench.task.build_plain()), ("label_texts", label_texts)):
            assert bench.fine_tune(model, "")["loss"] == pytest.approx(guests[of]["loss"], abs=1e-6)

    def test_curve_ends_where_the_training_does(self, found: Found, guests: ByArm) -> None:
        for of, epochs in (("plain", [0, 2, 4]), ("gpta", [0, 1, 2])):  # half the rows a step, with label texts
            points = found[Trial("curve", "guests", 4, 0, of)]["points"]
            assert points[-1]["test"]["loss"] == pytest.approx(guests[of]["loss"], abs=1e-6)
            assert points[-1]["train"]["loss"] == pytest.approx(guests[of]["train"]["loss"], abs=1e-6)
            assert [point["epoch"] for point in points] == epochs

    def test_curve_of_the_product_shows_the_models_that_it_would_be(
        self, bench: Bench, found: Found, guests: ByArm
    ) -> None:
        product, between = guests["gpta"], found[Trial("curve", "guests", 4, 0, "gpta")]["points"][1]
        model = bench.head_of(product)
        training = bench.plan.training(model)
        training.run(product["prefix"], training.steps // 2)
        alone = bench.measure(model, product["prefix"], 0.0)["loss"]
        with training.as_if_ended():
            joined = bench.measure(model, product["prefix"], 0.0)["loss"]
        assert between["test"]["loss"] == pytest.approx(joined, abs=1e-6)
        assert joined != pytest.approx(alone, abs=1e-6)

    def test_longer_training_fits_its_rows_closer(self, guests: ByArm) -> None:
        assert guests["plain_longer"]["train"]["loss"] < guests["plain"]["train"]["loss"] - 0.01

    def test_control_is_trained_on_the_texts_that_the_product_is_trained_on(self, bench: Bench, guests: ByArm) -> None:
        found = {**guests["gpta"], "example_texts": {"used": True}, "product_is_plain": False}
        found["made_up"] = [[label, text, label == "good"] for label, text, _ in found["made_up"]]
        texts = trained_on(found)
        assert len(texts) == 5 and {text.label for text in texts} == {"good"}
        assert bench.with_prefix(found, "Feeling:")["loss"] != guests["fixed_prefix"]["loss"]
        assert not trained_on({**found, "product_is_plain": True})
        assert not trained_on({**found, "example_texts": {"used": False}})

    def test_another_prefix_is_measured_on_a_model_made_as_the_product_is(self, bench: Bench, guests: ByArm) -> None:
        ours = guests["gpta"]
        again = bench.with_texts(bench.head_of(ours), ours["prefix"], ours, ours["label_texts"])
        assert again["loss"] == pytest.approx(ours["loss"], abs=1e-6)

    def test_example_texts_that_look_like_test_rows_are_left_out(self, guests: ByArm) -> None:
        texts = [text for _, text, _ in guests["gpta"]["made_up"]]
        assert len(texts) == 10 and LEAKED not in texts
        assert guests["gpta"]["example_texts"]["left_out"] == 1 and guests["gpta"]["example_texts"]["usable"] == 10

    def test_without_rows_a_model_fits_example_texts(self, guests: ByArm) -> None:
        some, every = guests["example_texts_only"], guests["example_texts_only_unfiltered"]
        assert some["texts"] < every["texts"] == 10 and some["rows"] == every["rows"] == 12
        assert some["loss"] != every["loss"]

    def test_assistants_seconds_are_told_apart(self, guests: ByArm) -> None:
        assert 0 < guests["gpta"]["seconds"]["assistant"] < guests["gpta"]["seconds"]["total"]
        assert "assistant" not in guests["plain"]["seconds"]

    def test_prefixes_are_the_arms_own_and_go_along_to_another_set_with_label_texts(
        self, found: Found, guests: ByArm
    ) -> None:
        assert guests["fixed_prefix"]["prefix"] == "Feeling:"
        assert guests["plain"]["prefix"] == guests["soft_prompt"]["prefix"] == ""
        best = guests["gpta"]["best_prefix"]
        assert best and guests["best_prefix"]["prefix"] == best
        assert len(guests["random_prefix"]["prefix"].split()) == 4
        transferred = found[Trial("transfer", "scenes", 4, 0, "best_prefix", "guests")]
        assert transferred["prefix"] == best and transferred["with_label_texts"]

    def test_no_row_is_in_any_file_and_all_are_the_owners_alone(self, finished: Finished) -> None:
        texts = [row["text"].encode() for row in (*sentiment_rows(), *PAIR_ROWS)]
        for path in (finished[0], *finished[0].rglob("*")):
            assert not path.stat().st_mode & 0o077
            assert path.is_dir() or not [text for text in texts if text in path.read_bytes()], path

    def test_result_is_told(self, finished: Finished) -> None:
        output, result = finished
        assert "main, 4 shots: gpta against plain: " in result.stdout and "at least +5 points: " in result.stdout
        assert f"report: {output / 'report.html'}" in result.stdout
        assert "guests, 4 shots, sample 0: gpta: accuracy" in result.stderr

    @pytest.mark.parametrize("options", [(), ("--report-only",)])
    def test_second_call_measures_nothing_and_writes_the_same_report(
        self, folder: Path, finished: Finished, options: tuple[str, ...]
    ) -> None:
        files = [finished[0] / name for name in ("results.jsonl", "report.html")]
        before = [path.read_bytes() for path in files]
        result = benchmark(folder, finished[0], *options)
        assert result.exit_code == 0 and [path.read_bytes() for path in files] == before

    def test_changed_suite_is_noticed_and_only_what_changed_is_redone(
        self, folder: Path, finished: Finished, tmp_path: Path
    ) -> None:
        content = (finished[0] / "results.jsonl").read_bytes()
        (tmp_path / "results.jsonl").write_bytes(content)
        changed = write_suite(folder, {**CHANGES, "sets": {"guests": {"fixed_prefix": "Mood:"}}}, "changed.yaml")
        command = ("benchmark", changed, "--output", tmp_path)
        words = ("1 of its results were measured with other settings", "sample 0: fixed_prefix", "--redo-changed")
        assert_refused(invoke(*command), *words)
        assert_refused(invoke(*command, "--report-only"), *words)
        assert (tmp_path / "results.jsonl").read_bytes() == content
        assert invoke(*command, "--redo-changed").exit_code == 0
        assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == len(content.splitlines()) + 1
        assert records(tmp_path)[arm("guests", "fixed_prefix", shots=4)]["prefix"] == "Mood:"


def test_random_words_are_others_in_each_set(folder: Path) -> None:
    changes = {"tables": {"main": {"shots": [4], "samples": 1, "arms": ["gpta", "random_prefix"]}}}
    jobs = plan(load(write_suite(folder, changes, "words.yaml")))
    words = [Bench(job).random_words() for job in jobs if job.trials[0].arm == "random_prefix"]
    assert len(words) == len(set(words)) == 2


@pytest.fixture
def small(sentence: Path, tmp_path: Path) -> Path:
    return project(tmp_path, sentence, SMALL)


@pytest.fixture(scope="module")
def small_figures(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Of the small suite, never stopped, by one process."""
    folder = project(tmp_path_factory.mktemp("small"), sentence, SMALL)
    assert benchmark(folder, folder / "out").exit_code == 0
    return figures(folder / "out")


def start(folder: Path, output: Path) -> subprocess.Popen[str]:
    command = [*PROGRAM, "benchmark", str(folder / "suite.yaml"), "--output", str(output)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )


def wait_for_a_line(process: subprocess.Popen[str], output: Path) -> None:
    deadline = time.monotonic() + 120
    while not (output / "results.jsonl").is_file() or not (output / "results.jsonl").read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        if int(fields[1]) == process.pid:
            yield int(path.parent.name)


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 30
    while [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)


@pytest.mark.slow
class TestStopped:
    def test_killed_benchmark_goes_on_by_two_processes_and_ends_as_if_never_stopped(
        self, small: Path, small_figures: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = start(small, tmp_path / "out")
        wait_for_a_line(process, tmp_path / "out")
        workers = list(children(process))
        process.kill()
        process.communicate()
        assert 0 < len(records(tmp_path / "out")) < 8
        wait_until_gone(workers)
        with (tmp_path / "out" / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"kind": "arm", "set": "gue')  # as if killed while writing
        started: list[engines._Worker] = []

        class Noted(engines._Worker):
            def __init__(self, log: Path, threads: int) -> None:
                super().__init__(log, threads)
                started.append(self)

        monkeypatch.setattr(engines, "_Worker", Noted)
        monkeypatch.setattr(engines, "CALLS_PER_PROCESS", 1)
        assert benchmark(small, tmp_path / "out", "--jobs", "2").exit_code == 0
        assert len(started) >= 2 and not any(worker.process.is_alive() for worker in started)
        assert figures(tmp_path / "out") == small_figures

    def test_trial_does_not_outlive_a_killed_benchmark(self, small: Path, tmp_path: Path) -> None:
        path = small / "guests.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("steps: 2", "steps: 10000000"), encoding="utf-8")
        process = start(small, tmp_path / "out")
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").rglob("history.sqlite")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        workers = list(children(process))
        process.kill()
        process.communicate()
        wait_until_gone(workers)

    def test_ctrl_c_ends_with_code_3_and_what_is_there_stays(self, small: Path, tmp_path: Path) -> None:
        process = start(small, tmp_path / "out")
        wait_for_a_line(process, tmp_path / "out")
        workers = list(children(process))
        process.send_signal(signal.SIGINT)
        output, messages = process.communicate(timeout=60)
        assert process.returncode == 3 and output == ""
        assert messages.splitlines()[-1].startswith("stopped.") and "Traceback" not in messages
        assert records(tmp_path / "out")
        wait_until_gone(workers)

    def test_worker_that_dies_fails_its_trial_only_which_is_tried_again(
        self, small: Path, small_figures: Found, tmp_path: Path
    ) -> None:
        process = start(small, tmp_path / "out")
        wait_for_a_line(process, tmp_path / "out")
        for pid in children(process):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        _, messages = process.communicate(timeout=300)
        failed = [trial for trial, record in records(tmp_path / "out").items() if "error" in record]
        assert process.returncode == 1 and "its process ended (-9)" in messages
        assert "trials failed; the same command tries them again" in messages
        assert failed and {trial.sample for trial in failed} == {failed[0].sample}
        assert benchmark(small, tmp_path / "out").exit_code == 0
        assert figures(tmp_path / "out") == small_figures


@pytest.mark.slow
def test_failed_trial_is_named_and_what_needs_it_is_left_out(small: Path, tmp_path: Path) -> None:
    (tmp_path / "record").rename(tmp_path / "away")
    result = benchmark(small, tmp_path / "out")
    assert result.exit_code == 1
    assert "failed: guests, 4 shots, sample 0: gpta: " in result.stderr and "Traceback" not in result.stderr
    assert "guests, 4 shots, sample 0: fixed_prefix: needs the outcome of another that failed" in result.stderr
    assert "failed and are missing above" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


class TestRefusals:
    def test_directory_with_something_else_is_refused(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("x", encoding="utf-8")
        assert_refused(benchmark(small, tmp_path / "out"), "something in this directory already")

    def test_report_of_nothing_is_refused(self, small: Path, tmp_path: Path) -> None:
        assert_refused(benchmark(small, tmp_path / "none", "--report-only"), "no results.jsonl")
        assert not (tmp_path / "none").exists()

    def test_setfit_that_is_missing_is_told_before_anything_runs(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        write_suite(small, {"tables": {"main": {"shots": [4], "samples": 1, "arms": ["setfit"]}}})
        assert_refused(benchmark(small, tmp_path / "out"), "gpta-local[setfit]")


@pytest.mark.slow
class TestSetFit:
    """The arm of the extra `setfit`."""

    @pytest.fixture
    def losses(self, small: Path) -> Callable[..., list[float]]:
        """Of a model trained on rows, on several lots of test rows."""
        pytest.importorskip("setfit")
        from gpta_local.benchmark.rivals import SetFit

        config = load(small / "suite.yaml").config("guests", "setfit", 4, 0)

        def measured(rows: Sequence[Example], *tested: Sequence[Example], **changes: Any) -> list[float]:
            downstream = config.downstream.model_copy(update=changes)
            model = SetFit(config.model_copy(update={"downstream": downstream}), rows, classes=2)
            return [model.evaluate(test).summary["loss"] for test in tested]

        return measured

    def test_learns_without_a_network(self, sentence: Path, tmp_path: Path) -> None:
        pytest.importorskip("setfit")
        arms = ["setfit", "setfit_label_words"]
        tables = {"main": {"sets": ["guests"], "shots": [4], "samples": 1, "arms": arms}}
        result = benchmark(project(tmp_path, sentence, {"tables": tables}), tmp_path / "out")
        assert result.exit_code == 0, result.output + (tmp_path / "out" / "libraries.log").read_text(encoding="utf-8")
        rows_alone, with_words = (records(tmp_path / "out")[arm("guests", of, shots=4)] for of in arms)
        assert rows_alone["rows"] == 12 and rows_alone["train"]["accuracy"] > 0.5
        assert rows_alone["seconds"]["training"] > 0 and not rows_alone["refused"]
        assert with_words["loss"] != rows_alone["loss"]

    def test_reads_both_texts_of_a_pair(self, losses: Callable[..., list[float]]) -> None:
        words = ("soup", "cake", "fork", "garden")
        pairs = [Example((first, second), int(first == second)) for first in words for second in words]
        halves = [Example((example.texts[0],), example.label) for example in pairs]
        assert losses(pairs, pairs) != losses(halves, pairs)

    def test_reads_no_further_than_the_other_arms(self, losses: Callable[..., list[float]]) -> None:
        words = ("soup", "cake", "fork", "garden")
        rows = [Example((f"soup {word}",), number % 2) for number, word in enumerate(words)]
        longer = [Example((f"{row.texts[0]} garden cake fork",), row.label) for row in rows]
        short, long = losses(rows, rows, longer, max_length=4)
        assert short == long
        short, long = losses(rows, rows, longer)
        assert short != long


def test_rows_of_label_words_are_the_names_and_the_meanings() -> None:
    labels = (Label("not_good", "an unhappy guest"), Label("good"), Label("so-so", "so-so"))
    assert [(row.texts[0], row.label) for row in label_words(labels)] == [
        ("not good", 0),
        ("an unhappy guest", 0),
        ("good", 1),
        ("so-so", 2),
    ]


def test_assistant_labels_rows_only_where_it_is_in_this_process(small: Path, tmp_path: Path) -> None:
    config, rows = load_config(small / "guests.yaml"), [Example((f"soup {n}",), n % 2) for n in range(3)]
    card = MeasuredTask(config).card()
    with pytest.raises(InputError, match="shows rows to the assistant, which must be in this process"):
        label_by_assistant(config, card, rows)
    local = LocalAssistantConfig(model=str(tiny_chat_llama(tmp_path / "chat")))
    measured = label_by_assistant(config.model_copy(update={"assistant": local}), card, rows)
    assert measured.losses.shape == (3,) and 0 <= measured.summary["accuracy"] <= 1


def test_likelihood_of_a_reply_is_that_of_its_tokens_one_after_the_other(tmp_path: Path) -> None:
    model = load_pretrained(AutoModelForCausalLM, tiny_chat_llama(tmp_path / "chat"))
    prompt, replies = [5, 9, 30, 7], [[11, 12, 1], [40, 1]]
    for reply, found in zip(replies, log_likelihoods(model, prompt, replies), strict=True):
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert found.item() == pytest.approx(sum(logits[at, token].item() for at, token in enumerate(reply)), abs=1e-4)


def test_seconds_of_asking_end_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, clock = Listener(), iter([10.0, 13.0, 14.0, 50.0])
    monkeypatch.setattr("gpta_local.benchmark.arms.time.monotonic", lambda: next(clock))
    listener.stage("round 1: asking for prefixes", 2)
    listener.advance()
    listener.advance()
    listener.stage("scoring prefixes", 1)
    listener.advance()
    assert listener.asking == 4.0


@pytest.mark.parametrize(
    ("text", "other", "shared"),
    [
        ("The chef came out to say: hello!", "and chef CAME out to say hello", True),
        ("The chef came out to say hello", "the chef came out to say no", True),
        ("The chef came out to eat", "the chef came out to say no", False),
        ("What is fear?", "what is fear", True),
        ("What is fear?", "what is fear of people", False),
    ],
)
def test_texts_share_six_words_in_a_row_or_are_the_same(text: str, other: str, shared: bool) -> None:
    assert bool(runs_of_words(text) & runs_of_words(other)) is shared


def test_soft_prompt_takes_as_many_steps_as_plain_fine_tuning_where_those_are_more() -> None:
    from gpta_local.benchmark.soft_prompt import STEPS, settings

    config = TrainingConfig()
    assert settings(config, 16).steps == STEPS
    assert settings(config, 16000).steps == total_steps(config, 16000) > STEPS


def test_soft_prompt_learns_before_a_frozen_backbone_and_long_rows_leave_room_for_it(small: Path) -> None:
    from gpta_local.benchmark.soft_prompt import SoftPromptClassifier

    bench = Bench(plan(load(small / "suite.yaml"))[0])
    model = bench.task.build_plain()
    assert isinstance(model, SentenceClassifier)
    soft = SoftPromptClassifier(model, 3, seed=0)
    before = {name: value.clone() for name, value in soft.state_dict().items()}
    Training(soft, bench.splits.train, bench.config.training, seed=0).run("", 2)
    changed = {name for name, value in soft.state_dict().items() if not value.equal(before[name])}
    assert {name.split(".")[0] for name in changed} == {"head", "network"}
    assert all("prompt_encoder" in name for name in changed if name.startswith("network"))
    assert bench.task.evaluate(soft, [Example((" ".join(["soup"] * 300),), 0)], "").losses.shape == (1,)


@pytest.mark.slow
class TestPlainFineTuningInTheChoice:
    """With all rows in an online search, whose first contestant it is unless label texts are clearly better."""

    @pytest.fixture
    def jobs(self, sentence: Path, tmp_path: Path) -> dict[str, Job]:
        changes = {
            "variants": {"one proposal": {"search.proposals": 1}},
            "tables": {"main": {"shots": [None], "samples": 1, "arms": ["gpta", "one proposal", "best_prefix"]}},
        }
        write_sets(tmp_path, sentence)
        online = {"search": {"regime": "online"}, "finish": {"plain_control": False}}
        config = yaml.safe_load((tmp_path / "guests.yaml").read_text())
        (tmp_path / "guests.yaml").write_text(yaml.safe_dump(merge(config, online)))
        suite = load(write_suite(tmp_path, changes))
        return {job.trials[0].arm: job for job in plan(suite) if job.trials[0].set == "guests"}

    def test_plain_arm_is_plain_though_the_configuration_wants_no_control(
        self, jobs: dict[str, Job], tmp_path: Path
    ) -> None:
        product, _, plain = perform(jobs["gpta"], {}, tmp_path / "run")
        bench = Bench(jobs["gpta"])
        assert plain["loss"] == bench.fine_tune(bench.task.build_plain(), "")["loss"]
        assert product["product_is_plain"] in (True, False)

    def test_variant_chooses_by_the_same_rule(self, jobs: dict[str, Job], tmp_path: Path) -> None:
        finish = jobs["one proposal"].config.finish.model_copy(update={"plain_control": True})
        job = replace(jobs["one proposal"], config=jobs["one proposal"].config.model_copy(update={"finish": finish}))
        perform(job, {}, tmp_path / "run")
        titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert "training plainly" in titles

    def test_prefix_goes_before_the_plain_model_where_that_is_the_product(self, jobs: dict[str, Job]) -> None:
        bench = Bench(jobs["gpta"])
        found = {"product_is_plain": True, "label_texts": bench.task.own_label_texts(), "templates": []}
        found |= {"made_up": [], "example_texts": {"used": False}}
        plain, other = bench.head_of(found).head, bench.head_of({**found, "product_is_plain": False}).head
        assert torch.equal(plain.weight, bench.task.build_plain().head.weight)
        found |= {"prefix": "Menu:", "best_prefix": "Mood:"}
        there, back = bench.transferred(found, found), bench.with_prefix(found, "Mood:")
        assert there["loss"] == back["loss"] and not there["with_label_texts"]
        assert not torch.equal(plain.weight, other.weight)


def test_same_test_rows_for_every_arm() -> None:
    splits = Splits([], [], [Example((str(i),), 0) for i in range(50)], False, ())
    first, second = with_test_rows(splits, 10), with_test_rows(splits, 10)
    assert first.test == second.test and len(first.test) == 10 and with_test_rows(splits, None).test == splits.test


def test_labels_are_the_same_without_case_and_underlines() -> None:
    assert fold("NOT_ENTAILMENT") == fold("not entailment") != fold("entailment")
