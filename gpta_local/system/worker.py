"""A process that does one call after another. Knows how to be alone: so many threads, no network, no terminal, and no
life after its parent; not what it is called for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from gpta_local.errors import GptaError
from gpta_local.system.network import GUARD

Outcome = list[dict[str, Any]] | str
"""The figures that a call gives, or why there are none."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function, written "package.module:name", with its arguments: it gives figures. `name`: for the log. `hosts`:
    which it may reach."""

    name: str
    function: str
    arguments: tuple[Any, ...]
    hosts: Sequence[str]


def work(connection: Connection, log: Path, threads: int) -> None:
    """Receive calls, send the outcome of each, until the other end is closed.

    Args:
        log: file for what libraries print.
        threads: of a matrix product.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.umask(0o077)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))  # before torch is imported
    _print_into(log)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        connection.send(outcome_of(call))


def outcome_of(call: Call) -> Outcome:
    """Make a call in this process, without a network but its hosts."""
    GUARD.install()
    GUARD.allow_only(call.hosts)
    started = time.process_time()
    try:
        figures = resolve_name(call.function)(*call.arguments)
        about = {"processor_seconds": time.process_time() - started, "refused": sorted(map(str, GUARD.refused))}
        return [{**f, **about} for f in figures]
    except GptaError as exc:
        return str(exc)
    except Exception as exc:  # one failure must not end the others; its words could be those of a row
        sys.stderr.write(f"{call.name}: {type(exc).__name__}\n{''.join(traceback.format_tb(exc.__traceback__))}")
        sys.stderr.flush()
        place = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno}; the way there is in the log"


def _end_with_parent() -> None:
    """A parent that was killed closes nothing: without this, the call would go on and write beside its repetition."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _print_into(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
