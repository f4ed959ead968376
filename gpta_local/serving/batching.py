"""Requests that wait together are answered together: one batch at a time, in a thread of its own.

Knows rows and predictions; neither HTTP nor models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from gpta_local.downstream.loaded import Rows
from gpta_local.downstream.product import Prediction

BATCH = 64
"""Rows of one batch; a request with more makes several."""
MOST_WAITING = 4096
"""Rows that may wait; what comes then is turned away."""


class Full(Exception):
    """More rows wait than can be answered soon."""


class Batcher:
    """While one batch is computed the next gathers by itself: nothing waits for company.

    Args:
        predict: labels a batch, in this order; called in another thread, one call at a time.
    """

    def __init__(self, predict: Callable[[Rows], Sequence[Prediction]]) -> None:
        self._predict = predict
        self._waiting: asyncio.Queue[tuple[tuple[str, ...], asyncio.Future[Prediction]]] = asyncio.Queue()

    async def predict(self, rows: Rows) -> list[Prediction]:
        """The predictions of a request's rows, in their order.

        Raises:
            Full: try again later.
        """
        if self._waiting.qsize() + len(rows) > MOST_WAITING:
            raise Full
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Prediction]] = [loop.create_future() for _ in rows]
        for row, future in zip(rows, futures, strict=True):
            self._waiting.put_nowait((row, future))
        return await asyncio.gather(*futures)

    async def work(self) -> None:
        """Answer batch after batch, until it is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(row, future) for row, future in batch if not future.done()]  # its client has gone
            try:
                found = await asyncio.to_thread(self._predict, [row for row, _ in batch]) if batch else []
            except Exception as exc:  # whoever asked is told, and the server goes on
                for _, future in batch:
                    future.set_exception(exc)
                continue
            for (_, future), prediction in zip(batch, found, strict=True):
                with suppress(asyncio.InvalidStateError):  # its client has gone meanwhile
                    future.set_result(prediction)
