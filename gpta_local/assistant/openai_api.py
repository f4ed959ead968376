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
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpta_local.assistant.transport import LONGEST_ANSWER, BoundedTransport, Part, Value, map_in_threads
from gpta_local.errors import AdapterRefused, AssistantError, EndpointError
from gpta_local.schema import Completion, Message, Request, Sampling
from gpta_local.system.network import NotAllowed

if TYPE_CHECKING:
    import httpx2
    from openai import APIConnectionError, APIStatusError, OpenAI
    from openai._types import RequestOptions

MAX_CHOICES = 16
"""Completions asked for in one HTTP request."""
CONNECT_SECONDS = 10.0
PAUSES_SECONDS = 60.0
"""Between the tries of a request, all together."""
CHECK_RETRIES = 2
"""Most further tries before a run: who has just started it sees a fault soon."""
OVERLOADED = "Is the server up and not overloaded? assistant.timeout and assistant.concurrency can be changed"
SEE_LOG = "Look at the server's log"
LONGEST_NAME, LONGEST_FAULT = 200, 20_000
"""Characters that are kept of a model's name, and read of an error."""
PROBE = Request("prefix", (Message("user", "Answer with one word."),))
SENT_HEADERS = ("host", "accept", "accept-encoding", "connection", "content-type", "content-length")
CONFIG_KEYS = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_new_tokens"}
"""Field of the request → key under `assistant` that sets it."""
SEEDS = 4096
"""For the completions of a request: the next request, whose seed is higher by one, has others."""


