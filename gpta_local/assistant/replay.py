"""The recorded completions of an earlier run, in order. Asks no model; raises when they run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from gpta_local.errors import AdapterRefused, ReplayExhausted
from gpta_local.record.history import (
    History,
    open_with_texts,
)
from gpta_local.schema import Ask, Checked, Completion, Request, RequestKind, Sampling


class ReplayAssistant:
    """Answers requests of each kind with the completions that the run recorded for that kind."""

    checked: Checked | None = None
    takes_adapters = False
    adapters_refused = "A recorded run cannot be taught: its completions are given"

    def __init__(self, run: Path) -> None:
        self.name = f"replay of {run}"
        history = open_with_texts(run)
        self._left = {kind: history.completions(kind) for kind in get_args(RequestKind)}
        history.close()

    def check(self, ask: Ask | None = None, tell: Callable[[str], None] | None = None) -> str:
        return (
            f"{self.name}: {len(self._left['prefix'])} prefixes, {len(self._left['label-texts'])} sets of label texts"
        )

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        left = self._left[request.kind]
        if len(left) < n:
            raise ReplayExhausted(
                f"{n} completions are asked for and {len(left)} recorded ones are left",
                where=f"assistant.run ({self.name})",
                fix="Use the rounds, proposals, label_text_samples and example_texts of the recorded run, or fewer",
            )
        self._left[request.kind] = left[n:]
        return left[:n]

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        return [self.complete(ask.request, ask.n, ask.sampling) for ask in asks]

    def skip(self, history: History) -> None:
        """Leave out what a run that goes on has had already."""
        for kind, left in self._left.items():
            self._left[kind] = left[len(history.completions(kind)) :]

    def use_adapter(self, folder: Path | None) -> None:
        if folder is not None:
            raise AdapterRefused(self.adapters_refused, where=f"assistant.run ({self.name})")

    def drop_adapter(self, folder: Path) -> None:
        """There is none."""

    def close(self) -> None:
        pass
