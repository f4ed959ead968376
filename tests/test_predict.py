"""`gpta-local predict`: rows come back with a label each, in the format and with the columns that they had."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from commands import assert_refused, invoke
from samples import config_of, sentiment_rows, write_jsonl

from gpta_local.cli.main import main
from gpta_local.downstream import predicting
from gpta_local.downstream.loaded import Array, LoadedProduct, Rows
from gpta_local.downstream.product import write_product
from gpta_local.tasks.classification import ClassificationTask

LABELS = ("bad", "good")
ROWS = [{"id": f"r{number}", "text": row["text"], "n": number} for number, row in enumerate(sentiment_rows())]


@pytest.fixture(scope="module")
def model(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product that nobody trained."""
    folder = tmp_path_factory.mktemp("predict")
    config = config_of(folder, sentiment_rows(), {"downstream": {"backbone": str(sentence)}})
    task = ClassificationTask(config)
    write_product(folder / "model", task.build_plain(), "", task.name, task.label_names, config.data)
    return folder / "model"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_come_back_with_all_their_columns(model: Path, tmp_path: Path) -> None:
    result = invoke("predict", model, write_jsonl(tmp_path / "new.jsonl", ROWS))
    assert result.exit_code == 0, result.output
    found = lines(result.stdout)
    assert [{name: row[name] for name in ROWS[0]} for row in found] == ROWS
    assert all(row["predicted_label"] in LABELS and 0.5 <= row["probability"] <= 1 for row in found)
    assert set(found[0]) == {*ROWS[0], "predicted_label", "probability"}


def test_csv_gives_csv(model: Path, tmp_path: Path) -> None:
    rows = [{"id": "7", "text": 'a "very" good,\nlong evening', "note": ""}, {"id": "8", "text": "bad", "note": "x,y"}]
    result = invoke("predict", model, write_csv(tmp_path / "new.csv", rows))
    found = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert list(found[0]) == ["id", "text", "note", "predicted_label", "probability"]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl"])
def test_ending_of_the_output_says_the_format(name: str, model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:3])
    assert invoke("predict", model, data, "--output", tmp_path / name).exit_code == 0
    first = (tmp_path / name).read_text(encoding="utf-8").splitlines()[0]
    heads = {
        "out.csv": "id,text,n,predicted_label",
        "out.tsv": "id\ttext\tn\tpredicted_label",
        "out.jsonl": '{"id": "r0"',
    }
    assert first.startswith(heads[name])


def test_format_that_is_not_written_is_told(model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:1])
    result = invoke("predict", model, data, "--output", tmp_path / "out.xlsx")
    assert_refused(result, "rows are not written as .xlsx", ".csv, .tsv or .jsonl")


def predict_stdin(model: Path, given: str) -> Result:
    """As from a pipe, at which one can look before one reads."""
    stream = io.BufferedReader(io.BytesIO(given.encode()))  # type: ignore[arg-type]
    return CliRunner().invoke(main, ["predict", str(model), "-", "--output", "-"], input=stream)


