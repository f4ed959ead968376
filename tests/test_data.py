"""Reading rows: formats, splits, shots, and how broken data is told without showing a row."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from samples import config_of, pair_rows, sentiment_rows, write_config, write_jsonl

from gpta_local.config import load
from gpta_local.data.examples import Example, Rows, read_examples
from gpta_local.data.readers import read_records
from gpta_local.data.splits import (
    Splits,
    carve,
    make_splits,
    sample_shots,
)
from gpta_local.errors import ConfigError, DataError
from gpta_local.schema import Label
from gpta_local.tasks.classification import ClassificationTask

CANARY = "zyxwvutcanary"
AWKWARD = [
    {"text": 'a "quoted", comma', "label": "one"},
    {"text": "tab\there and ünïcödé — 漢字", "label": "two"},
    {"text": "two\nlines", "label": "one"},
    {"text": "  spaces kept  ", "label": "two"},
]
LABELS = ["one", "two"]


def write_separated(path: Path, rows: Sequence[dict[str, Any]], delimiter: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def write_saved_folder(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)})
    datasets.Dataset.from_list(list(rows), features=features).save_to_disk(str(path))
    return path


WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], Path]] = {
    "rows.jsonl": write_jsonl,
    "rows.csv": lambda path, rows: write_separated(path, rows, ","),
    "rows.tsv": lambda path, rows: write_separated(path, rows, "\t"),
    "rows.parquet": write_parquet,
    "rows": write_saved_folder,
}


def rows_of(train: list[Example], validation: list[Example] | None = None, test: list[Example] | None = None) -> Rows:
    return Rows((Label("a"), Label("b")), train, validation, test)


def numbered(n: int, labels: int) -> list[Example]:
    return [Example((f"text {i}",), i % labels) for i in range(n)]


def refusal(content: bytes, tmp_path: Path, name: str = "rows.jsonl", **data: Any) -> str:
    """What is said of a training file with this content."""
    (tmp_path / name).write_bytes(content)
    config = load(write_config(tmp_path / "config.yaml", {"data": {"train": name, **data}}))
    with pytest.raises(DataError) as caught:
        ClassificationTask(config)
    return str(caught.value).replace(str(tmp_path) + "/", "")


class TestFormats:
    @pytest.mark.parametrize("name", list(WRITERS))
    def test_every_format_gives_the_same_rows(self, name: str, tmp_path: Path) -> None:
        path = WRITERS[name](tmp_path / name, AWKWARD)
        examples = read_examples(read_records(str(path)).records, ["text"], "label", LABELS)
        assert [example.texts[0] for example in examples] == [row["text"] for row in AWKWARD]
        assert [example.label for example in examples] == [0, 1, 0, 1]

    def test_pairs_are_read_in_the_order_of_the_columns(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "rows.jsonl", pair_rows())
        examples = read_examples(
            read_records(str(path)).records, ["text", "text_pair"], "label", ["follows", "contradicts"]
        )
        assert examples[0].texts == ("A man plays a guitar.", "Somebody makes music.")

    def test_byte_order_mark_is_no_part_of_the_first_column(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("text,label\na,one\n", encoding="utf-8-sig")
        assert list(read_records(str(path)).records[0].values) == ["text", "label"]

    def test_empty_lines_of_jsonl_are_skipped_and_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
        assert [record.where for record in read_records(str(path)).records] == [f"{path}:2", f"{path}:4"]

    def test_windows_line_ends_are_no_part_of_a_value(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_bytes(b"text,label\r\na,one\r\n")
        assert read_records(str(path)).records[0].values == {"text": "a", "label": "one"}

    @pytest.mark.parametrize(("value", "name"), [(1, "1"), (True, "True"), (" one ", "one")])
    def test_label_values_become_words(self, tmp_path: Path, value: Any, name: str) -> None:
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": value}])
        assert read_examples(read_records(str(path)).records, ["text"], "label", [name])[0].label == 0

    def test_field_longer_than_the_limit_of_csv_is_read(self, tmp_path: Path) -> None:
        path = write_separated(tmp_path / "rows.csv", [{"text": "word " * 50_000, "label": "one"}], ",")
        assert len(str(read_records(str(path)).records[0].values["text"])) == 250_000


class TestBrokenData:
    """What is not among the many of test_broken_inputs.py."""

    def test_empty_lines_of_csv_are_counted(self, tmp_path: Path) -> None:
        assert refusal(b"text,label\n\n\na,one\n\n,two\n", tmp_path, "rows.csv").startswith("rows.csv:6: 'text'")

    def test_folder_of_several_splits_names_one(self, tmp_path: Path) -> None:
        split = datasets.Dataset.from_list(AWKWARD)
        datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "all"))
        with pytest.raises(DataError, match="several splits") as caught:
            read_records(str(tmp_path / "all"))
        assert str(tmp_path / "all" / "train") in str(caught.value)

    def test_nearest_column_is_named(self, tmp_path: Path) -> None:
        message = refusal(b'{"text": "a", "label": "one"}\n', tmp_path, label="lable")
        assert "no column 'lable'. Did you mean 'label'? The columns are: text, label" in message

    def test_unknown_label_names_line_and_nearest(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "test.jsonl", [{"text": CANARY, "label": "gut"}])
        with pytest.raises(DataError) as caught:
            ClassificationTask(config_of(tmp_path, sentiment_rows(), {"data": {"test": "test.jsonl"}}))
        message = str(caught.value)
        assert f"{tmp_path}/test.jsonl:1: unknown label 'gut'" in message
        assert "The labels are: bad, good" in message
        assert CANARY not in message

    def test_unknown_label_as_long_as_a_row_is_not_repeated(self, tmp_path: Path) -> None:
        rows = [{"text": row["label"], "label": row["text"]} for row in sentiment_rows()]
        with pytest.raises(
            DataError, match=r"train.jsonl:1: unknown label. Is data.label the right column\?"
        ) as caught:
            ClassificationTask(config_of(tmp_path, rows, {"card": {"labels": ["bad", "good"]}}))
        assert rows[0]["label"][:20] not in str(caught.value)

    def test_label_of_many_words_that_the_card_does_not_list_is_refused(self, tmp_path: Path) -> None:
        texts = [f"{CANARY} is what the guest said of us", "all was as good as it gets here"]
        rows = [{"text": "x", "label": texts[number % 2]} for number in range(40)]
        with pytest.raises(DataError, match=r"a label has 6 words or more.*card\.labels") as caught:
            ClassificationTask(config_of(tmp_path, rows, {}))
        assert CANARY not in str(caught.value)
        ClassificationTask(config_of(tmp_path, rows, {"card": {"labels": texts}}))

    def test_more_shots_than_rows_names_the_scarcest_label(self, tmp_path: Path) -> None:
        rows = [*sentiment_rows(), {"text": CANARY, "label": "odd"}]
        with pytest.raises(DataError) as caught:
            ClassificationTask(config_of(tmp_path, rows, {"data": {"shots": 4}}))
        assert "the label 'odd' has only 1 training rows" in str(caught.value)
        assert "Set data.shots to 1 or less" in str(caught.value)
        assert CANARY not in str(caught.value)


class TestLabelColumn:
    """A wrong label column would make rows into label names, which the assistant is told."""

    def test_second_text_column_as_label_column_is_refused(self, tmp_path: Path) -> None:
        changes = {"task": "text-pair-classification", "data": {"label": "text_pair"}}
        with pytest.raises(ConfigError, match=r"data\.label"):
            config_of(tmp_path, pair_rows(), changes)

    def test_column_of_more_than_200_labels_is_refused(self, tmp_path: Path) -> None:
        rows = [{"text": f"a {i}", "label": f"{CANARY} {i % 201}"} for i in range(804)]
        with pytest.raises(DataError, match="201 different labels in 804 rows") as caught:
            ClassificationTask(config_of(tmp_path, rows, {}))
        assert CANARY not in str(caught.value)

    def test_single_rows_per_label_are_taken_where_the_card_lists_the_labels(self, tmp_path: Path) -> None:
        rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
        config = config_of(tmp_path, rows, {"card": {"labels": ["x", "y"]}})
        assert ClassificationTask(config).label_names == ["x", "y"]


class TestShots:
    def test_every_class_has_as_many(self) -> None:
        sample = sample_shots(numbered(60, 3), 5, seed=1)
        assert Counter(example.label for example in sample) == {0: 5, 1: 5, 2: 5}

    def test_same_seed_gives_the_same_rows_in_the_same_order(self) -> None:
        assert sample_shots(numbered(60, 3), 5, seed=1) == sample_shots(numbered(60, 3), 5, seed=1)

    def test_no_row_is_drawn_twice(self) -> None:
        assert len(set(sample_shots(numbered(60, 3), 20, seed=1))) == 60

    def test_classes_are_mixed(self) -> None:
        labels = [example.label for example in sample_shots(numbered(60, 3), 10, seed=1)]
        assert labels != sorted(labels)


class TestCarving:
    def test_rest_and_carved_are_the_rows(self) -> None:
        rest, carved = carve(numbered(100, 2), 0.1, seed=0)
        assert {*rest, *carved} == set(numbered(100, 2))
        assert not set(rest) & set(carved)

    def test_share_is_the_same_in_every_class(self) -> None:
        _, carved = carve(numbered(100, 2), 0.1, seed=0)
        assert Counter(example.label for example in carved) == {0: 5, 1: 5}

    def test_class_of_one_row_keeps_it(self) -> None:
        rest, _ = carve([*numbered(100, 1), Example(("lonely",), 1)], 0.5, seed=0)
        assert Example(("lonely",), 1) in rest

    def test_same_seed_carves_the_same(self) -> None:
        assert carve(numbered(100, 2), 0.1, seed=3) == carve(numbered(100, 2), 0.1, seed=3)

    @pytest.mark.parametrize(
        ("train", "validation", "carve_few", "left"),
        [(500, 0, False, (450, 50)), (499, 0, False, (499, 0)), (40, 0, True, (36, 4)), (600, 4, False, (600, 4))],
        ids=["many rows", "few rows", "few rows of an online search", "validation rows are given"],
    )
    def test_validation_rows_are_carved_where_none_are_given(
        self, train: int, validation: int, carve_few: bool, left: tuple[int, int]
    ) -> None:
        given = rows_of(numbered(train, 2), numbered(validation, 2) or None)
        splits = make_splits(given, shots=None, seed=0, carve_few=carve_few)
        assert (len(splits.train), len(splits.validation)) == left


class TestOverlaps:
    def splits(self, train: list[str], validation: list[str], test: list[str]) -> tuple[str, ...]:
        def rows(texts: list[str]) -> list[Example]:
            return [Example((text,), i % 2) for i, text in enumerate(texts)]

        return make_splits(rows_of(rows(train), rows(validation), rows(test)), shots=None, seed=0).warnings

    def test_no_shared_row_gives_no_warning(self) -> None:
        assert self.splits(["a", "b"], ["c"], ["d"]) == ()

    def test_shared_rows_are_counted_for_each_pair_of_splits(self) -> None:
        warnings = self.splits(["a", "b", "c"], ["c", "d"], ["a", "b", "d"])
        assert [warning.split(":")[0] for warning in warnings] == [
            "2 training rows are also in test",
            "1 validation row is also in test",
            "1 training row is also in validation",
        ]

    def test_case_and_white_space_make_no_other_row(self) -> None:
        assert len(self.splits(["Hello  World", "x"], ["y"], [" hello world"])) == 1

    def test_warning_shows_no_row(self) -> None:
        assert CANARY not in "".join(self.splits([CANARY, "b"], ["c"], [CANARY]))


@pytest.mark.parametrize(("rows", "measured"), [(1, 1), (1000, 1000), (1001, 501), (2500, 834)])
def test_training_rows_to_measure_on_are_spread_over_all(rows: int, measured: int) -> None:
    train = [Example((str(number),), 0) for number in range(rows)]
    fitted = Splits(train, [], [], False, ()).fitted
    assert len(fitted) == measured
    assert fitted[0] is train[0] and int(fitted[-1].texts[0]) >= rows - rows // measured - 1


def test_repr_of_an_example_hides_its_text() -> None:
    assert CANARY not in repr(Example((CANARY,), 0))


def test_card_has_the_label_order_and_meanings_of_the_configuration(tmp_path: Path) -> None:
    labels = {"good": "would come  again", "bad": ""}
    card = ClassificationTask(config_of(tmp_path, sentiment_rows(), {"card": {"labels": labels}})).card()
    assert [(label.name, label.meaning) for label in card.labels] == [("good", "would come again"), ("bad", "")]


def test_card_is_the_same_whatever_rows_there_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", sentiment_rows()[:6])
    more = ClassificationTask(config_of(tmp_path, sentiment_rows(), {"data": {"test": "test.jsonl"}})).card()
    fewer = ClassificationTask(config_of(tmp_path, sentiment_rows(), {"data": {"shots": 3}})).card()
    assert more == fewer
