"""`gpta-local init --split`: one file becomes rows to train on and rows for the test."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from commands import assert_refused, invoke
from samples import PAIRS, SENTIMENT, write_jsonl

from gpta_local.config import load
from gpta_local.data.readers import read_records


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with an id, in a folder of its own, in which the user is."""
    monkeypatch.chdir(tmp_path)
    with Path("letters.csv").open("w", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label"])
        table.writerows([number, text, label] for number, (text, label) in enumerate(SENTIMENT))
    return Path("letters.csv")


def ids(path: str) -> list[str]:
    return [record.values["id"] for record in read_records(path).records]


def test_a_quarter_of_each_label_is_set_aside_and_the_configuration_names_it(letters: Path) -> None:
    result = invoke("init", letters, "--split")
    assert result.exit_code == 0, result.output
    train, test = ids("letters-train.csv"), ids("letters-test.csv")
    assert sorted(train + test, key=int) == [str(number) for number in range(24)]
    assert Counter(record.values["label"] for record in read_records("letters-test.csv").records) == {
        "bad": 3,
        "good": 3,
    }
    Path("config.yaml").write_text(result.stdout.replace('description: ""', "description: What guests wrote."))
    data = load(Path("config.yaml")).data
    assert (Path(data.train).name, Path(data.test or "").name) == ("letters-train.csv", "letters-test.csv")
    assert Path("letters-test.csv").stat().st_mode & 0o077 == 0


def test_the_same_rows_each_time(letters: Path) -> None:
    invoke("init", letters, "--split")
    first = ids("letters-test.csv")
    for name in ("train", "test"):
        Path(f"letters-{name}.csv").unlink()
    invoke("init", letters, "--split")
    assert ids("letters-test.csv") == first


def test_nothing_is_overwritten_and_nothing_left(letters: Path) -> None:
    Path("letters-train.csv").write_text("mine", encoding="utf-8")
    assert_refused(invoke("init", letters, "--split"), "letters-train.csv: this file is there already")
    assert Path("letters-train.csv").read_text(encoding="utf-8") == "mine"
    assert not Path("letters-test.csv").exists()


def test_test_rows_that_are_there_are_told(letters: Path) -> None:
    Path("test.csv").write_text("text,label\n", encoding="utf-8")
    assert_refused(invoke("init", letters, "--split"), "test.csv: these look like its test rows already")


def test_rows_of_one_text_stay_together(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label, "n": n} for n in range(2) for text, label in SENTIMENT]
    assert invoke("init", write_jsonl(tmp_path / "data.jsonl", rows), "--split").exit_code == 0
    texts = [
        {record.values["text"] for record in read_records(str(tmp_path / f"data-{name}.jsonl")).records}
        for name in ("train", "test")
    ]
    assert not texts[0] & texts[1] and len(texts[1]) == 6


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [{"premise": a, "hypothesis": b, "label": label} for a, b, label in PAIRS]
    assert invoke("init", write_jsonl(tmp_path / "data.jsonl", rows), "--split").exit_code == 0
    assert len(read_records(str(tmp_path / "data-test.jsonl")).records) == 4


def test_label_of_one_text_is_told(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in [*SENTIMENT, ("so so", "neither")]]
    result = invoke("init", write_jsonl(tmp_path / "data.jsonl", rows), "--split")
    assert_refused(result, "a label has fewer than two different texts", "cross-validation")
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
