"""HTTP whose answers have an end: none may take longer, or be longer, than a limit.

Knows bytes and clocks, neither requests of ours nor what an answer means. A read timeout alone does not
help against a server that sends a byte now and then, nor against one that never stops.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import httpx2

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
