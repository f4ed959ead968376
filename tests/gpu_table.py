"""A pytest plugin of `make gpu`: a table of the tests of this session, with their seconds and figures."""

from __future__ import annotations

import platform
from typing import Any

import torch


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = []
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" or outcome != "passed":
                figure = dict(report.user_properties).get("figure", "")
                rows.append((report.nodeid.rpartition("::")[2], outcome, f"{report.duration:.1f}", str(figure)))
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    terminalreporter.write_sep("=", f"{card}; torch {torch.__version__}; {platform.node()}")
    width = max((len(row[0]) for row in rows), default=0)
    for name, outcome, seconds, figure in rows:
        terminalreporter.write_line(f"{name:<{width}}  {outcome:<7}  {seconds:>6} s  {figure}".rstrip())
