"""Ctrl-C and SIGTERM: the first stops the run where it can be gone on from, the second at once.

Knows signals; not what is stopped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 3
"""The exit code."""


class Interrupt:
    """As a context: the first signal raises KeyboardInterrupt; while it is `held` it only sets `asked`,
    which whoever holds it looks at. The second signal ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self._held = False

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, one step at a time is finished before the signal counts; look at `asked` between them."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.asked:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(STOPPED)
        self.asked = True
        if not self._held:
            raise KeyboardInterrupt
        os.write(2, b"stopping after this step; Ctrl-C once more stops at once\n")
