"""`gpta-local assistant tune` and `assistant evaluate`: run on real histories and real data."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, invoke
from samples import CARD, read_rows, scored
from samples import QUICKSTART as DATA

from gpta_local.dialogue_gradient.evaluate import ProposalQuality, compare
from gpta_local.record.history import History, open_existing
from gpta_local.schema import Round
from gpta_local.system.adapters import check_adapter

QUICKSTART = DATA / "quickstart.yaml"
DESCRIBED = "data: {train: rows.jsonl}\ncard: {description: Notes of guests.}\n"
SHORT = ("--set", "steps=2", "--set", "batch_size=2", "--set", "rank=4")


def make_run(folder: Path, gains: tuple[float, ...] = (0.3, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5)) -> Path:
    """A run directory with a history and nothing else."""
    folder.mkdir()
    history = History(folder / "history.sqlite")
    history.add_run(CARD, "low-resource")
    entries = tuple(scored(f"{folder.name} text {number}:", gain) for number, gain in enumerate(gains))
    history.add_round(Round(1, {"accepted": len(entries)}, (), entries, entries[0], None, 1.0))
    history.close()
    return folder


def tune(model: Path, *arguments: object) -> Any:
    return invoke("assistant", "tune", "--model", model, *arguments)


def test_adapter_of_many_runs_is_taught_the_winners_of_each(chat_model: Path, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("first", "second")]
    output = tmp_path / "made" / "adapter"
    result = tune(chat_model, *runs, "--output", output, *SHORT)
    assert result.exit_code == 0, result.output
    check_adapter(output, chat_model)
    taught = [json.loads(line) for line in (output / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["reply"] for row in taught} == {"first text 0:", "second text 0:"}
    assert {path.name for path in output.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "dialogues.jsonl", "step.json"),
        *("dialogue_gradient.png", "dialogue_gradient.svg", "SHA256SUMS"),
    }


def test_adapter_is_taught_the_example_texts_that_were_kept_but_none_with_personal_data(
    chat_model: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    told = "write to anna.muster@example.org"
    texts = [("bad", "cold soup"), ("bad", told), ("good", "warm soup")]
    lines = [json.dumps({"label": x, "text": y, "probability": 0.9, "kept": True}) for x, y in texts]
    (run / "examples.jsonl").write_text("\n".join(lines) + "\n")
    output = tmp_path / "adapter"
    result = tune(chat_model, run, "--output", output, *SHORT, "--set", "taught=[example-texts]")
    assert result.exit_code == 0, result.output
    taught = [json.loads(line) for line in (output / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["reply"] for row in taught} == {"1. cold soup", "1. warm soup"}


class TestModelThatIsTaught:
    def test_is_the_one_that_proposed_in_the_run(self, chat_model: Path, tmp_path: Path) -> None:
        run, output = make_run(tmp_path / "run"), tmp_path / "adapter"
        (run / "config.yaml").write_text(f"{DESCRIBED}assistant: {{model: {chat_model}}}\n")
        result = invoke("assistant", "tune", run, "--output", output, *SHORT)
        assert result.exit_code == 0, result.output
        check_adapter(output, chat_model)

    @pytest.mark.parametrize("other", ["{backend: replay, run: elsewhere}", "{model: SmolLM2-135M-Instruct}"])
    def test_must_be_said_where_the_runs_do_not_tell(self, chat_model: Path, tmp_path: Path, other: str) -> None:
        runs = [make_run(tmp_path / name) for name in ("first", "second")]
        for run, assistant in zip(runs, (f"{{model: {chat_model}}}", other), strict=True):
            (run / "config.yaml").write_text(f"{DESCRIBED}assistant: {assistant}\n")
        result = invoke("assistant", "tune", *runs, "--output", tmp_path / "adapter")
        assert_refused(result, "which model is to be taught", str(runs[1]), "--model")


def test_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with sqlite3.connect(run / "history.sqlite") as history:
        history.execute("DELETE FROM runs")
    assert_refused(tune(tmp_path, run, "--output", tmp_path / "adapter"), str(run), "earlier version")


def test_run_that_teaches_nothing_is_named(tmp_path: Path) -> None:
    good, flat = make_run(tmp_path / "good"), make_run(tmp_path / "flat", gains=(0.1, 0.1, 0.1))
    assert_refused(tune(tmp_path, good, flat, "--output", tmp_path / "adapter"), str(flat), "nothing can be learnt")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert_refused(tune(tmp_path, tmp_path, "--output", tmp_path / "adapter"), "history")


def test_output_that_exists_is_refused(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    run = make_run(tmp_path / "run")
    assert_refused(tune(chat_model, run, "--output", tmp_path / "adapter"), "exists already")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stps=3", ("dialogue_gradient.stps", "did you mean 'steps'")),
        ("rank=0", ("dialogue_gradient.rank",)),
        ("rank", ("a.b=c",)),
    ],
)
def test_wrong_key_or_value_is_named(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run")
    assert_refused(tune(tmp_path, run, "--output", tmp_path / "adapter", "--set", override), *words)
    assert not (tmp_path / "adapter").exists()


def test_model_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert_refused(tune(tmp_path / "none", run, "--output", tmp_path / "adapter"), "no such model folder")


@pytest.fixture(scope="module")
def adapter(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    result = tune(chat_model, make_run(folder / "run"), "--output", folder / "adapter", *SHORT)
    assert result.exit_code == 0, result.output
    return folder / "adapter"


Command = Callable[..., Any]


@pytest.fixture
def models(chat_model: Path, sentence: Path) -> tuple[str, ...]:
    return "--set", f"assistant.model={chat_model}", "--set", f"downstream.backbone={sentence}"


@pytest.fixture
def evaluate(models: tuple[str, ...]) -> Command:
    few = ("--proposals", 4, "--first-proposals", 4)
    return lambda *arguments: invoke("assistant", "evaluate", QUICKSTART, *models, *few, *arguments)


def test_evaluation_compares_adapter_and_base_on_each_sample(evaluate: Command, adapter: Path) -> None:
    result = evaluate("--adapter", adapter, "--samples", 2, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["seed"], row["assistant"]) for row in rows] == [
        *((0, "base"), (0, str(adapter)), (1, "base"), (1, str(adapter)))
    ]
    for row in rows:
        assert 0 <= row["hit_rate"] <= row["fresh"] <= 1
        assert row["on_topic"] <= row["fresh"]
        assert row["proposals"] == 4
    assert rows[0]["best_shown"] == rows[1]["best_shown"], "both are shown the same history"
    first = [row for row in rows if row["seed"] == 0]
    assert json.loads(evaluate("--adapter", adapter, "--json").stdout) == first, "the same figures again"


def test_evaluation_prints_a_table_and_the_difference(evaluate: Command, adapter: Path) -> None:
    result = evaluate("--adapter", adapter, "--samples", 2)
    assert result.exit_code == 0, result.output
    assert "clinic-portal-messages" in result.stdout
    assert "adapter 1: hit rate " in result.stdout
    assert "95 % interval" in result.stdout
    assert str(adapter) in result.stdout
    assert "one sample: no interval" in evaluate("--adapter", adapter).stdout


def test_adapter_is_compared_with_the_base_of_its_own_configuration() -> None:
    """Two configurations can have one name."""
    shares = [("base", 0.1), ("a", 0.3), ("base", 0.5), ("a", 0.6)]
    results = [ProposalQuality("config", 0, name, 4, share, 1.0, 1.0, 0.0, 0.0, 0.0) for name, share in shares]
    assert compare(results, "a").value == pytest.approx(0.15)


def test_row_in_the_card_is_refused_and_not_shown(evaluate: Command) -> None:
    text = read_rows("test")[0]["text"]
    result = evaluate("--set", f"card.description={json.dumps(text)}")
    assert_refused(result, "card.description", "6 words in a row of a private row")
    assert text[:20] not in result.output


def test_adapter_that_is_none_is_refused(evaluate: Command, tmp_path: Path) -> None:
    assert_refused(evaluate("--adapter", tmp_path), "adapter_config.json")


@pytest.mark.usefixtures("near_prefixes_count")
def test_run_can_begin_with_an_adapter_of_the_name_of_one_that_it_makes(
    models: tuple[str, ...], adapter: Path, tmp_path: Path
) -> None:
    start = Path(shutil.copytree(adapter, tmp_path / "001"))
    search = ("search.rounds=2", "search.proposals=8", "search.label_text_samples=0")
    taught = (
        f"assistant.adapter={start}",
        "assistant.max_new_tokens=8",
        "dialogue_gradient.steps=2",
        "dialogue_gradient.rank=4",
    )
    words = [
        word for key in (*search, *taught, "training.steps=1", "finish.plain_control=false") for word in ("--set", key)
    ]
    result = invoke("train", QUICKSTART, "--output", tmp_path / "run", *models, *words)
    assert result.exit_code == 0, result.output
    history = open_existing(tmp_path / "run")
    asked = [(number, adapter) for _, number, kind, adapter, _ in history.requests() if kind == "prefix"]
    assert asked[0] == (1, "001"), "the adapter that was given"
    ((_, step, verdict),) = history.steps()
    assert step.adapter == "001" and verdict in ("kept", "rolled back")
    assert [of.asked for number, of in history.proposal_figures() if number == 2] == [4, 4]


def test_adapter_of_another_model_is_refused_before_anything_is_written(
    models: tuple[str, ...], adapter: Path, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 3}), encoding="utf-8")
    (other / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    run = ("train", QUICKSTART, "--output", tmp_path / "run", *models, "--set", f"assistant.adapter={other}")
    assert_refused(invoke(*run), "lora_A")
    assert not (tmp_path / "run").exists()
