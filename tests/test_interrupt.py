"""Ctrl-C, and SIGTERM, in the middle of a run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import PROGRAM, ROOT

from gpta_local.record.history import open_existing
from gpta_local.system.interrupt import Interrupt


def hears_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to SIGINT, and the test may run there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(folder: Path, backbone: Path, assistant: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A long run in a process of its own, which has scored its first round when this is entered."""
    quickstart = ROOT / "configs" / "quickstart" / "quickstart.yaml"
    models = (f"downstream.backbone={backbone}", f"assistant.model={assistant}", "assistant.max_new_tokens=8")
    small = (*models, "search.rounds=500", "search.label_text_samples=0")
    sets = [word for override in (*small, *overrides) for word in ("--set", override)]
    command = [*PROGRAM, "train", str(quickstart), "--output", str(folder), *sets]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=hears_ctrl_c) as run:
        try:
            deadline = time.monotonic() + 120
            while not (folder / "history.sqlite").is_file() or not open_existing(folder).rounds():
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            yield run
        finally:
            run.kill()


def test_sigterm_ends_with_one_line_and_a_run_to_go_on_with(tmp_path: Path, sentence: Path, chat_model: Path) -> None:
    folder = tmp_path / "run"
    with started(folder, sentence, chat_model) as run:
        run.send_signal(signal.SIGTERM)
        output, messages = run.communicate(timeout=60)
    assert run.returncode == 3
    last = messages.splitlines()[-1]
    assert output == "" and "Traceback" not in messages
    assert last == f"stopped. To go on: gpta-local train {folder}/config.yaml --output {folder} --resume"
    assert open_existing(folder).scored()
    assert not (folder / "summary.json").exists() and not (folder / "model").exists()


def test_ctrl_c_in_training_finishes_the_step_and_keeps_a_checkpoint(
    tmp_path: Path, sentence: Path, chat_model: Path
) -> None:
    folder = tmp_path / "run"
    with started(folder, sentence, chat_model, "search.regime=online", "training.steps=500000") as run:
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        _, messages = run.communicate(timeout=60)
    assert run.returncode == 3 and messages.splitlines()[-1].startswith("stopped. To go on: ")
    assert "stopping after this step" in messages
    assert len(list((folder / "checkpoints").glob("search-*.safetensors"))) == 1


HELD = """
import time
from gpta_local.system.interrupt import Interrupt
with Interrupt() as interrupt, interrupt.held():
    print("held", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HELD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hears_ctrl_c) as held:
        assert held.stdout is not None and held.stderr is not None and held.stdout.readline() == b"held\n"
        held.send_signal(signal.SIGINT)
        assert held.stderr.readline().startswith(b"stopping after this step")
        assert held.poll() is None
        held.send_signal(signal.SIGINT)
        assert held.wait(5) == 3


def test_signal_while_held_counts_when_let_go() -> None:
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt), interrupt.held():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked


def test_signals_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
