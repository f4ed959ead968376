"""Requests as the history keeps them. Knows their form, not where they lie."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from gpta_local.schema import Completion, Request, Sampling


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as it was asked: `messages` and `sampling` as JSON; no completions if it was not answered."""

    number: int
    kind: str
    messages: str
    sampling: str
    completions: list[Completion]

    def is_for(self, request: Request, n: int, sampling: Sampling) -> bool:
        """Whether it is this request that was asked, and if it was answered, for `n` completions."""
        asked = (self.kind, self.messages, self.sampling)
        same = asked == (request.kind, as_json(request), json.dumps(asdict(sampling)))
        return same and len(self.completions) in (0, n)


def as_json(request: Request) -> str:
    """The messages of a request as the history keeps them."""
    return json.dumps([asdict(message) for message in request.messages], ensure_ascii=False)
