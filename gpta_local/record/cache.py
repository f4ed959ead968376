"""What a model was asked and answered before. Knows files and digests, not models.

An answer is kept under the digests of all that it depends on: model, adapter, request, sampling and count. So ten
samples of a benchmark, or a second run with the same card, ask once. Of a served model the name stands for its weights,
which its server can change. The files are their owner's alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gpta_local.schema import Ask, Completion
from gpta_local.system.files import owner_only, write_whole

LOCKS = ".locks"
"""Ending of the file of locks, which lies beside the folder."""


def default_folder() -> Path:
    """$XDG_CACHE_HOME/gpta-local/completions, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpta-local" / "completions"


@dataclass(frozen=True, slots=True)
class CompletionCache:
    """`answerer`: what tells the model and its adapter from others."""

    folder: Path
    answerer: str

    def known(self, ask: Ask) -> list[Completion]:
        """The completions of an ask that was answered before; none if it was not, or the file is not whole."""
        try:
            kept = json.loads(self._path(ask).read_text(encoding="utf-8"))
            found = [Completion(**completion | {"cached": True}) for completion in kept]
        except (OSError, ValueError, TypeError):
            return []
        return found if len(found) == ask.n else []

    @contextmanager
    def asking(self, asks: Sequence[Ask]) -> Iterator[None]:
        """Hold these asks against other processes: one that would ask the same waits, and finds the answers. Each has
        its place in a file of locks, whose content is nothing."""
        place = int(_digest("".join(self._path(ask).name for ask in asks))[:8], 16)
        with owner_only():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder.with_suffix(LOCKS).open("ab")
        with file:
            with suppress(OSError):  # a file system without locks: what two ask at once is asked twice
                fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
            yield

    @owner_only()
    def keep(self, ask: Ask, completions: Sequence[Completion]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(ask), json.dumps([asdict(c) for c in completions], ensure_ascii=False))

    def _path(self, ask: Ask) -> Path:
        drawn = json.dumps([self.answerer, asdict(ask.sampling), ask.n])
        messages = [asdict(message) for message in ask.request.messages]
        return self.folder / f"{_of_messages(messages)}-{_digest(drawn)}.json"


def forget(folder: Path, requests: Iterable[str]) -> int:
    """Delete the answers to requests, whoever gave them; return how many.

    Args:
        requests: their messages as JSON, as the history keeps them.
    """
    paths = [path for messages in requests for path in folder.glob(f"{_of_messages(json.loads(messages))}-*.json")]
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def _of_messages(messages: Sequence[dict[str, str]]) -> str:
    return _digest(json.dumps(messages, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
