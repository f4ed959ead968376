"""Ctrl-C in the middle of a run."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from commands import PROGRAM, ROOT

from gpta_local.history import open_existing


def hears_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, and the test may run there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_with_one_line_and_keeps_the_history(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    quickstart = ROOT / "configs" / "quickstart" / "quickstart.yaml"
    command = [*PROGRAM, "train", str(quickstart), "--output", str(folder), "--set", "search.rounds=500"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=hears_ctrl_c) as run:
        deadline = time.monotonic() + 120
        while not (folder / "history.sqlite").is_file() or not open_existing(folder / "history.sqlite").rounds():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        output, messages = run.communicate(timeout=60)
    assert run.returncode == 3
    assert output == "" and messages.splitlines()[-1].startswith("stopped.") and "Traceback" not in messages
    assert open_existing(folder / "history.sqlite").scored()
    assert not (folder / "summary.json").exists() and not (folder / "model").exists()
