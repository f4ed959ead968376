"""Runs compared on the test rows that they share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, invoke

Rows = list[dict[str, Any]]
Change = Callable[[Rows], Rows]


def rows_of(run: Path) -> Rows:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def other_run(run: Path, folder: Path, change: Change, settings: tuple[str, str] = ("seed: 0", "seed: 5")) -> Path:
    """A copy of a run that says something else of its rows, with another setting."""
    copied = Path(shutil.copytree(run, folder))
    lines = [json.dumps(row) + "\n" for row in change(rows_of(run))]
    (copied / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    config = (copied / "config.yaml").read_text(encoding="utf-8")
    assert settings[0] in config
    (copied / "config.yaml").write_text(config.replace(*settings), encoding="utf-8")
    return copied


def all_right(rows: Rows) -> Rows:
    return [row | {"predicted": row["label"]} for row in rows]


def test_better_run_gains_what_it_has_right_more(audited_run: Path, tmp_path: Path) -> None:
    better = other_run(audited_run, tmp_path / "better", all_right)
    found = json.loads(invoke("compare", audited_run, better, "--json").stdout)
    first, second = found["runs"]
    wrong = sum(row["label"] != row["predicted"] for row in rows_of(audited_run)) / 24
    assert first["difference"] is None and first["accuracy"] == pytest.approx(1 - wrong)
    assert second["accuracy"] == 1 and second["difference"]["value"] == pytest.approx(wrong)
    assert second["difference"]["low"] <= wrong <= second["difference"]["high"]
    assert found["settings"] == {"seed": [0, 5]}
    assert first["completions"] == second["completions"] and first["seconds"] > 0


def test_only_shared_rows_count(audited_run: Path, tmp_path: Path) -> None:
    fewer = other_run(audited_run, tmp_path / "fewer", lambda rows: all_right(rows)[::-1][:10])
    found = json.loads(invoke("compare", audited_run, fewer, "--json").stdout)
    last = rows_of(audited_run)[-10:]
    assert found["rows"] == 10
    assert found["runs"][0]["accuracy"] == sum(row["label"] == row["predicted"] for row in last) / 10


def test_row_that_is_there_twice_counts_twice(audited_run: Path, tmp_path: Path) -> None:
    twice = [other_run(audited_run, tmp_path / name, lambda rows: rows + rows) for name in ("a", "b")]
    assert json.loads(invoke("compare", *twice, "--json").stdout)["rows"] == 48


def test_table_names_runs_verdicts_and_settings(audited_run: Path, tmp_path: Path) -> None:
    better = other_run(audited_run, tmp_path / "better", all_right)
    result = invoke("compare", audited_run, better, better)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("24 shared test rows") and ": gain\n" in result.stdout
    assert "settings that differ\n  seed  0  |  5  |  5" in result.stdout and " s, 7 completions" in result.stdout


def test_same_run_makes_no_difference(audited_run: Path) -> None:
    found = json.loads(invoke("compare", audited_run, audited_run, "--json").stdout)
    assert found["runs"][1]["difference"]["verdict"] == "no clear difference"
    assert found["settings"] == {}


class TestRefused:
    def test_one_run(self, audited_run: Path) -> None:
        assert_refused(invoke("compare", audited_run), "one run alone")

    def test_no_run(self, audited_run: Path, tmp_path: Path) -> None:
        assert_refused(invoke("compare", audited_run, tmp_path), "no finished run here")

    def test_other_rows(self, audited_run: Path, tmp_path: Path) -> None:
        others = other_run(audited_run, tmp_path / "others", lambda rows: [row | {"row": "0" * 16} for row in rows])
        assert_refused(invoke("compare", audited_run, others), "share no test row")

    def test_run_without_predictions(self, audited_run: Path, tmp_path: Path) -> None:
        without = other_run(audited_run, tmp_path / "without", lambda rows: [])
        assert_refused(invoke("compare", audited_run, without), "keeps no predictions")

    def test_run_that_was_measured_on_validation_rows(self, audited_run: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(audited_run, tmp_path / "run"))
        summary = json.loads((copied / "summary.json").read_text(encoding="utf-8"))
        (copied / "summary.json").write_text(json.dumps(summary | {"evaluated_on": "validation"}), encoding="utf-8")
        assert_refused(invoke("compare", audited_run, copied), "was not measured on test rows")
