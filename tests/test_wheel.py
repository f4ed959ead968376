"""The wheel, installed elsewhere, holds all that the quickstart needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT

from gpta_local.bundle.wheels import own_wheel

RUN = """
import sys, gpta_local
from gpta_local.cli.main import main
print(gpta_local.__file__)
main(standalone_mode=False)
main(["doctor"])
"""


def command(*words: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_installed_elsewhere_runs_the_quickstart(chat_model: Path, tmp_path: Path) -> None:
    python, site = sys.executable, tmp_path / "site"
    wheel = own_wheel(tmp_path, None)
    command(python, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, folder=tmp_path)
    shutil.copytree(ROOT / "configs" / "quickstart", tmp_path / "quickstart")
    small = ("search.rounds=1", "search.proposals=4", "search.label_text_samples=1", "training.steps=2")
    overrides = [word for key in (*small, f"assistant.model={chat_model}") for word in ("--set", key)]
    arguments = ["train", "quickstart/quickstart.yaml", "--output", "run", *overrides]
    output = command(python, "-c", RUN, *arguments, folder=tmp_path, PYTHONPATH=str(site))
    assert output.startswith(str(site)), "it is the wheel that ran, not the checkout"
    assert "plain fine-tuning" in output
    assert (tmp_path / "run" / "model" / "0_Transformer" / "model.safetensors").is_file()
    assert list((site / "gpta_local" / "embedded" / "teachers").glob("*/adapter_model.safetensors"))
    assert re.search(r"packages +(ok|warning) .* as tested", output), "the versions of the tests are in the wheel"
