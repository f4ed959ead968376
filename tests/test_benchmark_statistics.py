"""Differences, intervals and goals of a benchmark, and what its report says, from made-up results."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import arm, record, suite_content

from gpta_local.benchmark import report
from gpta_local.benchmark.statistics import Comparison, by_receiving_set, finished, judge, mean_difference, points
from gpta_local.benchmark.suite import GoalEntry, Suite, SuiteFile
from gpta_local.benchmark.trials import Record, Trial
from gpta_local.config import Config

SETS = ("guests", "scenes")
ARMS = ["plain", "label_texts", "gpta"]


def results(gains: tuple[float, float] = (10.0, 4.0), samples: int = 10, **changes: Any) -> dict[Trial, Record]:
    """`gpta` is better than `plain` by `gains` points on the two sets, give or take one."""
    rng = np.random.default_rng(0)
    found: dict[Trial, Record] = {}
    for name, gain in zip(SETS, gains, strict=True):
        for sample in range(samples):
            base = 0.5 + 0.1 * rng.random()
            ours = base + (gain + rng.uniform(-1, 1)) / 100
            cost = {"completions": 72, "prompt_tokens": 100, "completion_tokens": 50, "against_plain": [0.1, 0.0, 0.2]}
            seconds = {"total": 30.0, "assistant": 15.0, "search": 20.0, "training": 4.0, "evaluation": 1.0}
            found[arm(name, "plain", sample)] = record(
                base, seconds={"total": 10.0, "training": 10.0, "evaluation": 1.0}
            )
            found[arm(name, "label_texts", sample)] = record(base + 0.02)
            found[arm(name, "gpta", sample)] = record(ours, prefix="Mood:", seconds=seconds, **cost, **changes)
    return found


def suite_file(**changes: Any) -> SuiteFile:
    tables = {"main": {"shots": [8], "samples": 10, "arms": ARMS}}
    return SuiteFile.model_validate(suite_content({"tables": tables, **changes}))


def compared(found: dict[Trial, Record], samples: int = 10) -> Comparison:
    return Comparison(finished(found), SETS, 8, samples)


def verdict(found: dict[Trial, Record], **goal: Any) -> tuple[bool | None, str]:
    entry = GoalEntry.model_validate({"table": "main", "shots": 8, "theirs": "plain", **goal})
    judged = judge(entry, suite_file(), finished(found))
    return judged.reached, str(judged)


class TestDifferences:
    def test_mean_is_that_over_sets_of_that_over_samples(self) -> None:
        per_set = {"a": np.array([1.0, 3.0]), "b": np.array([10.0, 10.0, 10.0, 10.0])}
        assert mean_difference(per_set).value == pytest.approx(6.0)

    def test_interval_is_that_of_the_normal_law_where_it_holds(self) -> None:
        rng = np.random.default_rng(1)
        per_set = {name: rng.normal(2.0, 1.0, 400) for name in SETS}
        interval = mean_difference(per_set)
        error = np.sqrt(sum(d.var() / 400 for d in per_set.values())) / 2
        assert interval.low == pytest.approx(interval.value - 1.96 * error, abs=0.15 * error)
        assert interval.high == pytest.approx(interval.value + 1.96 * error, abs=0.15 * error)

    def test_single_sample_leaves_the_interval_open(self) -> None:
        interval = mean_difference({"a": np.array([1.0])})
        assert interval.low == -np.inf and points(interval) == "+1.0"

    def test_only_samples_of_both_arms_are_compared(self) -> None:
        found = results(samples=3)
        found[arm("guests", "gpta", 1)] = {"error": "no memory", "digest": "d"}
        del found[arm("guests", "plain", 2)]
        assert {name: len(d) for name, d in compared(found).differences("gpta", "plain").items()} == {
            "guests": 1,
            "scenes": 3,
        }

    def test_samples_beyond_the_table_are_left_out(self) -> None:
        assert len(compared(results(samples=10), samples=4).differences("gpta", "plain")["guests"]) == 4


class TestGoals:
    @pytest.mark.parametrize(
        ("gains", "goal", "reached"),
        [
            ((10, 4), {"at_least": 6}, True),
            ((10, 4), {"at_least": 8}, False),
            ((10, -2), {"at_least": 3}, True),
            ((10, -2), {"at_least": 3, "worst_set": -0.3}, False),
            ((0.1, 0.1), {"at_least": -1}, True),
            ((0.1, 0.1), {"at_least": -1, "interval_above_zero": True}, False),
            ((10, 4), {"measure": "seconds", "at_most": 2.9}, False),
            ((10, 4), {"measure": "seconds", "at_most": 3}, True),
            ((10, 4), {"measure": "seconds", "at_most": 3, "worst_set": 2.9}, False),
            ((10, 4), {"measure": "seconds", "at_most": 3, "worst_set": 3}, True),
            ((10, 4), {"measure": "own_seconds", "at_most": 1.5}, True),
            ((10, 4), {"measure": "own_seconds", "at_most": 1.4}, False),
            ((10, 4), {"measure": "fine_tuning", "at_most": 0.4}, True),
            ((10, 4), {"measure": "gap", "at_least": 2}, True),
            ((10, -4), {"measure": "gap", "at_least": 2}, False),
        ],
    )
    def test_goal_is_reached_as_its_measure_says(
        self, gains: tuple[float, float], goal: dict[str, Any], reached: bool
    ) -> None:
        assert verdict(results(gains), **goal)[0] is reached

    def test_what_was_measured_is_told(self) -> None:
        text = verdict(results(), at_least=8)[1]
        assert "not reached: +6.9" in text and "least on scenes, +4" in text

    def test_set_with_the_highest_ratio_of_seconds_is_named(self) -> None:
        found = results()
        for sample in range(10):
            found[arm("scenes", "plain", sample)] = record(0.5, seconds={"total": 5.0, "training": 5.0})
        assert "30.0 s against 7.5 s, 4.00; most on scenes, 6.00" in verdict(found, measure="seconds", at_most=9)[1]

    def test_seconds_are_compared_within_a_processor_and_reached_on_all(self) -> None:
        found = results()
        for sample in range(5, 10):
            for name, (one, took) in itertools.product(SETS, {"gpta": 4.0, "plain": 2.0}.items()):
                at = arm(name, one, sample)
                found[at] = {**found[at], "seconds": {"total": took}, "versions": {"processor": "slower × 2"}}
        reached, text = verdict(found, measure="seconds", at_most=2.5)
        assert "30.0 s against 10.0 s, 3.00" in text and "4.0 s against 2.0 s, 2.00" in text and "slower × 2)" in text
        assert reached is False
        assert verdict(found, measure="seconds", at_most=3)[0] is True

    def test_seconds_are_those_of_samples_that_both_have_on_the_processor(self) -> None:
        found = results()
        at = arm("guests", "gpta", 0)
        found[at] = {**found[at], "seconds": {"total": 1000.0}}
        del found[arm("guests", "plain", 0)]
        assert "30.0 s against 10.0 s, 3.00" in verdict(found, measure="seconds", at_most=3)[1]
        assert "(19 pairs of trials, " in verdict(found, measure="seconds", at_most=3)[1]

    def test_gap_is_told_with_the_training_accuracies(self) -> None:
        text = verdict(results(), measure="gap", at_least=2)[1]
        assert "on at least 2 sets" in text and "training accuracy 100.0 against 100.0" in text

    def test_set_without_results_leaves_the_gap_of_the_others(self) -> None:
        found = {trial: figures for trial, figures in results().items() if trial.set == "guests"}
        assert "training accuracy 100.0 against 100.0" in verdict(found, measure="gap", at_least=1)[1]

    @pytest.mark.parametrize(("high", "reached"), [(0.0, True), (-0.001, False)])
    def test_not_worse_looks_at_the_intervals_over_test_rows(self, high: float, reached: bool) -> None:
        found = results()
        for sample in range(10):
            found[arm("scenes", "gpta", sample)] = record(0.5, against_plain=[-0.05, -0.1, high])
        assert verdict(found, measure="not_worse")[0] is reached

    @pytest.mark.parametrize(
        "goal",
        [
            {"at_least": 1},
            {"measure": "gap", "at_least": 1},
            {"measure": "seconds", "at_most": 3},
            {"measure": "not_worse"},
        ],
    )
    def test_what_is_not_all_measured_is_not_judged(self, goal: dict[str, Any]) -> None:
        found = results()
        assert verdict(found, **goal)[0] is True
        found[arm("scenes", "gpta", 9)] = {"error": "no memory", "digest": "d"}
        assert verdict(found, **goal)[0] is None
        assert verdict({}, **goal)[0] is None


def test_cells_of_one_row_are_averaged_before_the_interval() -> None:
    cells = {("a", "b"): {0: 1.0, 1: 3.0}, ("a", "c"): {1: 5.0, 0: 3.0, 2: 9.0}, ("b", "a"): {0: 2.0}}
    rows = by_receiving_set(cells)
    assert {name: of.tolist() for name, of in rows.items()} == {"a": [2.0, 4.0], "b": [2.0]}


@dataclass(frozen=True)
class Written:
    """A report: what is said of it, the Markdown and the page."""

    folder: Path
    lines: list[str]

    @property
    def text(self) -> str:
        return (self.folder / "report.md").read_text(encoding="utf-8")

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


def written(folder: Path, found: dict[Trial, Record], **changes: Any) -> Written:
    given = {"data": {"train": "train.jsonl"}, "card": {"description": "What guests said."}}
    configs = {(name, "gpta"): Config.model_validate(given) for name in SETS}
    suite = Suite(Path("small.yaml"), suite_file(**changes), configs)
    return Written(folder, report.write(suite, found, folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """With goals, curves, a transfer, warnings, a failed trial and a prefix of many signs."""
    told = {"usable": 60, "kept": 45, "left_out": 2, "used": True}
    found = results(label_texts=[{"bad": "<b>bad</b>", "good": "good"}], example_texts=told)
    figures = {"accuracy": 0.5, "loss": 1.0}
    course = [{"epoch": float(at), "train": figures, "test": figures} for at in range(4)]
    for (name, source), sample in itertools.product((SETS, SETS[::-1]), range(2)):
        found[arm(name, "best_prefix", sample)] = record(0.7)
        found[Trial("transfer", name, 8, sample, "best_prefix", source)] = record(0.6, with_label_texts=True)
        for of in ("plain", "gpta"):
            found[Trial("curve", name, 8, sample, of)] = {**record(0.5), "points": course}
    said = {"warnings": ["1 training row is also in test"], "refused": ["setfit asked for 'example.org'"]}
    prefix = "a <b> | c &amp; [d](http://example.org) ![e](http://example.org)"
    found[arm("guests", "gpta", 0)] = {**found[arm("guests", "gpta", 0)], "prefix": prefix, **said}
    found[arm("guests", "gpta", 9)] = {"error": "no memory", "digest": "d"}
    part = {"shots": 8, "samples": 2}
    goals = [{"table": "main", "shots": 8, "theirs": "plain", "at_least": 8}]
    folder = tmp_path_factory.mktemp("report")
    return written(folder, found, goals=goals, curves=part, transfer=part)


class TestReport:
    def test_lines_tell_differences_and_goals(self, whole: Written) -> None:
        assert whole.lines[0].startswith("main, 8 shots: gpta against plain: +6.9 (")
        assert any("at least +8 points: not all measured: +6.9 (" in line for line in whole.lines)

    def test_page_asks_for_nothing_else(self, whole: Written) -> None:
        assert not re.search(r"<script|<link|<img|<a |src=|@import|url\((?!#)", whole.page)
        page = whole.page.replace("(http://example.org)", "")  # words of a prefix
        known = {"www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"}
        assert set(re.findall(r"https?://([^/\"]+)", page)) <= known

    def test_page_and_markdown_hold_the_same_tables_and_pictures(self, whole: Written) -> None:
        rows = [line for line in whole.text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
        assert len(rows) == whole.page.count("<tr>") > 20
        assert whole.page.count('<svg role="img" aria-label="') == whole.page.count("<svg") == 3
        pictures = re.findall(r"\]\((\S+\.svg)\)", whole.text)
        assert len(pictures) == 3
        assert all((whole.folder / name).read_text(encoding="utf-8").startswith("<svg") for name in pictures)

    def test_text_of_an_assistant_is_escaped(self, whole: Written) -> None:
        assert "a &lt;b&gt; | c &amp;amp; [d](http" in whole.page and "a <b>" not in whole.page
        assert r"a &lt;b&gt; \| c &amp;amp; &#91;d](http" in whole.text

    def test_ids_of_the_pictures_are_apart_and_names_of_arms_are_code(self, whole: Written) -> None:
        ids = re.findall(r'\bid="([^"]+)"', whole.page)
        assert len(ids) == len(set(ids)) and "<code>gpta</code>" in whole.page

    @pytest.mark.parametrize(
        "words",
        [
            "n = 10 samples a set",
            "(n = 9)",
            "guests, 8 shots, sample 9: gpta",
            "| gpta less | n | guests |",
            "| plain | 9 to 10 | +",
            "guests: 1 training row is also in test",
            "guests: a connection was refused: setfit asked for 'example.org'",
            "| label_texts | – | – | – | 5.0 |",
            "| gpta | 30.0 | 15.0 | 20.0 | 4.0 |",
            "| gpta | scenes | 8 shots | 2.0 | 60.0 | 75 % | 10 of 10 |",
        ],
    )
    def test_counts_failures_warnings_and_costs_are_told(self, whole: Written, words: str) -> None:
        assert words in whole.text

    def test_files_are_the_owners_alone(self, whole: Written) -> None:
        assert {path.stat().st_mode & 0o777 for path in whole.folder.iterdir()} == {0o600}

    def test_cells_of_a_row_of_the_transfer_matrix_have_the_same_samples(self, tmp_path: Path) -> None:
        found = results(samples=3)
        for name, source in (SETS, SETS[::-1]):
            for sample in range(3):
                base = found[arm(name, "label_texts", sample)]["accuracy"]
                found[arm(name, "best_prefix", sample)] = record(base + 0.1 * (sample + 1))
            found[Trial("transfer", name, 8, 0, "best_prefix", source)] = record(0.6)
        text = written(tmp_path, found, transfer={"shots": 8, "samples": 3}).text
        assert "n = 1 of 3 samples" in text and "| a set's own | 2 | +10.0 |" in text

    def test_without_results_there_is_a_report_all_the_same(self, tmp_path: Path) -> None:
        empty = written(tmp_path, {})
        assert empty.lines == [f"report: {tmp_path / 'report.html'}"]
        assert "Nothing measured yet." in empty.text

    def test_samples_of_two_tables_are_one_row_of_prefixes(self, tmp_path: Path) -> None:
        tables = {name: {"shots": [8], "samples": n, "arms": ARMS} for name, n in (("few", 3), ("main", 10))}
        text = written(tmp_path, results(), tables=tables).text
        assert text.count("| gpta | guests | 8 shots |") == 1
        assert "| gpta | guests | 8 shots | 10 of 10 | Mood: |" in text

    def test_caption_of_a_part_says_how_much_of_the_whole_it_is(self, tmp_path: Path) -> None:
        text = written(tmp_path, results(samples=3)).text
        assert "n = 3 of 10 samples a set" in text and "(n = 3)" not in text
