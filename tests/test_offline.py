"""A run needs no network: shown in a namespace that has none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT

MAIN = "from gpta_local.cli import main; main()"


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root on Linux to make a network namespace"
)
def test_quickstart_runs_without_any_network(tmp_path: Path) -> None:
    small = ("search.rounds=1", "search.proposals=4", "search.label_text_samples=1", "training.steps=4")
    overrides = [word for key in small for word in ("--set", key)]
    config = ROOT / "configs" / "quickstart" / "quickstart.yaml"
    command = ["unshare", "-n", sys.executable, "-c", MAIN, "train", config, "--output", tmp_path / "run", *overrides]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plain fine-tuning" in done.stdout
