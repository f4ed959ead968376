"""Which rows to label next, and which labels to look at again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, invoke
from products import untrained
from samples import SENTIMENT, config_of, pair_rows, read_rows, sentiment_rows, write_config, write_jsonl

from gpta_local.config import dump
from gpta_local.downstream.product import Product
from gpta_local.labelling.doubts import check
from gpta_local.labelling.suggest import choose

UNLABELLED = [{"id": str(number), "text": text} for number, (text, _) in enumerate(SENTIMENT)]


class TestChoice:
    def test_uncertain_rows_come_from_every_group(self) -> None:
        """Three groups of ten rows; of each the one of which the model is unsure is taken."""
        rng = np.random.default_rng(0)
        features = np.repeat(np.eye(3), 10, axis=0) * 5 + rng.normal(size=(30, 3)) * 0.1
        chances = np.full((30, 2), [0.999999, 0.000001])
        chances[[4, 13, 27]] = [0.5, 0.5], [0.6, 0.4], [0.55, 0.45]
        assert choose(features, chances, 3) == [4, 27, 13]

    def test_all_rows_are_ranked_where_there_are_no_more(self) -> None:
        chances = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
        assert choose(np.eye(3), chances, 5) == [1, 2, 0]


@pytest.fixture(scope="module")
def product(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return untrained(tmp_path_factory.mktemp("product"), sentence)


class TestSuggest:
    def test_rows_keep_their_columns_and_none_comes_twice(self, product: Product, tmp_path: Path) -> None:
        rows = [*UNLABELLED, {"id": "again", "text": UNLABELLED[0]["text"]}]
        result = invoke("suggest", product.folder, write_jsonl(tmp_path / "rows.jsonl", rows), "-n", 6)
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert 3 <= len(lines) == len({line["text"] for line in lines}) <= 6
        for line in lines:
            assert rows[line["input_row"] - 1] == {"id": line["id"], "text": line["text"]}
            assert line["predicted_label"] in product.labels
        chances = [line["probability"] for line in lines]
        assert chances == sorted(chances), "the least certain first"

    def test_table_gives_a_table_and_rows_without_text_are_left_out(self, product: Product, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("id,text\n1,so good\n2,\n3,so bad\n", encoding="utf-8")
        result = invoke("suggest", product.folder, tmp_path / "rows.csv", "--output", tmp_path / "out.csv")
        assert result.exit_code == 0, result.output
        header, *lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
        assert header == "id,text,input_row,predicted_label,probability"
        assert {tuple(line.split(",")[:3]) for line in lines} == {("1", "so good", "1"), ("3", "so bad", "3")}

    def test_rows_without_any_text_are_told(self, product: Product, tmp_path: Path) -> None:
        rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": " "}])
        assert_refused(invoke("suggest", product.folder, rows), "no row has text")

    def test_plain_encoder_and_pairs(self, bert: Path, tmp_path: Path) -> None:
        product = untrained(tmp_path, bert, pair=True)
        rows = [{key: row[key] for key in ("text", "text_pair")} for row in pair_rows()]
        result = invoke("suggest", product.folder, write_jsonl(tmp_path / "rows.jsonl", rows), "-n", 3)
        assert result.exit_code == 0, result.output
        assert 1 <= len(result.stdout.splitlines()) <= 3

    @pytest.mark.parametrize(
        ("content", "words"), [("", "no rows"), ('{"tekst": "a"}\n', "no column 'text'"), ("garbage", "broken JSON")]
    )
    def test_file_that_cannot_be_used_is_told(self, product: Product, tmp_path: Path, content: str, words: str) -> None:
        (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")
        assert_refused(invoke("suggest", product.folder, tmp_path / "rows.jsonl"), words)


class TestCheck:
    def test_labels_that_were_changed_are_found_first(self, tmp_path: Path) -> None:
        """Real embeddings of the quickstart's rows; five of 56 labels are wrong."""
        rows = read_rows("train")
        labels = sorted({row["label"] for row in rows})
        wrong = range(0, 50, 11)
        for number in wrong:
            rows[number]["label"] = labels[(labels.index(rows[number]["label"]) + 3) % len(labels)]
        config = config_of(tmp_path, rows, {"data": {"shots": 4, "test": "gone.jsonl"}})
        (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
        found = check(tmp_path)
        assert found.rows == len(rows)
        places = [int(doubt.where.rpartition(":")[2]) - 1 for doubt in found.doubts]
        assert len(set(places[: len(wrong)]) & set(wrong)) >= 4
        for doubt in found.doubts:
            assert doubt.label != doubt.suggested
            assert doubt.probability < doubt.suggested_probability

    def test_places_and_labels_are_shown_and_no_text(self, sentence: Path, tmp_path: Path) -> None:
        changes = {"downstream": {"backbone": str(sentence)}}
        config = config_of(tmp_path, sentiment_rows(), changes)
        (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
        result = invoke("check", tmp_path, "-n", 2)
        assert result.exit_code == 0, result.output
        *shown, last = result.stdout.splitlines()
        assert last.startswith("24 rows checked, ")
        assert 0 < len(shown) <= 2
        assert all(line.startswith(f"{tmp_path}/train.jsonl:") and " rather " in line for line in shown)
        assert not any(text in result.output for text, _ in SENTIMENT)
        as_json = [json.loads(line) for line in invoke("check", tmp_path, "-n", 2, "--json").stdout.splitlines()]
        assert [line["where"] for line in as_json] == [line.split()[0] for line in shown]

    def test_too_few_rows_are_told(self, sentence: Path, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "train.jsonl", sentiment_rows()[:6])
        write_config(tmp_path / "config.yaml", {"downstream": {"backbone": str(sentence)}})
        assert_refused(invoke("check", tmp_path), "the label 'bad' has 3 rows, and 4 are needed")

    def test_exported_folder_names_no_rows(self, product: Product) -> None:
        assert_refused(invoke("check", product.folder), "no run here")
