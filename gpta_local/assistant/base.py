"""The one interface to every assistant. Knows requests and completions, not data or prefixes."""

from __future__ import annotations

from typing import Protocol

from gpta_local.schema import Completion, Request, Sampling


class Assistant(Protocol):
    """A language model that answers chat requests.

    Implementations raise `EndpointError`, `ModelError` or `ReplayExhausted`, each with one clear
    message; they never return fewer completions than asked and never invent one.
    """

    name: str

    def check(self) -> str:
        """Verify, before any work is done, that the assistant can answer; describe it in a line."""
        ...

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """Draw `n` independent completions of the request, in a reproducible order."""
        ...

    def close(self) -> None:
        """Give back memory, threads and connections."""
        ...
