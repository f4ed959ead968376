"""The Python API: what the commands do, as functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local import ConfigError, InputError, Result, evaluate, load_config, predict, train

TEXTS = ["The soup was cold and the waiter rude.", "A lovely evening, we will come again."]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, sentence: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("api")
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows())
    record_replies(folder / "record", [label_text_reply({"bad": "an unhappy guest", "good": "a happy one"})], ["Menu"])
    return {
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "card": {"name": "guest notes", "description": "Notes of guests of a restaurant.", "labels": ["bad", "good"]},
        "assistant": {"backend": "replay", "run": str(folder / "record")},
        "downstream": {"backbone": str(sentence)},
        "knowledge": {"example_texts": 0},
        "search": {"rounds": 1, "proposals": 1, "label_text_samples": 1},
        "training": {"steps": 4},
    }


@pytest.fixture(scope="module")
def result(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(content, output=tmp_path_factory.mktemp("run") / "run")


def test_result_has_the_figures_of_the_summary(result: Result) -> None:
    ours = result.summary["arms"]["gpta"]
    assert (result.accuracy, result.macro_f1, result.measured_on) == (ours["accuracy"], ours["macro_f1"], "test")
    assert result.interval == tuple(ours["interval"])
    assert result.against["plain"].value == result.summary["differences"]["plain"]["value"]
    assert result.labels == ["bad", "good"]
    assert "plain fine-tuning" in result.verdict


def test_notebook_shows_the_verdict_and_the_table(result: Result) -> None:
    html = result._repr_html_()
    assert "<table>" in html and "plain fine-tuning" in html and f"{100 * (result.accuracy or 0):.1f} %" in html
    assert "<html" not in html and "<script" not in html and "<svg" not in html


def test_result_labels_texts(result: Result) -> None:
    predictions = result.predict(TEXTS)
    assert predictions == predict(result.folder, TEXTS) == predict(result.model, TEXTS)
    assert [p.label in result.labels for p in predictions] == [True, True]
    assert sum(predictions[0].probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_result_loads_as_a_sentence_transformer(result: Result) -> None:
    logits = result.load().encode(TEXTS)
    assert [result.labels[n] for n in logits.argmax(axis=1)] == [p.label for p in result.predict(TEXTS)]


def test_evaluation_gives_the_accuracy_of_the_run_again(result: Result) -> None:
    assert evaluate(result.folder)["accuracy"] == result.accuracy


def test_finished_run_is_not_run_again(content: dict[str, Any], result: Result) -> None:
    assert train(content, output=result.folder, resume=True) == result


def test_overrides_go_into_the_configuration(content: dict[str, Any]) -> None:
    assert load_config(content, {"search.rounds": 7}).search.rounds == 7
    assert "rounds" in content["search"] and content["search"]["rounds"] == 1


def test_unknown_key_is_told(content: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        train(content, {"search.round": 7})


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained model here"):
        predict(tmp_path, TEXTS)
