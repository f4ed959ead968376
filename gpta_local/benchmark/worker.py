"""A process that does one job after another. Knows how to be alone: one thread, no network, no terminal, and no life
after its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpta_local.errors import GptaError
from gpta_local.system.network import GUARD

if TYPE_CHECKING:
    from gpta_local.benchmark.trials import Job, Record, Trial

Outcome = list[dict[str, Any]] | str
"""The figures of a job's trials, or why there are none."""


def work(connection: Connection, log: Path) -> None:
    """Receive (job, what it needs, folder), send its outcome, until the other end is closed.

    Args:
        log: file for what libraries print.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.umask(0o077)
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})  # before torch is imported
    _print_into(log)
    while True:
        try:
            job, given, folder = connection.recv()
        except EOFError:
            return
        connection.send(outcome_of(job, given, folder))


def outcome_of(job: Job, given: Mapping[Trial, Record], folder: Path) -> Outcome:
    """Do a job in this process, without a network but what its configuration names."""
    from gpta_local.benchmark.arms import perform

    GUARD.install()
    GUARD.allow_only(job.config.privacy.allow_hosts)
    started = time.process_time()
    try:
        figures = perform(job, given, folder)
        about = {"processor_seconds": time.process_time() - started, "refused": sorted(map(str, GUARD.refused))}
        return [{**f, **about} for f in figures]
    except GptaError as exc:
        return str(exc)
    except Exception as exc:  # one trial's failure must not end the others; its words could be those of a row
        sys.stderr.write(f"{job}: {type(exc).__name__}\n{''.join(traceback.format_tb(exc.__traceback__))}")
        sys.stderr.flush()
        place = traceback.extract_tb(exc.__traceback__)[-1]
        return f"{type(exc).__name__} at {Path(place.filename).name}:{place.lineno}; the way there is in the log"


def _end_with_parent() -> None:
    """A parent that was killed closes nothing: without this, the trial would go on and write beside its repetition."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _print_into(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
