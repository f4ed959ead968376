"""One model that is served at several addresses. Knows which of them answer and who is asked next; how one is asked is
the matter of `openai_api` and `vllm`."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpta_local.assistant.openai_api import PAUSES_SECONDS, PROBE, OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Ask, Completion, Request, Sampling

REST_SECONDS, LONGEST_REST = 30.0, 600.0
"""An endpoint that has failed is asked last for so long; twice as long after each further failure."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before all are tried again, and at most: as the library pauses for a single one."""
KINDS: dict[str, type[OpenAIAssistant]] = {"openai": OpenAIAssistant, "vllm": VLLMAssistant}
PASSING = (408, 409, 429)
"""Statuses, besides 5xx, of faults that pass."""


@dataclass(slots=True)
class Member:
    """An endpoint, the requests that it has in hand, and its failures since it last answered."""

    assistant: OpenAIAssistant
    url: str
    in_hand: int = 0
    failures: int = 0
    rests_until: float = 0.0

    def failed(self) -> None:
        self.rests_until = time.monotonic() + min(LONGEST_REST, REST_SECONDS * 2**self.failures)
        self.failures += 1


class SeveralEndpoints(OpenAIAssistant):
    """Each request goes to the endpoint with the fewest in hand. One that fails rests, and what it was asked goes to
    the others; where all fail, they are tried again as a single one is. Which endpoint a request goes to changes no
    seed; whether it changes a reply is the servers' matter.

    Args:
        backend: of each endpoint.
        base_url: at least two.
        concurrency: requests in flight at once, for each endpoint.
        endpoint: as for `OpenAIAssistant`.
    """

    adapters_refused = (
        "Adapters are loaded into one server, and this assistant has several. "
        "Leave assistant.further_base_urls out for a run with adapters"
    )

    def __init__(
        self,
        model: str,
        backend: Literal["openai", "vllm"],
        *,
        base_url: Sequence[str],
        timeout: float,
        max_retries: int,
        concurrency: int,
        **endpoint: Any,
    ) -> None:
        of_all = {"timeout": timeout, **endpoint}
        super().__init__(
            model,
            base_url=base_url[0],
            max_retries=max_retries,
            concurrency=concurrency * len(base_url),
            **of_all,
        )
        self._give_up = (len(base_url) + 1) * timeout + PAUSES_SECONDS
        self._members = [
            Member(KINDS[backend](model, base_url=url, max_retries=0, concurrency=concurrency, **of_all), url)
            for url in base_url
        ]
        self._turn = threading.Lock()

    def check(self, ask: Ask = PROBE, tell: Callable[[str], None] = lambda _: None) -> str:
        """As for one endpoint; those that fail are told of, and tried again later.

        Raises:
            EndpointError: all fail.
        """
        answering, errors, lines = list[Member](), list[EndpointError](), list[str]()
        for member in self._members:
            try:
                lines.append(member.assistant.check(ask, tell))
                answering.append(member)
            except EndpointError as exc:
                member.failed()
                errors.append(exc)
        if not answering:
            raise errors[0]
        for error in errors:
            tell(f"{error}. Its requests go to the other endpoints")
        first, url = answering[0].assistant, answering[0].url
        assert first.checked is not None  # it answered
        replies = tuple(replace(completion, endpoint=url) for completion in first.checked.completions)
        self.checked, self._served = replace(first.checked, completions=replies), first._served
        self._kept = {key: replace(completion, endpoint=url) for key, completion in first._kept.items()}
        self._tell = tell
        return "; ".join(lines)

    def _chunk_of(self, ask: Ask) -> int:
        """One request's completions are spread too."""
        return min(super()._chunk_of(ask), -(-ask.n // len(self._members)))

    def close(self) -> None:
        for member in self._members:
            member.assistant.close()
        super().close()

    def _ask(
        self, request: Request, sampling: Sampling, first: int, n: int, retries: int | None = None
    ) -> list[Completion]:
        tries = self._max_retries if retries is None else retries
        for attempt in itertools.count():
            for member in self._in_turn():
                try:
                    found = self._ask_one(member, request, sampling, first, n)
                except EndpointError as exc:
                    error = exc
                    self._note_failure(member, exc)
                else:
                    self._most_choices = min(self._most_choices, member.assistant._most_choices)
                    return [replace(completion, endpoint=member.url) for completion in found]
            if attempt >= tries or not _passes(error):
                raise error
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
        raise AssertionError("endless")

    def _in_turn(self) -> list[Member]:
        now = time.monotonic()
        with self._turn:
            return sorted(self._members, key=lambda member: (member.rests_until > now, member.in_hand))

    def _ask_one(self, member: Member, request: Request, sampling: Sampling, first: int, n: int) -> list[Completion]:
        with self._turn:
            member.in_hand += 1
        try:
            found = member.assistant._ask(request, sampling, first, n)
            member.failures, member.rests_until = 0, 0.0
            return found
        finally:
            with self._turn:
                member.in_hand -= 1

    def _note_failure(self, member: Member, error: EndpointError) -> None:
        with self._turn:
            new = member.failures == 0
            member.failed()
        if new and self._tell is not None:
            self._tell(f"{error}. Its requests go to the other endpoints")


def _passes(error: EndpointError) -> bool:
    """Whether a fault may be gone a moment later."""
    from openai import APIConnectionError, APIStatusError

    cause = error.__cause__
    if isinstance(cause, APIStatusError):
        return cause.status_code in PASSING or cause.status_code >= 500
    return isinstance(cause, APIConnectionError)