def test_standard_input_and_output(model: Path) -> None:
    result = predict_stdin(model, "".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row["id"] for row in lines(result.stdout)] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_table_from_standard_input_gives_a_table(delimiter: str, model: Path) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "text", "n"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    result = predict_stdin(model, "\ufeff" + out.getvalue())
    assert result.exit_code == 0, result.output
    found = list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t" if delimiter == "\t" else ","))
    assert [(row["id"], row["text"]) for row in found] == [(row["id"], row["text"]) for row in ROWS]
    assert list(found[0]) == ["id", "text", "n", "predicted_label", "probability"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "standard input: no rows"),
        ("garbage\n", "no column 'text'"),
        ("[1]\n", "not an object"),
        ("\x00\n", "no column"),
    ],
)
def test_standard_input_that_cannot_be_used_is_told(given: str, words: str, model: Path) -> None:
    assert_refused(predict_stdin(model, given), words)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_row_without_text_gets_an_empty_label_and_a_warning(kind: str, model: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": "" if row["n"] in (0, 2) else row["text"]} for row in ROWS[:4]]
    data = write_csv(tmp_path / "new.csv", rows) if kind == "csv" else write_jsonl(tmp_path / "new.jsonl", rows)
    result = invoke("predict", model, data)
    assert result.exit_code == 0, result.output
    found = list(csv.DictReader(io.StringIO(result.stdout))) if kind == "csv" else lines(result.stdout)
    assert [bool(row["predicted_label"]) for row in found] == [False, True, False, True]
    assert [bool(row["probability"]) for row in found] == [False, True, False, True]
    place = {"csv": "new.csv:2", "jsonl": "new.jsonl:1"}[kind]
    assert f"warning: 2 rows have no text, the first {tmp_path / place}" in result.stderr


def test_line_of_empty_fields_is_a_row_without_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,text\n1,good\n,\n3,bad\n,\n,\n", encoding="utf-8")
    found = list(csv.DictReader(io.StringIO(invoke("predict", model, tmp_path / "new.csv").stdout)))
    assert [row["id"] for row in found] == ["1", "", "3"], "those at the end are passed over"
    assert [bool(row["predicted_label"]) for row in found] == [True, False, True]


def test_all_probabilities_and_the_most_probable_labels(model: Path, tmp_path: Path) -> None:
    options = ("--probabilities", "--top-k", "5")
    (row,) = lines(invoke("predict", model, write_jsonl(tmp_path / "new.jsonl", ROWS[:1]), *options).stdout)
    assert list(row["probabilities"]) == list(LABELS) and sum(row["probabilities"].values()) == pytest.approx(1)
    assert row["top"] == [
        {"label": name, "probability": p} for name, p in sorted(row["probabilities"].items(), key=lambda i: -i[1])
    ]
    (flat,) = csv.DictReader(
        io.StringIO(invoke("predict", model, write_csv(tmp_path / "new.csv", ROWS[:1]), *options).stdout)
    )
    assert [flat["top_1"], flat["top_2"]] == [of["label"] for of in row["top"]]
    assert {name: float(flat[f"probability_{name}"]) for name in LABELS} == row["probabilities"]


def test_label_below_the_threshold_gives_way(model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", ROWS)
    plain = lines(invoke("predict", model, data).stdout)
    limit = sorted(row["probability"] for row in plain)[12]
    options = ("--threshold", limit, "--abstain", "ask a person")
    for row, before in zip(lines(invoke("predict", model, data, *options).stdout), plain, strict=True):
        sure = before["probability"] >= limit
        assert row == before | ({} if sure else {"predicted_label": "ask a person"})


def test_label_is_no_word_to_abstain_with(model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:1])
    assert_refused(invoke("predict", model, data, "--threshold", "0.5", "--abstain", "good"), "is a label of the model")


@pytest.mark.parametrize("given", ["folder", "pattern", "names"])
def test_folders_and_patterns_stand_for_their_files(given: str, model: Path, tmp_path: Path) -> None:
    for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:3])):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    inputs = {"folder": [tmp_path], "pattern": [tmp_path / "*.jsonl"], "names": files}[given]
    found = lines(invoke("predict", model, *inputs).stdout)
    assert [row["input_file"] for row in found] == [str(files[0])] * 2 + [str(files[1])]
    assert [row["id"] for row in found] == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    ("name", "words"), [("none-*.csv", "no such file or folder"), ("empty", "no file in this folder can be read")]
)
def test_inputs_that_stand_for_nothing_are_told(name: str, words: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(invoke("predict", model, tmp_path / name), words)


def test_other_names_of_columns(model: Path, tmp_path: Path) -> None:
    rows = [{"body": row["text"], "gold": row["label"]} for row in sentiment_rows()]
    data = write_csv(tmp_path / "new.csv", rows)
    assert_refused(invoke("predict", model, data), "no column 'text'", "body")
    assert invoke("predict", model, data, "--set", "data.text=body").exit_code == 0
    result = invoke("evaluate", model, data, "--set", "data.text=body", "--set", "data.label=gold", "--json")
    assert json.loads(result.stdout)["rows"] == len(rows)


def test_rows_are_held_a_window_at_a_time(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = invoke("predict", model, write_jsonl(tmp_path / "new.jsonl", ROWS)).stdout
    monkeypatch.setattr(predicting, "WINDOW", 5)
    opened, read = predicting.Labeller.rows, 0

    def watched(self: Any, records: Any) -> Any:
        def counted() -> Any:
            nonlocal read
            for record in records:
                read += 1
                yield record

        for number, row in enumerate(opened(self, counted())):
            assert read <= number + 5
            yield row

    monkeypatch.setattr(predicting.Labeller, "rows", watched)
    again = lines(invoke("predict", model, tmp_path / "new.jsonl").stdout)
    assert read == len(ROWS) == len(again)
    for row, before in zip(again, lines(whole), strict=True):
        assert row["probability"] == pytest.approx(before["probability"], abs=1e-5)


def test_what_is_stopped_leaves_no_half_of_a_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, labelled = write_jsonl(tmp_path / "new.jsonl", ROWS), predicting.Labeller.rows

    def stopped(self: Any, records: Any) -> Any:
        for number, row in enumerate(labelled(self, records)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield row

    monkeypatch.setattr(predicting.Labeller, "rows", stopped)
    result = invoke("predict", model, data, "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 3 and "stopped" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["new.jsonl"]


class TestGoingOn:
    """A command that was stopped after two windows of five rows."""

    @pytest.fixture(params=[".jsonl", ".csv"])
    def output(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        return tmp_path / f"out{request.param}"

    @pytest.fixture
    def data(self, output: Path, tmp_path: Path) -> Path:
        rows = [{**row, "text": "" if number == 1 else f"{row['text']},\n"} for number, row in enumerate(ROWS)]
        kind = output.suffix
        return write_csv(tmp_path / "new.csv", rows) if kind == ".csv" else write_jsonl(tmp_path / "new.jsonl", rows)

    @pytest.fixture(autouse=True)
    def stopped(self, model: Path, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(predicting, "WINDOW", 5)
        labelled = predicting.Labeller.rows

        def stopping(self: Any, records: Any) -> Any:
            for number, row in enumerate(labelled(self, records)):
                if number == 12:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield row

        with monkeypatch.context() as patched:
            patched.setattr(predicting.Labeller, "rows", stopping)
            result = invoke("predict", model, data, "--output", output)
        assert result.exit_code == 3 and "10 rows are kept" in result.stderr
        assert not output.exists()

    def test_ends_with_the_same_bytes_as_a_command_that_was_not_stopped(
        self, model: Path, data: Path, output: Path, tmp_path: Path
    ) -> None:
        whole = tmp_path / f"whole{output.suffix}"
        assert invoke("predict", model, data, "--output", whole).exit_code == 0
        result = invoke("predict", model, data, "--output", output, "--resume")
        assert result.exit_code == 0 and "10 rows are there already" in result.stderr
        assert f"{len(ROWS)} rows" in result.stderr and "1 row has no text" in result.stderr
        assert output.read_bytes() == whole.read_bytes()
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]

    def test_is_refused_with_other_options_or_a_changed_file(self, model: Path, data: Path, output: Path) -> None:
        command = ("predict", model, data, "--output", output, "--resume")
        assert_refused(invoke(*command, "--probabilities"), "other options", "begin anew")
        data.write_bytes(data.read_bytes() + b"\n")
        assert_refused(invoke(*command), "other inputs")

    def test_without_being_asked_for_it_begins_anew(self, model: Path, data: Path, output: Path) -> None:
        result = invoke("predict", model, data, "--output", output)
        assert result.exit_code == 0 and "already" not in result.stderr


def test_standard_output_cannot_be_gone_on_with(model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", ROWS[:1])
    assert_refused(invoke("predict", model, data, "--resume"), "cannot be gone on with", "--output")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.parquet"])
def test_rows_in_place_of_a_configuration_are_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"text,label\n")
    assert_refused(invoke("train", tmp_path / name), "a data file, not a configuration", f"init {tmp_path / name} >")


def test_folder_in_place_of_a_configuration_is_told(tmp_path: Path) -> None:
    assert_refused(invoke("train", tmp_path), "a folder, not a configuration file", "gpta-local init DATA")


class Told(LoadedProduct):
    """Says of each row how many words it has, and remembers how many each batch had."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def lengths(self, rows: Rows) -> list[int]:
        return [len(text.split()) for (text,) in rows]

    def logits(self, rows: Rows) -> Array:
        self.batches.append(self.lengths(rows))
        return np.array([[length, -length] for length in self.lengths(rows)], dtype=np.float64)


def test_rows_of_one_length_are_labelled_together_and_come_back_in_their_order() -> None:
    lengths, product = [1, 9, 4] * 32, Told()
    found = product.logits_of_window([("a " * length,) for length in lengths])
    assert found[:, 0].tolist() == lengths
    assert product.batches == [[1] * 32, [4] * 32, [9] * 32]
