"""Where work is done: in processes of this machine, or as tasks of a Ray cluster. Knows how to begin a call and how to
hear of its end; not what is called, nor which comes next.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from gpta_local.errors import InputError
from gpta_local.system.network import GUARD, normal_host
from gpta_local.system.worker import Call, Outcome, outcome_of, work

ENDING_SECONDS = 20
"""For a process that has nothing left to do."""
CALLS_PER_PROCESS = 16
"""Then a fresh one takes its place: a process that trained SetFit for 40 minutes had grown from 0.5 to 5 GB."""
CONNECT_SECONDS = 5
TRIES_AFTER_A_DEATH = 3
"""Of a call whose worker or node has died."""

Key = TypeVar("Key", bound=Hashable)


class Engine(ABC, Generic[Key]):
    """Makes at most so many calls beside each other, each under a key. Leaving its context ends what still runs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[Any, tuple[Key, float]] = {}  # by what does it: the key, and when it began

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def has_room(self) -> bool:
        return self.running < self._most

    @abstractmethod
    def begin(self, key: Key, call: Call) -> None: ...

    @abstractmethod
    def ended(self) -> list[tuple[Key, Outcome, float]]:
        """Wait until a call has ended; the keys of those that have, with their outcomes and seconds."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...


class Processes(Engine[Key]):
    """At most so many processes of this machine, each of which makes one call after another.

    Args:
        log: file for what libraries print.
        threads: of each process.
    """

    def __init__(self, processes: int, log: Path, threads: int = 1) -> None:
        super().__init__(processes)
        self._log, self._threads = log, threads
        self._idle: list[_Worker] = []

    def begin(self, key: Key, call: Call) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._log, self._threads)
        worker.begin(call)
        self._running[worker] = (key, time.monotonic())

    def ended(self) -> list[tuple[Key, Outcome, float]]:
        ready = set(wait([worker.connection for worker in self._running]))
        found = []
        for worker in [worker for worker in self._running if worker.connection in ready]:
            key, started = self._running.pop(worker)
            found.append((key, worker.outcome(), time.monotonic() - started))
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
    """A process that makes one call after the other, and our end of the pipe to it."""

    def __init__(self, log: Path, threads: int) -> None:
        context = get_context("spawn")  # a fork would carry this process's threads along
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, log, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.calls = 0

    def begin(self, call: Call) -> None:
        self.calls += 1
        with suppress(OSError):  # it died idle; `outcome` will say so
            self.connection.send(call)

    def outcome(self) -> Outcome:
        """What the call gave, once it is there."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            outcome = f"its process ended ({self.process.exitcode}), perhaps for lack of memory"
        return outcome

    @property
    def spent(self) -> bool:
        """Whether it can take no further call."""
        return self.calls >= CALLS_PER_PROCESS or not self.process.is_alive()

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


class RayTasks(Engine[Key]):
    """Tasks of a Ray cluster that is there. None is started: Ray listens on every address of its machine.

    Each takes one core, and the share of a GPU that is given. A task whose worker or node dies is done again. All nodes
    must have this package and see the same files under the same paths: nothing but calls and figures travels.

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
        GUARD.allow(filter(None, [normal_host(address.rpartition(":")[0])]))
        _check_that_it_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        self._ray = ray
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus, "max_retries": TRIES_AFTER_A_DEATH}
        self._task = ray.remote(max_calls=CALLS_PER_PROCESS, **options)(outcome_of)

    def begin(self, key: Key, call: Call) -> None:
        self._running[self._task.remote(call)] = (key, time.monotonic())

    def ended(self) -> list[tuple[Key, Outcome, float]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        found = []
        for task in ready:
            key, started = self._running.pop(task)
            try:
                outcome: Outcome = self._ray.get(task)
            except self._ray.exceptions.RayError as exc:
                outcome = f"its task ended {TRIES_AFTER_A_DEATH + 1} times ({type(exc).__name__})"
            found.append((key, outcome, time.monotonic() - started))
        return found

    def __exit__(self, *_: object) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()
