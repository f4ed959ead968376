"""Any OpenAI-compatible chat endpoint as an assistant.

Knows the wire format, how endpoints fail, and what the user can do about it. Does not know what
the completions are for, nor where the key comes from.

What leaves this machine is the body that `_body` builds and the key. Proxies and credentials of
the environment are not used, no redirect is followed, and the headers by which the `openai`
library describes the machine are taken off.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from gpta_local.assistant import replies, traits
from gpta_local.assistant.faults import (
    CONNECT_SECONDS,
    LONGEST_FAULT,
    OVERLOADED,
    SEE_LOG,
    ExplainedEndpoint,
    own_words,
)
from gpta_local.assistant.transport import LONGEST_ANSWER, BoundedTransport, Part, Value, map_in_threads
from gpta_local.errors import AdapterRefused, EndpointError
from gpta_local.record.cache import CompletionCache
from gpta_local.schema import Ask, Checked, Completion, Message, Request, Sampling

if TYPE_CHECKING:
    import httpx2
    from openai import APIStatusError, OpenAI
    from openai._types import RequestOptions

MAX_CHOICES = 16
"""Completions asked for in one HTTP request."""
PAUSES_SECONDS = 60.0
"""Between the tries of a request, all together."""
CHECK_RETRIES = 2
"""Most further tries before a run: who has just started it sees a fault soon."""
AT_MOST = "gives at most"
ALL_ALIKE = (
    "gives the same reply every time, whatever seed and temperature say: it does not sample, or answers from a cache. "
    'If it is `transformers serve`, "do_sample": true is missing in the model\'s generation_config.json'
)
ENOUGH = 4
"""Replies to one request that are not all alike, if they are drawn."""
LONGEST_NAME = 200
"""Characters that are kept of a model's name."""
PROBE = Ask(
    Request("prefix", (Message("system", "You help."), Message("user", "Answer with one word."))),
    2,
    Sampling(max_new_tokens=16),
)
"""What is asked to see whether a server answers, where the request of a run is not known."""
SENT_HEADERS = ("host", "accept", "accept-encoding", "connection", "content-type", "content-length")
SEEDS = 4096
"""For the completions of a request: the next request, whose seed is higher by one, has others."""


