"""Runs the command line: in this process where that is enough, in one of its own where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from gpta_local.cli.main import main

ROOT = Path(__file__).parent.parent
PROGRAM = (sys.executable, "-c", "from gpta_local.cli.main import main; main()")


def invoke(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_command(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [*PROGRAM, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def assert_refused(result: Result, *words: str) -> None:
    """One clear message, exit code 2, no traceback; all `words` are in the message."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    message = result.stderr[result.stderr.index("error: ") :]
    for word in words:
        assert word in message, message