class OpenAIAssistant:
    """Asks an endpoint for completions, several requests at a time.

    Completion `i` of `n` has the seed `SEEDS * sampling.seed + i`, however it is asked for: in chunks with
    `n` (vLLM counts the seed up by itself), and one by one where a server gives fewer choices than
    it was asked for. Each request gives at least one completion or fails, so `n` completions take
    at most `n` requests, retries aside. `transformers serve` has one random generator for all
    requests: there the seed counts only if `concurrency` is 1.

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
    ) -> None:
        self.name = self._asked_for = model
        self._url = _usable_url(base_url)
        self._key = _usable_key(api_key)
        self._timeout, self._max_retries = timeout, max_retries
        self._give_up = 2 * timeout + PAUSES_SECONDS
        self._concurrency = concurrency
        self._extra_body = dict(extra_body or {})
        self._served: dict[str, Mapping[str, Any]] = {}
        self._client = self._connect(timeout, max_retries)

    def check(self) -> str:
        """Ask for two completions of one token, with all fields that are sent later.

        The list of models only serves to explain: `transformers serve` lists its download cache
        (and fails where there is none), not what it serves.
        """
        self._served = self._in_time(self._list_models)
        retries = min(self._max_retries, CHECK_RETRIES)
        probe = self._in_time(lambda: self._ask(PROBE, Sampling(max_new_tokens=1), first=0, n=2, retries=retries))
        answered_as = probe[0].model
        if self._served and self.name not in {*self._served, answered_as, answered_as.partition("@")[0]}:
            raise self._no_such_model(f"the server answers as {answered_as!r}, not as {self.name!r}")
        return f"{self.name} at {self._url}"

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        """Draw `n` completions.

        Raises:
            EndpointError: if any of the requests fails for good.
        """
        size = 1 if sampling.temperature == 0 else MAX_CHOICES  # vLLM refuses n > 1 without randomness
        asked = [(first, min(size, n - first)) for first in range(0, n, size)]
        found: dict[int, Completion] = {}
        while asked:  # twice at most: a request for one completion gives one
            replies = self._all_in_time(lambda part: self._ask(request, sampling, *part), asked)
            missing: list[int] = []
            for (first, count), reply in zip(asked, replies, strict=True):
                found.update(enumerate(reply, first))
                missing += range(first + len(reply), first + count)
            asked = [(slot, 1) for slot in missing]
        return [found[slot] for slot in range(n)]

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
        return {field: value for field, value in (body | self._extra_body).items() if value is not None}

    def _ask(
        self, request: Request, sampling: Sampling, first: int, n: int, retries: int | None = None
    ) -> list[Completion]:
        """One HTTP request: between one and `n` completions."""
        body = self._body(request, sampling, first, n)
        options: RequestOptions = {} if retries is None else {"max_retries": retries}
        with self._explained():
            text = self._client.post("/chat/completions", body=body, cast_to=str, options=options)
        return self._read(text)[:n]

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
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError) as exc:
            if len(text.encode()) >= LONGEST_ANSWER:
                raise self._error(f"the answer goes on after {LONGEST_ANSWER // 2**20} MiB", SEE_LOG) from exc
            kind = "a web page" if text.lstrip().startswith("<") else "no JSON"
            raise self._no_chat_api(f"the server answers with {kind}: {self._quote(own_words(text))}") from exc
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice.get("index") or 0)
            contents = [(choice["message"].get("content") or "", choice.get("finish_reason")) for choice in choices]
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
        except (LookupError, TypeError, AttributeError, RecursionError) as exc:
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

    @contextmanager
    def _explained(self, refusal: Callable[[APIStatusError], AssistantError] | None = None) -> Iterator[None]:
        """The one place where errors of the library become ours; statuses do by `refusal`, or `_refusal`."""
        from openai import APIConnectionError, APIStatusError

        try:
            yield
        except APIStatusError as exc:
            exc.message = self._quote(exc.message)  # some servers repeat the key that they refuse
            exc.args = (exc.message,)
            raise (refusal or self._refusal)(exc) from exc
        except APIConnectionError as exc:
            raise self._no_connection(exc) from exc

    def _no_connection(self, exc: APIConnectionError) -> EndpointError:
        from openai import APITimeoutError

        address = urlsplit(self._url)
        port = address.port or (443 if address.scheme == "https" else 80)
        cause = _operating_system_error(exc)
        if isinstance(exc, APITimeoutError):
            connecting = type(exc.__cause__).__name__ == "ConnectTimeout"
            seconds = min(self._timeout, CONNECT_SECONDS) if connecting else self._timeout
            what = f"no {'connection' if connecting else 'answer'} within {seconds:g} s"
            fix = OVERLOADED
        elif isinstance(cause, socket.gaierror):
            what, fix = f"the host {address.hostname!r} is not found ({cause.strerror})", "Correct assistant.base_url"
        elif isinstance(cause, NotAllowed):
            what = f"the guard of the network refuses the connection ({cause.strerror})"
            fix = "If it may see your description and gains, add it to privacy.allow_hosts"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            what = f"the server's certificate is not trusted ({cause.verify_message})"
            fix = "Name the file of its authority in the environment variable SSL_CERT_FILE"
        elif isinstance(cause, ssl.SSLError):
            what, fix = f"no TLS with this server ({cause.reason})", "Does it speak http:// instead of https://?"
        elif isinstance(cause, ConnectionRefusedError):
            what = f"nothing listens on port {port} of {address.hostname}"
            start = f"gpta-local assistant serve {self.name} --port {port}"
            fix = f"Is the server running? Start it, for example with: {start}"
        else:
            what = f"the connection broke ({exc.__cause__})"
            fix = f"{SEE_LOG}. Does it speak https:// instead of http://?"
        return self._error(what, fix)

    def _refusal(self, exc: APIStatusError) -> EndpointError:
        """What a status other than 2xx means for the user."""
        status, said = exc.status_code, self._quote(own_words(exc.response.text)).rstrip(".") or "no explanation"
        if status in (401, 403):
            what = f"the server {'refuses the key' if self._key else 'asks for a key'} ({status}): {said}"
            fix = "The key is in the variable or file that assistant.api_key_env or assistant.api_key_file names"
        elif 300 <= status < 400:
            target = self._quote(exc.response.headers.get("location", "nowhere"))
            what = f"the server redirects to {target} ({status}), which is not followed"
            fix = "If that is the right server, write its address into assistant.base_url"
        elif status in (400, 404, 422) and self._means_the_model(exc, said):
            return self._no_such_model(f"the server refuses the model {self._asked_for!r} ({status}): {said}")
        elif status in (404, 405, 501):
            return self._no_chat_api(f"there is no chat API ({status}): {said}")
        elif status in (400, 413, 422) and re.search(r"(?i)context.(length|window|size)|max_model_len|too long", said):
            what = f"the request and its completion are too long for the model ({status}): {said}"
            fix = "Lower assistant.max_new_tokens or search.history_shown, or shorten card.description"
            return self._error(what, fix, "model")
        elif status in (400, 422):
            return self._refused_parameter(exc, said)
        elif status == 429:
            what = f"the server refuses further requests for now (429): {said}"
            fix = "Lower assistant.concurrency or raise assistant.max_retries"
        else:
            what, fix = f"the server fails ({status}): {said}", SEE_LOG
        return self._error(what, fix)

    def _refused_parameter(self, exc: APIStatusError, said: str) -> EndpointError:
        sent = [*self._body(PROBE, Sampling(), first=0, n=2)]
        told = str(exc.param or "").rpartition(".")[2]
        words = re.findall(r"\w+", said)
        named = [field for field in sent if field in words and field not in ("model", "messages")]
        field = told if told in sent else next(iter(named), None)
        if field in CONFIG_KEYS:
            fix = f"Change assistant.{CONFIG_KEYS[field]}"
        else:
            fix = f"gpta-local needs a server that takes {', '.join(sent)}"
        refused = f"the parameter {field!r}" if field else "the request"
        return self._error(f"the server refuses {refused} ({exc.status_code}): {said}", fix)

    def _means_the_model(self, exc: APIStatusError, said: str) -> bool:
        if exc.param not in (None, "", "model"):
            return False
        quoted = re.search(rf"""['"`]{re.escape(self._asked_for)}['"`]""", said) is not None
        return quoted or (exc.status_code == 404 and "model" in said.lower())

    def _no_such_model(self, what: str) -> EndpointError:
        names = self._quote(", ".join(sorted(self._served)))
        fix = f"The server lists: {names}" if names else "Write the name that the server uses into assistant.model"
        return self._error(what, fix, "model")

    def _no_chat_api(self, what: str) -> EndpointError:
        fix = "Is this the address of the API itself? It mostly ends in /v1; a login page or a proxy may be in the way"
        return self._error(what, fix)

    def _error(self, what: str, fix: str, key: str = "base_url") -> EndpointError:
        return EndpointError(what, where=self._at(key), fix=fix)

    def _at(self, key: str) -> str:
        return f"assistant.{key} ({self._url})"

    def _without_key(self, text: str) -> str:
        """What a server says, in an error or a completion: some repeat what they were sent."""
        return text.replace(self._key, "***") if self._key else text

    def _quote(self, text: str) -> str:
        """A server's words: on one line, not too long, without the key and signs that steer a terminal."""
        text = "".join(c if c.isprintable() else " " for c in text[:LONGEST_FAULT])
        text = self._without_key(" ".join(text.split()))
        return text if len(text) <= 300 else f"{text[:300]}…"


