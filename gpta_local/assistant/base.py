"""The one interface to every assistant. Knows requests and completions, not data or prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from gpta_local.schema import Ask, Checked, Completion, Request, Sampling


class Assistant(Protocol):
    """A language model that answers chat requests.

    Implementations raise `EndpointError`, `ModelError` or `ReplayExhausted`, each with one clear
    message; they never return fewer completions than asked and never invent one.
    """

    name: str
    takes_adapters: bool
    """Whether `use_adapter` can be called with a folder; known after `check`."""
    adapters_refused: str
    """Why not, where it takes none."""
    checked: Checked | None
    """What `check` has sent; None where it sends nothing."""

    def check(self, ask: Ask, tell: Callable[[str], None]) -> str:
        """Verify, before any work is done, that the assistant can answer; describe it in a line.

        Args:
            ask: what it will be asked first.
            tell: hears in what the assistant is asked otherwise than the configuration says, now and later.
        """
        ...

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """Draw `n` independent completions of the request, in a reproducible order.

        Raises:
            EndpointError: the server cannot be reached, or does not answer as it should.
            AdapterRefused: the server has lost the adapter in use, and does not take it again.
        """
        ...

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """The completions of several requests, which are answered together where that is faster; raises as
        `complete`."""
        ...

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with the LoRA adapter in this folder from now on, or (None) with the base model.
        One can go back to those used before, until `drop_adapter`.

        Raises:
            ModelError: the folder holds no adapter for this base model.
            AdapterRefused: the server does not take it. What answered before goes on answering.
            EndpointError: the server cannot be reached.
        """
        ...

    def drop_adapter(self, folder: Path) -> None:
        """Unload an adapter that is not in use; its folder may be deleted afterwards."""
        ...

    def close(self) -> None:
        """Give back memory, threads and connections."""
        ...
