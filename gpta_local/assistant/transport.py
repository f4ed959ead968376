"""HTTP whose answers have an end: none may take longer, or be longer, than a limit; and threads that ask for
many at once, which nobody waits for at the end of the program.

Knows bytes and clocks, neither requests of ours nor what an answer means. A read timeout alone does not
help against a server that sends a byte now and then, nor against one that never stops.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import httpx2

Part = TypeVar("Part")
Value = TypeVar("Value")

LONGEST_ANSWER = 2**25
"""Bytes. Sixteen completions of 32768 tokens take a tenth of it."""


class BoundedTransport(httpx2.HTTPTransport):
    """The stock transport, without proxies. The timeout of a request is also that of its whole body, what
    goes beyond `LONGEST_ANSWER` is cut off, and what is no UTF-8 by its header is read as UTF-8 all the
    same: that is what JSON is in. Compressed answers, which are not asked for, are not unpacked: a few
    bytes could become gigabytes."""

    def __init__(self, verify: ssl.SSLContext | bool) -> None:
        super().__init__(verify=verify, trust_env=False)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        end = time.monotonic() + request.extensions["timeout"]["read"]
        response = super().handle_request(request)
        headers = response.headers
        headers["content-type"] = "application/json"
        headers.pop("content-encoding", None)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        body = _Bounded(response.stream, end)
        return httpx2.Response(response.status_code, headers=headers, stream=body, extensions=response.extensions)


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, end: float) -> None:
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[bytes]:
        left = LONGEST_ANSWER
        for part in self._stream:
            if time.monotonic() > self._end:
                raise httpx2.ReadTimeout("the answer has begun and does not end")
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    def close(self) -> None:
        self._stream.close()


def map_in_threads(
    function: Callable[[Part], Value], parts: Sequence[Part], threads: int, seconds: float
) -> list[Value]:
    """Like an executor's `map`, but the first error and Ctrl-C do not wait for calls in hand.

    The threads are daemons, which those of `concurrent.futures` are not: nothing at the end of the
    program waits for a server that keeps silent.

    Raises:
        Empty: for so many seconds, none has ended.
    """
    waiting = deque(enumerate(parts))
    ended: SimpleQueue[tuple[int, Value | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        with suppress(IndexError):  # no part is waiting any more
            while True:
                index, part = waiting.popleft()
                try:
                    result = function(part)
                except BaseException as exc:  # raised again where it is waited for
                    ended.put((index, None, exc))
                    return
                ended.put((index, result, None))

    for _ in range(min(threads, len(parts))):
        threading.Thread(target=work, name="assistant", daemon=True).start()
    results: list[Any] = [None] * len(parts)
    try:
        for _ in parts:
            index, results[index], error = ended.get(timeout=seconds)
            if error is not None:
                raise error
    finally:  # also after Ctrl-C
        waiting.clear()
    return results
