"""Data files as they are in the world: dialects, missing labels, class names, compression, and what is told of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from samples import config_of, write_config, write_jsonl

from gpta_local.config import load, reading
from gpta_local.data.readers import read_records
from gpta_local.errors import ConfigError, DataError
from gpta_local.schema import Label
from gpta_local.tasks.classification import ClassificationTask

MESSAGES = [
    ("My car was towed from Elm Row last night", "parking"),
    ("The book return box is full again", "library"),
    ("The brown bin was not emptied on Tuesday", "waste"),
    ("Where do I pay for a resident permit", "parking"),
    ("Can I renew two novels by phone", "library"),
    ("How do I get rid of an old sofa", "waste"),
]
OFFICES = ["library", "parking", "waste"]


def task_of(path: Path, data: dict[str, Any] | None = None, card: dict[str, Any] | None = None) -> ClassificationTask:
    changes = {"data": {"train": path.name, **(data or {})}, "card": card or {}}
    return ClassificationTask(load(write_config(path.parent / "config.yaml", changes)))


def texts_of(task: ClassificationTask) -> list[str]:
    return [example.texts[0] for example in task.splits().train]


def refused(path: Path, data: dict[str, Any] | None = None, card: dict[str, Any] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        task_of(path, data, card)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert not any(text in message for text, _ in MESSAGES)
    return message


def written(path: Path, lines: Sequence[str], *, encoding: str = "utf-8", end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def csv_lines(delimiter: str = ",") -> list[str]:
    return [delimiter.join(["text", "label"]), *(delimiter.join(row) for row in MESSAGES)]


class TestTabs:
    def test_quote_mark_is_a_character(self, tmp_path: Path) -> None:
        lines = csv_lines("\t")
        lines[1], lines[2] = f'"{lines[1]}', lines[2].replace("\t", '"\t')
        task = task_of(written(tmp_path / "train.tsv", lines))
        assert len(texts_of(task)) == len(MESSAGES)
        assert texts_of(task)[0] == f'"{MESSAGES[0][0]}'
        assert "quote marks are characters" in task.splits().notes[0]

    @pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    def test_file_that_is_clearly_quoted_is_read_so(self, tmp_path: Path, quoting: Any) -> None:
        rows = [('they say "no", always', "a"), ("plain", "b"), ("two\nlines", "a"), ("a\ttab", "b")]
        with (tmp_path / "train.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t", quoting=quoting).writerows([("text", "label"), *rows])
        assert texts_of(task_of(tmp_path / "train.tsv")) == [text for text, _ in rows]

    def test_quoted_sentence_in_an_unquoted_file_keeps_its_marks(self, tmp_path: Path) -> None:
        lines = ["text\tlabel", '"a good film"\tx', 'the "best" film\ty', "z\tx", "w\ty"]
        assert texts_of(task_of(written(tmp_path / "train.tsv", lines)))[0] == '"a good film"'

    def test_mark_alone_at_the_end_of_two_rows_glues_nothing(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.tsv", ["text\tlabel", "a\tx", '"\ty', '"\tx', 'b "c\ty'])
        assert texts_of(task_of(path)) == ["a", '"', '"', 'b "c']

    def test_rows_that_marks_may_or_may_not_hold_together_are_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.tsv", ["text\tlabel", "a\tx", "b\tx", '"\ty', '"\tz'])
        assert "then there are 4 rows, else 5" in refused(path)
        task = task_of(path, {"format": {"quoting": "none"}}, {"labels": ["x", "y", "z"]})
        assert texts_of(task) == ["a", "b", '"', '"']

    def test_row_that_does_not_fit_says_that_quote_marks_are_read_as_characters(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.tsv", ["text\tlabel", 'a "b"\tx', "c\td\ty"])
        assert "train.tsv:3: not the 2 fields of the header" in refused(path)
        assert "if quote marks wrap them, set data.format.quoting: wrapped" in refused(path)

    def test_quoting_can_be_set(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.tsv", ["text\tlabel", '"a"\tx', '"b"\ty'])
        assert texts_of(task_of(path)) == ['"a"', '"b"']
        assert texts_of(task_of(path, {"format": {"quoting": "wrapped"}})) == ["a", "b"]


class TestDialects:
    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    def test_delimiter_of_a_csv_file_is_found_and_told(self, tmp_path: Path, delimiter: str) -> None:
        task = task_of(written(tmp_path / "train.csv", csv_lines(delimiter)))
        assert texts_of(task) == [text for text, _ in MESSAGES]
        assert len(task.splits().notes) == 1 and "separated by" in task.splits().notes[0]

    def test_plain_file_is_read_without_a_note(self, tmp_path: Path) -> None:
        assert task_of(written(tmp_path / "train.csv", csv_lines())).splits().notes == ()

    @pytest.mark.parametrize("delimiter", [",", ";"])
    def test_line_of_sep_says_the_delimiter_and_is_no_row(self, tmp_path: Path, delimiter: str) -> None:
        lines = [f"sep={delimiter}", *csv_lines(delimiter)]
        path = written(tmp_path / "train.csv", lines, encoding="utf-8-sig", end="\r\n")
        assert texts_of(task_of(path)) == [text for text, _ in MESSAGES]
        assert read_records(str(path)).records[0].where.endswith("train.csv:3")

    def test_delimiter_can_be_set(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", csv_lines("~"))
        assert len(texts_of(task_of(path, {"format": {"delimiter": "~"}}))) == len(MESSAGES)
        with pytest.raises(ConfigError, match="must be one character"):
            task_of(path, {"format": {"delimiter": "~~"}})

    def test_file_without_a_header_is_read_where_that_is_said(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", csv_lines()[1:])
        message = refused(path)
        assert "set data.format.header: false" in message
        settings = {"format": {"header": False}, "text": "column1", "label": "column2"}
        assert len(texts_of(task_of(path, settings))) == len(MESSAGES)

    def test_empty_columns_and_rows_at_the_end_are_passed_over(self, tmp_path: Path) -> None:
        lines = [f"{line},,," for line in csv_lines()] + [",,,,", ",,,,"]
        assert len(texts_of(task_of(written(tmp_path / "train.csv", lines, end="\r\n")))) == len(MESSAGES)

    def test_value_in_an_empty_column_is_told(self, tmp_path: Path) -> None:
        lines = [f"{line},," for line in csv_lines()]
        lines[3] = "The brown bin, too, was not emptied on Tuesday,waste"
        assert refused(written(tmp_path / "train.csv", lines)).startswith("train.csv:4: a value beyond the 2 fields")

    def test_row_of_empty_fields_between_others_is_told(self, tmp_path: Path) -> None:
        lines = csv_lines()
        lines[2] = ","
        assert refused(written(tmp_path / "train.csv", lines)).startswith("train.csv:3: 'label' is empty")

    def test_header_of_a_second_file_is_told(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", [*csv_lines(), "\ufeff" + csv_lines()[0], *csv_lines()[1:]])
        assert refused(path).startswith("train.csv:8: the header is there again")

    def test_field_that_swallows_rows_is_told_with_its_first_line(self, tmp_path: Path) -> None:
        lines = csv_lines()
        lines[2] = f'"{lines[2]}'
        lines[4] = lines[4].replace(",", '",')
        message = refused(written(tmp_path / "train.csv", lines))
        assert message.startswith("train.csv:3: a quoted field goes over lines that are rows")
        assert texts_of(task_of(tmp_path / "train.csv", {"format": {"quoting": "none"}}))[1].startswith('"')

    def test_open_quote_is_told_with_its_first_line(self, tmp_path: Path) -> None:
        lines = csv_lines()
        lines[2] = f'"{lines[2]}'
        assert refused(written(tmp_path / "train.csv", lines)).startswith("train.csv:3: broken CSV")

    def test_spaces_before_a_quote_mark_do_not_make_it_a_character(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", ["text, label", *(f'"{t}, please", "{label}"' for t, label in MESSAGES)])
        task = task_of(path)
        assert list(task.label_names) == OFFICES and texts_of(task)[0] == f"{MESSAGES[0][0]}, please"
        assert ["spaces" in note for note in task.splits().notes] == [True]
        plain = written(tmp_path / "plain.csv", ["text,label", *(f'"{t}, ",{label}' for t, label in MESSAGES)])
        assert task_of(plain).splits().notes == (), "a field may end so"

    def test_lines_before_the_header_are_thought_of(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", ["exported on Monday", *csv_lines()])
        with pytest.raises(DataError, match="If line 1 is not the header, remove what stands before it"):
            read_records(str(path))

    def test_text_of_several_lines_is_a_row(self, tmp_path: Path) -> None:
        letter = "Dear all,\nmy car, again.\nThanks, A"
        with (tmp_path / "train.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), (letter, "parking"), *MESSAGES])
        assert texts_of(task_of(tmp_path / "train.csv"))[0] == letter

    def test_column_that_is_twice_matters_only_in_use(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", ["id,text,id,label", "1,a,2,x", "2,b,3,y"])
        assert texts_of(task_of(path)) == ["a", "b"]
        assert "the column 'id' is there twice" in refused(path, {"text": "id"})


class TestEncodings:
    @pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    def test_byte_order_mark_says_how_it_is_written(self, tmp_path: Path, name: str, encoding: str) -> None:
        rows = [*MESSAGES, ("größer 漢字", "waste")]
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        lines = lines if name.endswith("jsonl") else ["text,label", *(",".join(row) for row in rows)]
        task = task_of(written(tmp_path / name, lines, encoding=encoding))
        assert texts_of(task)[-1] == "größer 漢字"
        assert len(task.splits().notes) == (encoding != "utf-8-sig")

    def test_other_encodings_are_told_with_the_line_and_can_be_set(self, tmp_path: Path) -> None:
        path = written(tmp_path / "train.csv", [*csv_lines(), "größer,waste"], encoding="cp1252")
        assert refused(path).startswith("train.csv:8: not UTF-8 text (byte")
        assert texts_of(task_of(path, {"encoding": "cp1252"}))[-1] == "größer"
        with pytest.raises(ConfigError, match="no encoding that Python knows"):
            task_of(path, {"encoding": "klingon"})


MISSING = [None, "", "  ", float("nan"), "NaN", "nan", "<NA>", "#N/A", []]


class TestMissingLabels:
    @pytest.mark.parametrize("value", MISSING, ids=repr)
    def test_is_told_with_its_line_and_never_a_class(self, tmp_path: Path, value: Any) -> None:
        rows = [{"text": text, "label": label} for text, label in MESSAGES]
        rows[4]["label"] = value
        message = refused(write_jsonl(tmp_path / "train.jsonl", rows))
        assert message.startswith("train.jsonl:5: 'label' is empty or not a label")

    @pytest.mark.parametrize("values", [[1.0, None] * 3, [1, None] * 3, ["a", None] * 3, [1.0, float("nan")] * 3])
    def test_is_told_in_a_table(self, tmp_path: Path, values: list[Any]) -> None:
        table = pyarrow.table({"text": [text for text, _ in MESSAGES], "label": values})
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        assert refused(tmp_path / "train.parquet").startswith("train.parquet row 2: 'label' is empty or not a label")

    def test_name_that_looks_missing_is_a_class_where_the_card_lists_it(self, tmp_path: Path) -> None:
        path = write_jsonl(
            tmp_path / "train.jsonl", [{"text": f"a {i}", "label": "NaN" if i % 2 else "x"} for i in range(8)]
        )
        assert "list it in card.labels" in refused(path)
        assert task_of(path, card={"labels": ["NaN", "x"]}).label_names == ["NaN", "x"]

    def test_name_that_may_be_missing_is_a_class_with_a_warning(self, tmp_path: Path) -> None:
        rows = [{"text": f"a {i}", "label": "None" if i % 2 else "x"} for i in range(8)]
        task = task_of(write_jsonl(tmp_path / "train.jsonl", rows))
        assert task.label_names == ["None", "x"]
        assert "'None' looks like a missing value" in task.splits().warnings[0]


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "names"),
        [
            ([1, 1.0, "1", "1.0", 2, 2], ["1", "2"]),
            ([1.0, 2.0, 1.0, 2.0, 1.0, 2.0], ["1", "2"]),
            (["1.0", "2.0"] * 3, ["1.0", "2.0"]),
            ([0.5, 1] * 3, ["0.5", "1"]),
            ([True, "true", "TRUE", False, "false", "False"], None),
            (["caf\u00e9", "cafe\u0301", "tea"] * 2, ["caf\u00e9", "tea"]),
            (["a  b", "a\nb", "a\u00a0b", " a b", "c", "\ufeffc"], ["a b", "c"]),
            ([["a"], ["b"]] * 3, ["a", "b"]),
            (["01", "1"] * 3, ["01", "1"]),
        ],
        ids=str,
    )
    def test_spellings_of_one_class_are_one(self, tmp_path: Path, values: list[Any], names: list[str] | None) -> None:
        rows = [{"text": text, "label": value} for (text, _), value in zip(MESSAGES, values, strict=True)]
        found = task_of(write_jsonl(tmp_path / "train.jsonl", rows)).label_names
        assert len(found) == 2 if names is None else found == names

    def test_other_files_may_spell_it_otherwise(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": "1.0"}, {"text": "y", "label": "cafe\u0301"}])
        rows = [{"text": text, "label": i % 2 or "caf\u00e9"} for i, (text, _) in enumerate(MESSAGES)]
        task = task_of(write_jsonl(tmp_path / "train.jsonl", rows), {"test": "test.jsonl"})
        assert [task.label_names[row.label] for row in task.splits().test] == ["1", "caf\u00e9"]

    def test_card_and_rows_are_compared_in_nfc(self, tmp_path: Path) -> None:
        rows = [{"text": text, "label": "cafe\u0301" if i % 2 else "tea"} for i, (text, _) in enumerate(MESSAGES)]
        card = {"labels": {"caf\u00e9": "where one sits", "tea": ""}}
        task = task_of(write_jsonl(tmp_path / "train.jsonl", rows), card=card)
        assert task.card().labels == (Label("caf\u00e9", "where one sits"), Label("tea"))
        assert unicodedata.is_normalized("NFC", task.label_names[0])

    def test_several_labels_of_a_row_name_the_task_that_is_not_there(self, tmp_path: Path) -> None:
        rows = [{"text": text, "label": [label]} for text, label in MESSAGES]
        rows[1]["label"] = ["parking", "waste"]
        message = refused(write_jsonl(tmp_path / "train.jsonl", rows))
        assert message.startswith("train.jsonl:2: 'label' is a list of 2 labels") and "multi-label" in message

    def test_class_for_each_row_says_what_is_needed(self, tmp_path: Path) -> None:
        rows = [{"text": text, "label": f"topic {i}"} for i, (text, _) in enumerate(MESSAGES)]
        path = write_jsonl(tmp_path / "train.jsonl", rows)
        assert "Each label needs two rows or more" in refused(path) and "card.labels" in refused(path)


FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=OFFICES)})


def named_classes(**changes: Any) -> datasets.Dataset:
    rows = {"text": [text for text, _ in MESSAGES], "label": [label for _, label in MESSAGES], **changes}
    return datasets.Dataset.from_dict(rows, features=FEATURES)


class TestTypedTables:
    def test_parquet_of_datasets_has_the_names_of_its_classes(self, tmp_path: Path) -> None:
        named_classes().to_parquet(tmp_path / "train.parquet")
        assert task_of(tmp_path / "train.parquet").label_names == OFFICES

    def test_list_of_one_class_number_has_its_name(self, tmp_path: Path) -> None:
        features = datasets.Features({**FEATURES, "label": datasets.List(FEATURES["label"])})
        rows = {"text": [text for text, _ in MESSAGES], "label": [[label] for _, label in MESSAGES]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        assert task_of(tmp_path / "train.parquet").label_names == OFFICES

    def test_minus_one_of_a_row_without_label_is_missing(self, tmp_path: Path) -> None:
        named_classes(label=[0, 1, -1, 0, 1, 2]).save_to_disk(tmp_path / "train")
        assert refused(tmp_path / "train").startswith("train row 3: 'label' is empty or not a label")

    @pytest.mark.parametrize("view", [{"type": "torch"}, {"type": "numpy"}, {"type": "torch", "columns": ["label"]}])
    def test_format_that_was_saved_with_a_folder_is_a_view(self, tmp_path: Path, view: dict[str, Any]) -> None:
        named_classes().with_format(**view).save_to_disk(tmp_path / "train")
        task = task_of(tmp_path / "train")
        assert texts_of(task) == [text for text, _ in MESSAGES] and task.label_names == OFFICES

    def test_columns_that_are_not_in_use_are_not_converted(self, tmp_path: Path) -> None:
        size = len(MESSAGES)
        far = pyarrow.array([2**62] * size, pyarrow.timestamp("us"))
        zone = pyarrow.array([0] * size, pyarrow.timestamp("us", tz="Mars/Olympus"))
        span = pyarrow.array([1] * size, pyarrow.duration("ns"))
        nested = [{"a": [{"text": 1}]}] * size
        columns = {"far": far, "zone": zone, "span": span, "nested": nested, "sound": [b"\xff"] * size}
        texts, labels = zip(*MESSAGES, strict=True)
        table = pyarrow.table({**columns, "text": list(texts), "label": list(labels)})
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        assert texts_of(task_of(tmp_path / "train.parquet")) == list(texts)
        assert "far" not in read_records(str(tmp_path / "train.parquet")).records[0].values

    def test_bytes_are_text_if_they_are_in_utf_8(self, tmp_path: Path) -> None:
        table = {"text": [f"{text} ü".encode() for text, _ in MESSAGES], "label": [label for _, label in MESSAGES]}
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
        assert texts_of(task_of(tmp_path / "train.parquet"))[0] == f"{MESSAGES[0][0]} ü"
        table["text"][2] = b"\xff\xfe"
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
        assert "'text'" in refused(tmp_path / "train.parquet")

    def test_sound_is_not_decoded(self, tmp_path: Path) -> None:
        texts, labels = zip(*MESSAGES, strict=True)
        sound = [{"bytes": b"no sound", "path": "a.wav"}] * len(MESSAGES)
        features = datasets.Features({"audio": datasets.Audio(), **FEATURES})
        table = pyarrow.table({"audio": sound, "text": texts, "label": [OFFICES.index(label) for label in labels]})
        datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(tmp_path / "train")
        assert task_of(tmp_path / "train").label_names == OFFICES


def compressed(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


class TestDoors:
    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    @pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.tsv", "train.parquet"])
    def test_compressed_file_is_read_whole_or_refused(self, tmp_path: Path, name: str, suffix: str) -> None:
        rows = [{"text": text, "label": label} for text, label in MESSAGES]
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        content = {
            "train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
            "train.json": json.dumps(rows, indent=1).encode(),
            "train.csv": "\n".join(csv_lines()).encode(),
            "train.tsv": "\n".join(csv_lines("\t")).encode(),
            "train.parquet": sink.getvalue(),
        }[name]
        path = tmp_path / (name + suffix)
        path.write_bytes(compressed(content, suffix))
        assert texts_of(task_of(path)) == [text for text, _ in MESSAGES]
        path.write_bytes(path.read_bytes()[:-9])
        assert f"{path.name}: not a whole {suffix} file" in refused(path)
        path.write_bytes(content)
        told = "not a .gz file" if suffix == ".gz" else "not a whole .zst file"
        assert f"{path.name}: {told}" in refused(path)

    def test_json_may_be_lines_too(self, tmp_path: Path) -> None:
        rows = [{"text": text, "label": label} for text, label in MESSAGES]
        assert len(texts_of(task_of(write_jsonl(tmp_path / "train.json", rows)))) == len(MESSAGES)

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ('{"data": []}', "train.json:1: no column 'text'"),
            ('{\n"data": [1, 2]\n}', "not a list of objects"),
            ('[\n{"text": "a"\n', "train.json:"),
            ('{"version": 1, "rows": [{"text": "a", "label": "b"}]}', "an object whose key 'rows' holds the rows"),
            ('{\n"text": {"0": "a", "1": "b"},\n"label": {"0": "x", "1": "y"}}', "a table by columns, not by rows"),
            ("[1]", "train.json row 1: a JSON int, not an object"),
            ("3", "a JSON int, not a list"),
            ("[]", "no rows"),
        ],
    )
    def test_other_json_is_told(self, tmp_path: Path, content: str, told: str) -> None:
        (tmp_path / "train.json").write_text(content)
        assert told in refused(tmp_path / "train.json")

    def test_one_object_in_a_json_file_is_a_row(self, tmp_path: Path) -> None:
        (tmp_path / "one.json").write_text('{"text": "a", "label": "b"}')
        assert len(read_records(str(tmp_path / "one.json")).records) == 1

    @pytest.mark.parametrize(("name", "told"), [("a.zip", "Unpack it"), ("a.xls", ".xlsx"), ("a.txt", "__label__")])
    def test_other_formats_are_told_with_what_to_do(self, tmp_path: Path, name: str, told: str) -> None:
        assert told in refused(written(tmp_path / name, csv_lines()))

    def test_name_of_a_compressed_file_that_is_none_is_told(self, tmp_path: Path) -> None:
        message = refused(written(tmp_path / "train.csv.gz", csv_lines()))
        assert (
            message
            == "train.csv.gz: not a .gz file. It is not compressed, or not by gzip: name it train.csv, or compress it"
        )

    def test_shards_are_read_in_order_and_told(self, tmp_path: Path) -> None:
        for number in (1, 0):
            rows = [{"text": text, "label": label} for text, label in MESSAGES[number::2]]
            (tmp_path / "train").mkdir(exist_ok=True)
            place = tmp_path / "train" / f"train-{number:05d}-of-00002.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place)
        (tmp_path / "train" / "_SUCCESS").touch()
        task = task_of(tmp_path / "train")
        assert texts_of(task) == [text for text, _ in MESSAGES[::2] + MESSAGES[1::2]]
        assert "2 files read as one" in task.splits().notes[0]
        (tmp_path / "train" / "test-00000-of-00001.parquet").write_bytes(place.read_bytes())
        assert "a folder of several splits" in refused(tmp_path / "train")

    def test_first_sheet_of_a_workbook_is_read(self, tmp_path: Path) -> None:
        book = openpyxl.Workbook()
        sheet = book.active
        for row in [
            ("text", "label", None),
            *((text, i % 2, None) for i, (text, _) in enumerate(MESSAGES)),
            (None, ""),
        ]:
            sheet.append(row)
        book.create_sheet("notes")
        book.save(tmp_path / "train.xlsx")
        task = task_of(tmp_path / "train.xlsx")
        assert task.label_names == ["0", "1"] and len(texts_of(task)) == len(MESSAGES)
        assert "the first of its 2 sheets is read" in task.splits().notes[0]
        sheet.cell(4, 2).value = None
        book.save(tmp_path / "train.xlsx")
        assert refused(tmp_path / "train.xlsx").startswith("train.xlsx row 4: 'label' is empty")

    def test_what_is_no_workbook_is_told(self, tmp_path: Path) -> None:
        assert "not a readable .xlsx file" in refused(written(tmp_path / "train.xlsx", csv_lines()))


class TestWarnings:
    def warnings(
        self, folder: Path, rows: list[tuple[str, str]], test: list[tuple[str, str]] | None = None
    ) -> list[str]:
        changes: dict[str, Any] = {"data": {"test": "test.jsonl"}} if test else {}
        write_jsonl(folder / "test.jsonl", [{"text": text, "label": label} for text, label in test or []])
        config = config_of(folder, [{"text": text, "label": label} for text, label in rows], changes)
        return list(ClassificationTask(config).splits().warnings)

    def test_good_rows_give_none(self, tmp_path: Path) -> None:
        assert self.warnings(tmp_path, MESSAGES, [("A lamp is out in front of my house", "waste")]) == []

    def test_same_text_under_two_labels(self, tmp_path: Path) -> None:
        rows = [*MESSAGES, (MESSAGES[1][0].upper(), "waste")]
        (warning,) = self.warnings(tmp_path, rows)
        assert warning.startswith(f"1 text stands under different labels, the first at {tmp_path}/train.jsonl:2 and 7")

    def test_labels_that_differ_in_capitals(self, tmp_path: Path) -> None:
        (warning,) = self.warnings(tmp_path, [*MESSAGES, ("a", "Waste"), ("b", "Waste")])
        assert warning.startswith("the labels 'Waste' and 'waste' differ in capitals")

    def test_very_rare_class(self, tmp_path: Path) -> None:
        rows = [(f"message {i}", OFFICES[i % 2]) for i in range(40)]
        (warning,) = self.warnings(tmp_path, [*rows, ("a sofa", "waste"), ("a bin", "waste")])
        assert warning.startswith("very few training rows of 'waste' (2)")

    @pytest.mark.parametrize(
        "near",
        ["my car WAS towed, from elm row!", "My own car was towed from Elm Row", "My car was hauled from Elm Row"],
    )
    def test_nearly_the_same_row_in_two_splits(self, tmp_path: Path, near: str) -> None:
        rows = [*MESSAGES[1:], ("My car was towed from Elm Row", "parking")]
        (warning,) = self.warnings(tmp_path, rows, [(near, "parking")])
        assert warning.startswith("1 training row is nearly the same as one in test")
        assert self.warnings(tmp_path, rows, [("My bike was hauled from Elm Row", "parking")]) == []


class TestPredicting:
    def test_new_rows_may_be_written_otherwise(self, tmp_path: Path) -> None:
        given = {"format": {"header": False, "delimiter": ";"}}
        assert reading([], given).format.header is False
        other = reading(["data.encoding=cp1252", "data.format.header=true"], given)
        assert (other.encoding, other.format.header, other.format.delimiter) == ("cp1252", True, ";")
        with pytest.raises(ConfigError, match=r"only data\.encoding, data\.format, data\.text"):
            reading(["seed=1"], given)

    def test_rows_come_from_standard_input(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = "".join(json.dumps({"text": text}) + "\n" for text, _ in MESSAGES)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        table = read_records("-", ["text"])
        assert [record.values["text"] for record in table.records] == [text for text, _ in MESSAGES]
        assert table.records[1].where == "standard input:2"
