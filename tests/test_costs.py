"""The plan in docs/scaling.md: what many runs would take, by the kept figures of the benchmark."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
from commands import ROOT

SCRIPT = ROOT / "docs" / "benchmarks" / "costs.py"


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("costs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["costs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_the_documentation_is_that_of_the_figures_below_it(costs: ModuleType) -> None:
    plans = [
        costs.Plan("a laptop, 4 cores", places=4),
        costs.Plan("a server, 32 cores", places=32, processes=4, price=1.6),
        costs.Plan("8 nodes × 64 cores", nodes=8, places=64, processes=8, price=3.2),
        costs.Plan("8 nodes × 8 cards, 4 runs a card", nodes=8, places=32, processes=64, faster=10, price=25),
    ]
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "takes 95 s" in page and "another\n103 s" in page and "65 rows a second" in page
    assert "\n".join(costs.table(costs.Figures(run=95, card=103, rows=65), 100, 100_000, plans)) in page


def test_curves_of_the_documentation_are_those_of_the_figures(costs: ModuleType) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "\n".join(costs.curves(costs.Figures(run=95, card=103, rows=65, trainings=49))) in page


def test_kept_results_have_the_figures(costs: ModuleType) -> None:
    found = costs.measured()
    assert found.run > found.trainings > 0 and found.card > 0 and found.rows > 0


def test_runs_fill_places_and_the_card_is_asked_once(costs: ModuleType) -> None:
    figures = costs.Figures(run=100.0, card=50.0, rows=64.0)
    assert costs.seconds_of_runs(figures, runs=9, nodes=2, places=4, faster=1) == 2 * 100 + 50
    assert costs.seconds_of_training(figures, rows=1280, processes=2, faster=1) == 4 * 3 * 20 / 2
    assert costs.seconds_of_training(figures, rows=6400, processes=1, faster=1) == 1.375 * 3 * 100
    assert costs.gib_of_node(runs=9, nodes=2, places=8) == pytest.approx(5 * 4.6)


def test_program_prints_a_plan() -> None:
    command = [sys.executable, str(SCRIPT), "--runs", "10", "--nodes", "2", "--price", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("| machines | 10 seeds, 8 shots |") and "| 2 × 2 |" in done.stdout