def _usable_url(base_url: str) -> str:
    fix = "Write it as in http://127.0.0.1:8000/v1"
    if re.search("[@?#]", base_url):  # before anything else: no other message may repeat a password
        what = "the address holds a user name, a password, a query or a fragment"
        raise EndpointError(what, where="assistant.base_url", fix=f"{fix}; a key goes into assistant.api_key_file")
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EndpointError(f"{base_url!r} is no address of an API", where="assistant.base_url", fix=fix)
    return base_url.rstrip("/")


def _usable_key(api_key: str | None) -> str | None:
    if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
        what = "the key is empty or holds blanks, line breaks or characters outside ASCII"
        fix = "Correct what assistant.api_key_env or assistant.api_key_file names"
        raise EndpointError(what, where="assistant", fix=fix)
    return api_key


def _operating_system_error(exc: BaseException) -> OSError | None:
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def own_words(text: str) -> str:
    """The message in an error body, whose shape every server chooses for itself."""
    text = text[:LONGEST_FAULT]
    try:
        content = json.loads(text)
        while isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), str(content))
        return content if isinstance(content, str) else json.dumps(content)
    except (ValueError, RecursionError):
        return re.sub(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", text)


def _writable(text: str) -> str:
    """JSON can carry half a surrogate pair, no file can."""
    return text.encode("utf-8", "replace").decode()


def _count(tokens: Any) -> int | None:
    """What a server says, if it is a number."""
    return tokens if type(tokens) is int else None
