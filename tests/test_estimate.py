"""`train --dry-run`: all checks, a time for each stage, nothing written."""

from __future__ import annotations

from pathlib import Path

from commands import ROOT, invoke

QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"


def test_dry_run_estimates_and_writes_nothing(tmp_path: Path) -> None:
    result = invoke("train", QUICKSTART, "--dry-run", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for stage in ("asking the assistant", "scoring prefixes", "training", "evaluating", "all together, about"):
        assert stage in result.stdout
    assert not (tmp_path / "run").exists()


def test_estimate_grows_with_the_search(tmp_path: Path) -> None:
    def seconds(rounds: int) -> float:
        output = invoke("train", QUICKSTART, "--dry-run", "--set", f"search.rounds={rounds}").stdout
        return float(next(line for line in output.splitlines() if line.startswith("scoring")).split()[-2])

    assert seconds(40) > 3 * seconds(4)