class OpenAIAssistant(ExplainedEndpoint):
    """Asks an endpoint for completions, several requests at a time.

    Completion `i` of `n` has the seed `SEEDS * sampling.seed + i`, however it is asked for: in chunks with
    `n` (vLLM counts the seed up by itself), and in smaller ones where a server gives fewer choices than
    it was asked for. Each request gives at least one completion or fails, so `n` completions take
    at most `n` requests, retries aside. `transformers serve` has one random generator for all
    requests: there the seed counts only if `concurrency` is 1.

    What a server does not take of a request (`traits.TRAITS`, and more than so many completions at once) is found out
    by its refusal, told once and kept for all further requests; a field of `extra_body` stays as it is.

    Token counts are given where the server counts one completion; a sum over several is not divided.

    No call waits for ever: a request with all its tries and pauses is given up after twice the
    `timeout` and a minute.

    Args:
        model: the name under which the server knows the model.
        base_url: up to and including the version, as in http://127.0.0.1:8000/v1
        api_key: sent as a bearer token; None sends none. It occurs in no message and no traceback.
        timeout: seconds to wait for the whole answer to one request.
        max_retries: how often a request is sent again after a broken or refused connection, a
            timeout or a status of 408, 409, 429 or 5xx; after pauses that grow from 0.5 to 8 s, or
            as the server's Retry-After says, up to 2 minutes.
        concurrency: requests in flight at once.
        extra_body: further fields of the request; they replace those of sampling, and None leaves one out.
        cache: folder of what was answered before, used after `check`; None: everything is asked anew.
    """

    takes_adapters = False
    adapters_refused = (
        "An endpoint of the backend openai takes no adapters. "
        "Serve the model by vLLM (assistant.backend: vllm) or in this process (local)"
    )

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None,
        timeout: float,
        max_retries: int,
        concurrency: int,
        extra_body: Mapping[str, Any] | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(model, base_url, api_key, timeout, extra_body)
        self._max_retries = max_retries
        self._give_up = 2 * timeout + PAUSES_SECONDS
        self._concurrency = concurrency
        self._traits: tuple[traits.Trait, ...] = ()
        self._most_choices = MAX_CHOICES
        self._all_alike = False
        self._cache_folder = cache
        self.checked: Checked | None = None
        self._learning = threading.Lock()
        self._tell: Callable[[str], None] | None = None
        self._untold: list[str] = []
        self._kept: dict[tuple[str, Request, Sampling, int], Completion] = {}
        self._client = self._connect(timeout, max_retries)

    def check(self, ask: Ask = PROBE, tell: Callable[[str], None] = lambda _: None) -> str:
        """Ask what the run asks first, just as the run will. The replies are kept until they are asked for.

        The list of models only serves to explain: `transformers serve` lists its download cache
        (and fails where there is none), not what it serves.
        """
        self._served = self._in_time(self._list_models)
        retries = min(self._max_retries, CHECK_RETRIES)
        count = _chunk(ask.sampling, min(ask.n, self._most_choices))
        found = self._in_time(lambda: self._ask(ask.request, ask.sampling, first=0, n=count, retries=retries))
        self.checked = Checked(replace(ask, n=count), tuple(found))
        answered_as = found[0].model
        if self._served and self.name not in {*self._served, answered_as, answered_as.partition("@")[0]}:
            raise self._no_such_model(f"the server answers as {answered_as!r}, not as {self.name!r}")
        for slot, completion in enumerate(found):
            self._kept[self._asked_for, ask.request, ask.sampling, slot] = completion
        self._tell = tell
        self._say()
        return f"{self.name} at {self._url}"

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """Draw `n` completions.

        Raises:
            EndpointError: if any of the requests fails for good.
        """
        return self.complete_all([Ask(request, n, sampling)])[0]

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """All HTTP requests of all asks are in flight together, as far as `concurrency` lets them."""
        cache = self._cache
        with cache.asking(asks) if cache else nullcontext():
            return self._complete_all(asks, cache)

    def _complete_all(self, asks: Sequence[Ask], cache: CompletionCache | None) -> list[list[Completion]]:
        known = [cache.known(ask) if cache else [] for ask in asks]
        found = [dict(enumerate(before)) or self._kept_of(ask) for before, ask in zip(known, asks, strict=True)]
        while missing := [
            (number, *part)
            for number, ask in enumerate(asks)
            for part in _parts([slot for slot in range(ask.n) if slot not in found[number]], self._chunk_of(ask))
        ]:
            answered = self._all_in_time(
                lambda part: self._ask(asks[part[0]].request, asks[part[0]].sampling, *part[1:]), missing
            )
            for (number, first, _), completions in zip(missing, answered, strict=True):
                found[number] |= dict(enumerate(completions, start=first))
        drawn = [[found[number][slot] for slot in range(ask.n)] for number, ask in enumerate(asks)]
        if not self._all_alike and any(map(_all_alike, asks, drawn)):
            self._all_alike = True
            self._learnt(ALL_ALIKE)
        for ask, before, completions in zip(asks, known, drawn, strict=True):
            if cache and not before:
                cache.keep(ask, completions)
        return drawn

    @property
    def _cache(self) -> CompletionCache | None:
        """A server's model is known by its name alone, and only once the server has said it."""
        if self._cache_folder is None or self.checked is None:
            return None
        served = self.checked.completions[0].model
        answerer = [type(self).__name__, self._url, served, self._adapter, self._extra_body]
        return CompletionCache(self._cache_folder, json.dumps(answerer, sort_keys=True))

    @property
    def _adapter(self) -> str:
        """The digest of the adapter that answers; empty without one."""
        return ""

    def _kept_of(self, ask: Ask) -> dict[int, Completion]:
        """The completions that the check has brought, by their numbers; each is given once."""
        keys = {slot: (self._asked_for, ask.request, ask.sampling, slot) for slot in range(ask.n)}
        return {slot: self._kept.pop(key) for slot, key in keys.items() if key in self._kept}

    def _chunk_of(self, ask: Ask) -> int:
        return _chunk(ask.sampling, self._most_choices)

    def use_adapter(self, folder: Path | None) -> None:
        if folder is not None:
            raise AdapterRefused(self.adapters_refused, where=self._at("base_url"))

    def drop_adapter(self, folder: Path) -> None:
        """There is none."""

    def close(self) -> None:
        self._client.close()

    def _in_time(self, call: Callable[[], Value]) -> Value:
        """What the call returns, or an EndpointError if it takes too long."""
        return self._all_in_time(lambda _: call(), [None])[0]

    def _all_in_time(self, function: Callable[[Part], Value], parts: Sequence[Part]) -> list[Value]:
        try:
            return map_in_threads(function, parts, self._concurrency, self._give_up)
        except Empty as exc:
            raise self._error(f"no answer within {self._give_up:g} s, further tries included", OVERLOADED) from exc

    def _connect(self, timeout: float, max_retries: int) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI, Timeout

        http_client = DefaultHttpxClient(
            trust_env=False,  # no proxy that happens to be set; the certificates of the environment are wanted
            transport=BoundedTransport(ssl.create_default_context() if os.environ.get("SSL_CERT_FILE") else True),
            follow_redirects=False,
            event_hooks={"request": [self._set_headers]},
        )
        return OpenAI(
            base_url=self._url,
            api_key="set by _set_headers",
            timeout=Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            max_retries=max_retries,
            http_client=http_client,
        )

    def _set_headers(self, request: httpx2.Request) -> None:
        """Leave out what the library adds from the environment and about the machine."""
        for name in set(request.headers) - set(SENT_HEADERS):
            del request.headers[name]
        request.headers["user-agent"] = "gpta-local"
        request.headers["accept-encoding"] = "identity"
        if self._key is not None:
            request.headers["authorization"] = f"Bearer {self._key}"

    def _body(self, request: Request, sampling: Sampling, first: int, n: int) -> dict[str, Any]:
        body = {
            "model": self._asked_for,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "n": n if n > 1 else None,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (SEEDS * sampling.seed + first) % 2**31,  # some servers take no larger one
        }
        body = traits.applied(self._traits, {field: value for field, value in body.items() if value is not None})
        return {field: value for field, value in (body | self._extra_body).items() if value is not None}

    def _ask(
        self, request: Request, sampling: Sampling, first: int, n: int, retries: int | None = None
    ) -> list[Completion]:
        """Between one and `n` completions, by one HTTP request that the server takes."""
        from openai import APIStatusError

        options: RequestOptions = {} if retries is None else {"max_retries": retries}
        while True:
            count = min(n, self._most_choices)
            body = self._body(request, sampling, first, count)
            try:
                with self._explained():
                    text = self._client.post("/chat/completions", body=body, cast_to=str, options=options)
                break
            except EndpointError as exc:
                refusal = exc.__cause__
                if not isinstance(refusal, APIStatusError) or not self._adapt(
                    refusal, body, count, lambda: self._body(request, sampling, first, min(n, self._most_choices))
                ):
                    raise
        completions = self._read(text)[:count]
        if len(completions) < count:  # it ignores n: nothing is refused, so nothing is told
            self._most_choices = min(self._most_choices, len(completions))
        return completions

    def _adapt(self, refusal: APIStatusError, body: Mapping[str, Any], n: int, again: Callable[[], Any]) -> bool:
        """Learn from a refusal of this body, with `n` completions, what the server does not take. Whether there is
        something else to be sent: `again` makes it."""
        if refusal.status_code not in traits.REFUSING:
            return False
        reply = refusal.response.text[:LONGEST_FAULT]
        said, named = own_words(reply), traits.named_field(refusal.param, reply)
        with self._learning:
            if again() != body:  # another thread has learnt it meanwhile
                return True
            before = self._traits
            for trait in traits.TRAITS:
                if trait not in before and trait.fits(named, said, dict(body)):
                    self._traits = (*before, trait)
                    if again() != body:
                        self._learnt(trait.said)
                        return True
            self._traits = before
            fewer = traits.allowed_choices(named, said, n)
            if fewer < n:
                self._most_choices = fewer
                self._untold = [said for said in self._untold if not said.startswith(AT_MOST)]
                self._learnt(f"{AT_MOST} {fewer} completion{'s' * (fewer > 1)} of a request")
            return fewer < n

    def _learnt(self, said: str) -> None:
        """What is learnt in the check is told at its end, all at once."""
        self._untold.append(said)
        self._say()

    def _say(self) -> None:
        if self._tell is not None and self._untold:
            self._tell(f"{self._at('base_url')}: the server {'; '.join(self._untold)}")
            self._untold.clear()

    def _list_models(self) -> dict[str, Mapping[str, Any]]:
        """What the server says of the models that it serves, by name; empty if it does not say."""
        from openai import APIStatusError, AuthenticationError, PermissionDeniedError

        # a connection of its own: `transformers serve` fails here and breaks it a moment later
        options: RequestOptions = {"max_retries": 0, "headers": {"connection": "close"}}
        with self._explained():
            try:
                text = self._client.get("/models", cast_to=str, options=options)
            except (AuthenticationError, PermissionDeniedError):
                raise
            except APIStatusError:
                return {}
        try:
            return {str(model["id"]): model for model in json.loads(text)["data"]}
        except (ValueError, LookupError, TypeError, RecursionError):
            return {}

    def _read(self, text: str) -> list[Completion]:
        text = text.removeprefix("\ufeff")
        streamed = text.lstrip().startswith(replies.STREAMED)
        try:
            reply = replies.whole_stream(text) if streamed else json.loads(text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
            if len(text.encode()) >= LONGEST_ANSWER:
                raise self._error(f"the answer goes on after {LONGEST_ANSWER // 2**20} MiB", SEE_LOG) from exc
            kind = "a web page" if text.lstrip().startswith("<") else "a broken stream" if streamed else "no JSON"
            raise self._no_chat_api(f"the server answers with {kind}: {self._quote(own_words(text))}") from exc
        if isinstance(reply, dict) and reply.get("error") and not reply.get("choices"):
            raise self._error(f"the server answers with an error: {self._quote(own_words(json.dumps(reply)))}", SEE_LOG)
        try:
            choices = sorted(reply["choices"], key=lambda choice: int(choice.get("index") or 0))
            contents = [
                (replies.as_text(choice["message"], choice.get("finish_reason")), choice.get("finish_reason"))
                for choice in choices
            ]
            usage = (reply.get("usage") or {}) if len(choices) == 1 else {}
            completions = [
                Completion(
                    text=self._without_key(_writable(content)),
                    model=self._answered_as(self._name(reply.get("model") or self.name)),
                    finish_reason=self._name(finish_reason or "unknown"),
                    prompt_tokens=_count(usage.get("prompt_tokens")),
                    completion_tokens=_count(usage.get("completion_tokens")),
                )
                for content, finish_reason in contents
            ]
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as exc:
            what = f"the server answers with JSON that is no chat completion: {self._quote(text)}"
            raise self._no_chat_api(what) from exc
        if not completions:
            raise self._error(f"the server answers without any completion: {self._quote(text)}", SEE_LOG)
        return completions

    def _name(self, said: object) -> str:
        return self._without_key(_writable(str(said)))[:LONGEST_NAME]

    def _answered_as(self, served_name: str) -> str:
        """The model that a completion is by, for the record."""
        return served_name


def _writable(text: str) -> str:
    """JSON can carry half a surrogate pair, no file can."""
    return text.encode("utf-8", "replace").decode()


def _count(tokens: Any) -> int | None:
    """What a server says, if it is a number."""
    return tokens if type(tokens) is int else None


def _all_alike(ask: Ask, drawn: Sequence[Completion]) -> bool:
    return ask.sampling.temperature > 0 and len(drawn) >= ENOUGH and len({completion.text for completion in drawn}) == 1


def _chunk(sampling: Sampling, most: int) -> int:
    """Completions of one HTTP request."""
    return 1 if sampling.temperature == 0 else most  # vLLM refuses n > 1 without randomness


def _parts(slots: Sequence[int], size: int) -> list[tuple[int, int]]:
    """The first completion and the number of completions of each HTTP request for those in `slots`, in their order;
    those of one request follow each other."""
    parts: list[tuple[int, int]] = []
    for slot in slots:
        first, count = parts[-1] if parts else (-1, size)
        if count < size and slot == first + count:
            parts[-1] = (first, count + 1)
        else:
            parts.append((slot, 1))
    return parts
