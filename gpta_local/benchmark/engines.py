"""Where jobs are done: in processes of this machine, or as tasks of a Ray cluster. Knows how to begin one and how to
hear of its end; not what a job is, nor which comes next.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gpta_local.benchmark.worker import Outcome, outcome_of, work
from gpta_local.errors import InputError

if TYPE_CHECKING:
    from gpta_local.benchmark.trials import Job, Record, Trial

ENDING_SECONDS = 20
"""For a process that has nothing left to do."""
JOBS_PER_PROCESS = 16
"""Then a fresh one takes its place: a process that did SetFit's jobs for 40 minutes had grown from 0.5 to 5 GB."""
CONNECT_SECONDS = 5
TRIES_AFTER_A_DEATH = 3
"""Of a job whose worker or node has died."""


class Engine(ABC):
    """Does at most so many jobs beside each other. Leaving its context ends what still runs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[Any, tuple[Job, float]] = {}  # by what does it: the job, and when it began

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def has_room(self) -> bool:
        return self.running < self._most

    @abstractmethod
    def begin(self, job: Job, given: Mapping[Trial, Record], folder: Path) -> None: ...

    @abstractmethod
    def ended(self) -> list[tuple[Job, Outcome, float]]:
        """Wait until a job has ended; those that have, with their outcomes and seconds."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...


class Processes(Engine):
    """At most so many processes of this machine, each of which does one job after another.

    Args:
        log: file for what libraries print.
    """

    def __init__(self, processes: int, log: Path) -> None:
        super().__init__(processes)
        self._log = log
        self._idle: list[_Worker] = []

    def begin(self, job: Job, given: Mapping[Trial, Record], folder: Path) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._log)
        worker.begin(job, given, folder)
        self._running[worker] = (job, time.monotonic())

    def ended(self) -> list[tuple[Job, Outcome, float]]:
        ready = set(wait([worker.connection for worker in self._running]))
        found = []
        for worker in [worker for worker in self._running if worker.connection in ready]:
            job, started = self._running.pop(worker)
            found.append((job, worker.outcome(), time.monotonic() - started))
            if worker.spent:
                worker.end()
            else:
                self._idle.append(worker)
        return found

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            worker.end()
        for worker in self._running:
            worker.kill()


class _Worker:
    """A process that does one job after the other, and our end of the pipe to it."""

    def __init__(self, log: Path) -> None:
        context = get_context("spawn")  # a fork would carry this process's threads along
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, log), daemon=True)
        self.process.start()
        theirs.close()
        self.jobs = 0

    def begin(self, job: Job, given: Mapping[Trial, Record], folder: Path) -> None:
        self.jobs += 1
        with suppress(OSError):  # it died idle; `outcome` will say so
            self.connection.send((job, given, folder))

    def outcome(self) -> Outcome:
        """What the job gave, once it is there."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            outcome = f"its process ended ({self.process.exitcode}), perhaps for lack of memory"
        return outcome

    @property
    def spent(self) -> bool:
        """Whether it can take no further job."""
        return self.jobs >= JOBS_PER_PROCESS or not self.process.is_alive()

    def end(self) -> None:
        """Let an idle one end by itself and tidy up, or kill it when it does not."""
        self.connection.close()
        self.process.join(ENDING_SECONDS)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _check_that_it_answers(address: str) -> None:
    """Ray itself would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as exc:
        fix = "Give HOST:PORT of one that: ray start --head --disable-usage-stats --include-dashboard=false"
        raise InputError(f"no Ray cluster answers at {address}", where="--ray-address", fix=fix) from exc


class RayTasks(Engine):
    """Tasks of a Ray cluster that is there. None is started: Ray listens on every address of its machine.

    Each takes one core, and the share of a GPU that is given. A task whose worker or node dies is done again. All nodes
    must have this package and see the same files under the same paths: nothing but jobs and figures travels.

    Args:
        address: of the cluster's head, host:port.
        most: tasks at a time.
        gpus: of each task, such as 0.25.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, most: int, gpus: float) -> None:
        super().__init__(most)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError as exc:
            fix = "pip install 'gpta-local[ray]'"
            raise InputError("--engine ray needs the package ray, which is not installed", fix=fix) from exc
        _check_that_it_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        self._ray = ray
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "max_retries": TRIES_AFTER_A_DEATH}
        self._task = ray.remote(max_calls=JOBS_PER_PROCESS, **options)(outcome_of)

    def begin(self, job: Job, given: Mapping[Trial, Record], folder: Path) -> None:
        self._running[self._task.remote(job, dict(given), folder)] = (job, time.monotonic())

    def ended(self) -> list[tuple[Job, Outcome, float]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        found = []
        for task in ready:
            job, started = self._running.pop(task)
            try:
                outcome: Outcome = self._ray.get(task)
            except self._ray.exceptions.RayError as exc:
                outcome = f"its task ended {TRIES_AFTER_A_DEATH + 1} times ({type(exc).__name__})"
            found.append((job, outcome, time.monotonic() - started))
        return found

    def __exit__(self, *_: object) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()
