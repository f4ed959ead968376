"""`gpta-local init`: what it guesses, and that its output is a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from samples import pair_rows, sentiment_rows, write_jsonl

from gpta_local.config import Config, LocalAssistantConfig, load
from gpta_local.data.starter import starter_config
from gpta_local.errors import ConfigError, DataError
from gpta_local.system.models import EMBEDDED_ASSISTANT
from gpta_local.tasks.classification import ClassificationTask

DESCRIPTION = "What guests of a restaurant wrote about their visit."


def filled_in(text: str, path: Path) -> Config:
    """The configuration that the user gets by writing a description."""
    assert text.count('description: ""') == 1
    path.write_text(text.replace('description: ""', f"description: {DESCRIPTION}"), encoding="utf-8")
    return load(path)


def started(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "train.jsonl") -> Config:
    path = write_jsonl(folder / name, rows)
    return filled_in(starter_config(path), folder / "config.yaml")


def test_configuration_loads_and_reads_the_rows(tmp_path: Path) -> None:
    config = started(tmp_path, sentiment_rows())
    assert (config.task, config.data.text, config.data.label) == ("text-classification", "text", "label")
    assert config.data.train == str(tmp_path / "train.jsonl")
    assert (config.data.validation, config.data.test) == (None, None), "there are no siblings"
    assert ClassificationTask(config).label_names == ["bad", "good"]


def test_without_a_description_it_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(starter_config(write_jsonl(tmp_path / "train.jsonl", sentiment_rows())), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"card\.description should have at least 10 characters"):
        load(path)


def test_card_has_the_name_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    assert started(tmp_path / "reviews", sentiment_rows()).card.name == "reviews"


def test_pair_columns_are_found(tmp_path: Path) -> None:
    rows = [
        {"premise": row["text"], "hypothesis": row["text_pair"], "label": row["label"], "genre": "spoken"}
        for row in pair_rows()
    ]
    config = started(tmp_path, rows)
    assert config.task == "text-pair-classification"
    assert (config.data.text, config.data.text_pair) == ("premise", "hypothesis")
    assert ClassificationTask(config).splits().train[0].texts == (rows[0]["premise"], rows[0]["hypothesis"])


def test_longest_column_is_the_text_and_the_one_of_few_values_the_label(tmp_path: Path) -> None:
    rows = [
        {"number": f"n{i}", "verdict": row["label"], "message": row["text"]} for i, row in enumerate(sentiment_rows())
    ]
    config = started(tmp_path, rows)
    assert (config.data.text, config.data.label) == ("message", "verdict")


def test_labels_that_are_numbers_stay_words(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": int(row["label"] == "good")} for row in sentiment_rows()]
    assert ClassificationTask(started(tmp_path, rows)).label_names == ["0", "1"]


@pytest.mark.parametrize(
    "label",
    [
        "a: b",
        "no",
        "# x",
        "'q'",
        '"q"',
        "[1]",
        "ü",
        "1e3",
        "null",
        "~",
        "- x",
        "a\\b",
        "!x",
        "None",
        "<<",
        "=",
        "a\x07b",
        "x" * 199,
    ],
)
def test_awkward_label_reads_back_as_it_was(tmp_path: Path, label: str) -> None:
    rows = [{"text": row["text"], "label": label if row["label"] == "good" else "plain"} for row in sentiment_rows()]
    assert set(started(tmp_path, rows).card.labels or ()) == {label, "plain"}


def test_siblings_named_validation_and_test_are_used(tmp_path: Path) -> None:
    for name in ("dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", sentiment_rows()[:2])
    config = started(tmp_path, sentiment_rows())
    assert config.data.validation == str(tmp_path / "dev.jsonl")
    assert config.data.test == str(tmp_path / "test.jsonl")


def test_file_in_another_folder_is_named_from_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", sentiment_rows())
    write_jsonl(tmp_path / "data" / "test.jsonl", sentiment_rows()[:2])
    monkeypatch.chdir(tmp_path)
    config = filled_in(starter_config(Path("data/train.jsonl")), tmp_path / "config.yaml")
    assert config.data.train == str(tmp_path / "data" / "train.jsonl")
    assert config.data.test == str(tmp_path / "data" / "test.jsonl")


def test_no_row_is_in_the_configuration(tmp_path: Path) -> None:
    text = starter_config(write_jsonl(tmp_path / "train.jsonl", sentiment_rows()))
    assert not any(row["text"] in text for row in sentiment_rows())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (lambda i: {"text": f"text {i}"}, "no column looks like a label"),
        (lambda i: {"x": i, "label": i % 2}, "no column holds text"),
        (lambda i: {"text": f"message number {i}", "target": f"private remark number {i}"}, "each label has one row"),
        (lambda i: {"text": f"message number {i}", "label": "only"}, "only one class"),
        *(
            (
                lambda i, label=label: {"text": f"message number {i}", "label": label if i % 2 else "x"},
                "the column 'label' holds lists of several, or long texts, no labels",
            )
            for label in (["a", "b"], {"a": 1}, "word " * 100)
        ),
    ],
)
def test_rows_without_text_or_labels_are_told(tmp_path: Path, row: Callable[[int], dict[str, Any]], told: str) -> None:
    with pytest.raises(DataError, match=told):
        starter_config(write_jsonl(tmp_path / "train.jsonl", [row(i) for i in range(20)]))


@pytest.mark.parametrize("name", ["Label", "LABEL", "Intent", "intent_class", " label "])
def test_label_column_is_found_by_its_name_in_any_case(tmp_path: Path, name: str) -> None:
    rows = [
        {"Lang": "de" if i % 2 else "en", "Text": r["text"], name: r["label"]} for i, r in enumerate(sentiment_rows())
    ]
    config = started(tmp_path, rows)
    assert (config.data.text, config.data.label) == ("Text", name.strip())


def test_ids_dates_addresses_and_numbers_are_no_text_and_seldom_the_label(tmp_path: Path) -> None:
    rows = [
        {
            "uuid": f"{i:032x}-and-more-of-it-and-more-of-it-and-more-of-it",
            "created": f"2024-03-{i + 1:02d}T09:20:22.100000Z and so on and so on and so on and on",
            "link": f"https://example.org/a/very/long/address/that/has/no/end/{i}",
            "amount": f"{i}.5000000000000000000000000000000000000000000000000000000000",
            "annotator": f"person {i % 2}",
            "verdict": row["label"],
            "said": row["text"],
        }
        for i, row in enumerate(sentiment_rows())
    ]
    config = started(tmp_path, rows)
    assert (config.data.text, config.data.label) == ("said", "verdict")


def test_guess_is_called_one_and_names_the_other_columns(tmp_path: Path) -> None:
    rows = [
        {"said": r["text"], "verdict": r["label"], "tone": "loud" if i % 3 else "low"}
        for i, r in enumerate(sentiment_rows())
    ]
    text = starter_config(write_jsonl(tmp_path / "train.jsonl", rows))
    assert "label: verdict" in text and "a guess, as few values are different; or is it tone?" in text


def test_a_column_for_each_label_is_told(tmp_path: Path) -> None:
    rows = [
        {"said": r["text"], "good": int(r["label"] == "good"), "bad": int(r["label"] == "bad")}
        for r in sentiment_rows()
    ]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match="good, bad have two digits each, as where each label has a column of its own"):
        starter_config(path)


def test_labels_that_differ_by_capitals_are_told(tmp_path: Path) -> None:
    rows = [{**r, "label": str(r["label"]).title() if i % 3 else r["label"]} for i, r in enumerate(sentiment_rows())]
    text = starter_config(write_jsonl(tmp_path / "train.jsonl", rows))
    assert "# Good, good differ by capitals alone: is that one label?" in text


def test_shape_of_each_column_is_shown(tmp_path: Path) -> None:
    rows = [
        {"text": r["text"], "label": r["label"], "note": None if i % 2 else "x"} for i, r in enumerate(sentiment_rows())
    ]
    text = starter_config(write_jsonl(tmp_path / "train.jsonl", rows))
    assert "#   label: words, 2 different, 0% missing, 4 characters (4 at most)" in text
    assert "#   note: words, 1 different, 50% missing" in text


def test_rows_without_a_label_are_counted_and_no_class(tmp_path: Path) -> None:
    missing = [{"text": f"row {i}", "label": value} for i, value in enumerate([None, "", float("nan"), [], "NaN"])]
    path = write_jsonl(tmp_path / "train.jsonl", [*sentiment_rows(), *missing])
    text = starter_config(path)
    assert f"# 5 rows have no label, the first at {path}:25" in text
    assert set(filled_in(text, tmp_path / "config.yaml").card.labels or ()) == {"bad", "good"}


def test_file_without_a_header_is_found(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("".join(f"{r['text'].replace(',', '')},{r['label']}\n" for r in sentiment_rows()))
    config = filled_in(starter_config(path), tmp_path / "config.yaml")
    assert (config.data.text, config.data.label, config.data.format.header) == ("column1", "column2", False)
    assert len(ClassificationTask(config).splits().train) == 24


def test_assistant_is_the_embedded_one(tmp_path: Path) -> None:
    config = started(tmp_path, sentiment_rows())
    assert isinstance(config.assistant, LocalAssistantConfig) and config.assistant.model == EMBEDDED_ASSISTANT
