"""Checks of a machine and of a configuration before a run, each with a grade and what to do.

A list of small functions, run in order. They know how the parts of the package say what is wrong,
and pass it on; what is dangerous but no error of a run, they find by themselves. Nothing is changed,
nothing is sent but to the configured endpoint, no row and no secret gets into a finding, and every
wait has a limit.

The names of the checks are the names of the functions. Libraries are imported inside of them: one that
is missing is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gpta_local.config import load
from gpta_local.doctor import files, machine, rows, server
from gpta_local.doctor.findings import Case, Finding, Outcome
from gpta_local.errors import GptaError
from gpta_local.system.network import GUARD

Check = Callable[[], Iterable[Outcome]]

OF_THE_MACHINE = (machine.python, machine.packages, machine.devices, machine.disk, machine.environment)
OF_THE_CONFIGURATION = (
    *(files.modes, files.backbone_files, files.assistant_files, rows.data, rows.backbone),
    *(server.assistant, server.transport, server.exposed_server, server.requests, server.dialogue_gradient),
)


def examine(path: Path | None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Run all checks: of this machine and, if a configuration file is given, of that.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    case = Case(load(path, overrides), path) if path else None
    GUARD.allow(case.config.privacy.allow_hosts if case else ())
    checks: dict[str, Check] = {check.__name__: check for check in OF_THE_MACHINE}
    if case is not None:
        checks |= {check.__name__: partial(check, case) for check in OF_THE_CONFIGURATION}
    findings = [finding for name, check in checks.items() for finding in _findings(name.replace("_", "-"), check)]
    if case is not None and case.assistant is not None:
        case.assistant.close()
    return findings


def _findings(name: str, check: Check) -> Iterator[Finding]:
    """What a check finds; its own failure is a finding too."""
    try:
        for outcome in check():
            yield Finding(name, *outcome)
    except GptaError as exc:
        yield Finding(name, "error", f"{exc.where}: {exc.what}" if exc.where else exc.what, exc.fix)
    except Exception as exc:  # whatever it is, the other checks are still worth their while
        yield Finding(name, "error", f"could not be checked ({type(exc).__name__})", "Please report this")
