"""What a run leaves for people to look at: the report, the model card, comparisons."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import html5lib
import pytest
from audited import train
from browser import NO_BROWSER, NO_VALIDATOR, errors, violations, width_of
from commands import assert_refused, invoke
from samples import EXAMPLE_TEXTS, SENTIMENT, label_text_reply, record_replies, write_jsonl

from gpta_local.report.page import as_page, as_table, plain
from gpta_local.report.run_report import write_report

TEXTS = [text for text, _ in SENTIMENT]


@pytest.fixture(scope="module")
def run(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with validation rows and example texts."""
    folder = tmp_path_factory.mktemp("reported")
    rows = [{"text": f"{text}, they say", "label": label} for text, label in SENTIMENT]
    write_jsonl(folder / "validation.jsonl", rows)
    changes: dict[str, Any] = {
        "data": {"validation": "validation.jsonl"},
        "knowledge": {"example_texts": 5},
        "assistant": {"run": "texts"},
    }
    meanings = {"bad": "a jurmish visit", "good": "a wexel evening"}
    record_replies(folder / "texts", [label_text_reply(meanings)], ["Guests:", "On food"] * 3, EXAMPLE_TEXTS)
    return train(folder, sentence, changes)


@pytest.fixture(scope="module")
def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """What a page would fetch or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "img", "image", "a", "base"):
            self.found.append(tag)
        self.found += [f"{name}={value}" for name, value in attrs if name in ("src", "srcset", "action", "data")]
        self.found += [
            f"{name}={value}" for name, value in attrs if "href" in name and not (value or "").startswith("#")
        ]


class TestPage:
    def test_run_writes_it_at_its_end_and_the_command_the_same_again(self, run: Path, page: str) -> None:
        text = (run / "report.md").read_text(encoding="utf-8")
        result = invoke("report", run)
        assert result.exit_code == 0, result.output
        assert (run / "report.html").read_text(encoding="utf-8") == page
        assert (run / "report.md").read_text(encoding="utf-8") == text

    def test_it_is_valid_html(self, page: str) -> None:
        parser = html5lib.HTMLParser(strict=True)
        parser.parse(page)

    def test_it_asks_for_nothing(self, page: str) -> None:
        links = Links()
        links.feed(page)
        assert links.found == []
        assert not re.search(r"@import|url\((?!#)", page)

    def test_each_section_is_there_in_both(self, run: Path, page: str) -> None:
        headings = re.findall(r"<h2>(.*?)</h2>", page)
        assert headings == [
            "What was compared",
            "Class by class",
            "What is taken for what",
            "How sure it is",
            "How it learnt",
            "What the assistant gave",
            "The data",
            "How it was made",
        ]
        assert re.findall(r"^## (.*)$", (run / "report.md").read_text(encoding="utf-8"), re.MULTILINE) == headings

    def test_its_first_sentence_is_the_verdict(self, page: str, summary: dict[str, Any]) -> None:
        first = re.search(r"<h1>.*?</h1>\n<p>(.*?)</p>", page)
        right = 100 * summary["arms"]["gpta"]["accuracy"]
        assert first and first[1].startswith(f"Of 24 test rows the model labels {right:.1f} % right (95 % interval ")

    def test_each_picture_says_what_it_shows(self, page: str) -> None:
        named = re.findall(r'<svg role="img" aria-label="([^"]{20,})"', page)
        assert len(named) == page.count("<svg") == 4

    def test_no_row_is_in_what_a_run_writes(self, run: Path) -> None:
        for path in run.rglob("*"):
            if path.is_file() and path.suffix in (".html", ".md", ".json", ".jsonl"):
                assert not [text for text in TEXTS if text in path.read_text(encoding="utf-8")], path

    def test_no_path_of_this_machine_is_in_it(self, run: Path, page: str) -> None:
        assert str(run.parent) not in page and "/tmp/" not in page

    def test_prefixes_are_shown_with_their_gains(self, page: str) -> None:
        assert re.search(r"<td>Guests:</td>\n<td>[+-]0\.\d{3}</td>", page)

    def test_example_texts_are_shown_with_their_verdicts(self, run: Path, page: str) -> None:
        made_up = [json.loads(line) for line in (run / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
        shown = [text for text in made_up if text["text"] in page]
        assert {text["label"] for text in shown} == {"bad", "good"}
        assert f"{made_up[0]['probability']:.2f}</td>\n<td>{'yes' if made_up[0]['kept'] else 'no'}</td>" in page

    def test_loss_on_test_rows_is_shown_while_it_learns(self, run: Path, page: str, summary: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        plain = next(line for line in lines if line["training"] == summary["arms"]["plain"]["training"])
        assert [step for step, _ in plain["watched"]] == [0, 1, 2]
        assert plain["watched"][-1][1] == pytest.approx(summary["arms"]["plain"]["loss"], abs=1e-4), "24 rows are all"
        course = ", ".join(f"{step}: {loss:.3f}" for step, loss in plain["watched"])
        assert f'<td>plain fine-tuning</td>\n<td style="text-align:left">{course}</td>' in page

    def test_audit_head_and_versions_are_told(self, page: str, summary: dict[str, Any]) -> None:
        assert summary["audit_head"] in page and "torch 2." in page


@pytest.mark.browser
@pytest.mark.skipif(bool(NO_VALIDATOR), reason=NO_VALIDATOR)
def test_validator_finds_nothing_wrong(run: Path) -> None:
    assert errors(run / "report.html", "standard,document,a11y") == ""


@pytest.mark.browser
@pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
class TestBrowser:
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_axe_finds_nothing_wrong(self, page: str, dark: bool) -> None:
        assert violations(page, dark=dark) == []

    @pytest.mark.parametrize("screen", [400, 800, 1280])
    def test_page_is_no_wider_than_the_screen(self, page: str, screen: int) -> None:
        assert width_of(page, screen) <= screen


class TestFigures:
    def test_classes_and_confusions_agree_with_the_accuracy(self, summary: dict[str, Any]) -> None:
        product = summary["product"]
        right = sum(row.get(name, 0) for name, row in product["confusion"].items())
        assert right / 24 == pytest.approx(summary["arms"]["gpta"]["accuracy"])
        assert {name: of["rows"] for name, of in product["classes"].items()} == {"bad": 12, "good": 12}

    def test_predictions_are_of_the_test_rows_and_hold_no_text(self, run: Path, summary: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["label"] for row in rows] == [label for _, label in SENTIMENT]
        right = [row["label"] == row["predicted"] for row in rows]
        assert sum(right) / 24 == pytest.approx(summary["arms"]["gpta"]["accuracy"])
        assert {tuple(row) for row in rows} == {("row", "label", "predicted", "probability")}

    def test_predict_gives_the_calibrated_probabilities(self, run: Path, summary: dict[str, Any]) -> None:
        from gpta_local import predict

        temperature = summary["product"]["calibration"]["temperature"]
        record = json.loads((run / "model" / "gpta.json").read_text(encoding="utf-8"))
        assert record["temperature"] == temperature != 1
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        given = predict(run, TEXTS)
        assert [max(of.probabilities.values()) for of in given] == pytest.approx(
            [row["probability"] for row in rows], abs=1e-3
        )

    def test_data_facts_count_the_rows(self, summary: dict[str, Any]) -> None:
        splits = summary["data"]["splits"]
        assert {name: of["rows"] for name, of in splits.items()} == {"training": 24, "validation": 24, "test": 24}
        assert (splits["test"]["in_training"], splits["validation"]["in_training"]) == (24, 0)


class TestRows:
    def test_mistakes_are_shown_on_request_in_a_page_of_their_own(self, run: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(run, tmp_path / "run"))
        result = invoke("report", copied, "--with-rows")
        assert result.exit_code == 0 and "keep it as private" in result.stderr
        private = (copied / "report-with-rows.html").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        wrong = [text for text, row in zip(TEXTS, rows, strict=True) if row["label"] != row["predicted"]]
        assert [text for text in TEXTS if text in private] == wrong != []
        assert "This page is private" in private
        assert (copied / "report-with-rows.html").stat().st_mode & 0o077 == 0

    def test_test_rows_that_have_gone_are_told(self, run: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(run, tmp_path / "run"))
        config = (copied / "config.yaml").read_text(encoding="utf-8").replace("test.jsonl", "gone.jsonl")
        (copied / "config.yaml").write_text(config, encoding="utf-8")
        assert_refused(invoke("report", copied, "--with-rows"), "gone.jsonl")


class TestOtherRuns:
    def test_folder_without_a_run_is_told(self, tmp_path: Path) -> None:
        assert_refused(invoke("report", tmp_path), "no finished run here")

    def test_broken_record_is_told(self, run: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(run, tmp_path / "run"))
        (copied / "metrics.jsonl").write_text("garbage\n", encoding="utf-8")
        assert_refused(invoke("report", copied), "metrics.jsonl:1", "not a line that a run writes")

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"arms": {}}', "\x00"])
    def test_broken_summary_is_told(self, run: Path, tmp_path: Path, content: str) -> None:
        (tmp_path / "summary.json").write_text(content, encoding="utf-8")
        assert_refused(invoke("report", tmp_path), "summary.json")

    def test_purge_deletes_it_and_the_next_has_no_text_of_the_assistant(self, run: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(run, tmp_path / "run"))
        write_report(copied, with_rows=True)
        result = invoke("purge", copied, "--yes")
        assert result.exit_code == 0 and "deleted: report.html" in result.stdout
        assert not list(copied.glob("report*"))
        assert invoke("report", copied).exit_code == 0
        again = (copied / "report.html").read_text(encoding="utf-8")
        assert "was purged on" in again and "jurmish" not in again and "steak was burnt" not in again
        assert invoke("audit", "verify", copied).exit_code == 0


def test_run_of_one_file_is_calibrated_on_its_cross_validation(sentence: Path, tmp_path: Path) -> None:
    run = train(tmp_path, sentence, {"data": {"test": None}, "finish": {"folds": 2}})
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    calibration = found["product"]["calibration"]
    assert (calibration["fitted_on"], calibration["rows"]) == ("cross-validated training", 24)
    assert json.loads((run / "model" / "gpta.json").read_text(encoding="utf-8"))["temperature"] > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(page)
    assert "fitted on the rows that it is measured on here: too good" in page
    assert invoke("report", run, "--with-rows").exit_code == 0
    assert any(text in (run / "report-with-rows.html").read_text(encoding="utf-8") for text in TEXTS)


class TestBlocks:
    @pytest.mark.parametrize(
        "text", ["a | b", "<script>x</script>", "![x](http://y)", "[x](http://y)", "&lt;", "*a* `b`"]
    )
    def test_any_words_are_shown_as_they_are(self, text: str) -> None:
        page = as_page([as_table("Words.", ("what", "which"), [("1", text)])], "Words")
        tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)
        cells = ["".join(cell.itertext()) for cell in tree.iter("td")]
        assert cells == ["1", text] or (text == "*a* `b`" and cells == ["1", "*a* b"])
        assert not list(tree.iter("a")) and not list(tree.iter("img")) and not list(tree.iter("script"))

    def test_line_breaks_stay_in_a_cell(self) -> None:
        assert plain("a\n\n# b") == "a # b"
