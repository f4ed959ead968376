"""How endpoints fail, and what the user can do about it. Knows statuses, connections and the keys of the configuration.

No message repeats the key, nor signs that steer a terminal.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpta_local.assistant import traits
from gpta_local.errors import AssistantError, EndpointError
from gpta_local.system.network import NotAllowed

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError

CONNECT_SECONDS = 10.0
OVERLOADED = "Is the server up and not overloaded? assistant.timeout and assistant.concurrency can be changed"
SEE_LOG = "Look at the server's log"
LONGEST_PAUSE = 120.0
"""Seconds: a server that wants a longer pause is not asked again."""
CONFIG_KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}
"""Field of the request → key under `assistant` that sets it."""
TOO_LONG = re.compile(
    r"(?i)context.(length|window|size)|max_model_len|too (long|large)|`?inputs`? (tokens|must have)"
    r"|(input|prompt|token) (length|count)\b.{0,40}exceed"
    r"|exceeds.{0,40}(maximum|allowed|available).{0,20}(length|token)"
    r"|reduce.{0,20}(length|messages|prompt)"
)
"""Words of a server whose context a request and its completion do not fit into."""
LONGEST_FAULT = 20_000
"""Characters that are read of an error."""


class ExplainedEndpoint:
    """The address, model name and key of an endpoint, and its faults in words for the user."""

    def __init__(
        self, model: str, base_url: str, api_key: str | None, timeout: float, extra_body: Mapping[str, Any] | None
    ) -> None:
        self.name = self._asked_for = model
        self._url, self._key, self._timeout = _usable_url(base_url), _usable_key(api_key), timeout
        self._extra_body = dict(extra_body or {})
        self._served: dict[str, Mapping[str, Any]] = {}

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
        pause = asked_pause(exc.response.headers)
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
        elif status in (400, 413, 422) and TOO_LONG.search(said):
            what = f"the request and its completion are too long for the model ({status}): {said}"
            fix = "Lower assistant.max_new_tokens or search.history_shown, or shorten card.description"
            return self._error(what, fix, "model")
        elif status in (400, 422):
            return self._refused_parameter(exc, said)
        elif status in (429, 503) and pause > LONGEST_PAUSE:
            wait = f"{pause / 3600:.3g} h" if pause >= 3600 else f"{pause / 60:.0f} min"
            what = f"the server takes no further requests for {wait}, it says ({status}): {said}"
            fix = "Come back after that"
        elif status == 429:
            what = f"the server refuses further requests for now (429): {said}"
            fix = "Lower assistant.concurrency or raise assistant.max_retries"
        else:
            what, fix = f"the server fails ({status}): {said}", SEE_LOG
        return self._error(what, fix)

    def _refused_parameter(self, exc: APIStatusError, said: str) -> EndpointError:
        fields = (*self._extra_body, *CONFIG_KEYS, "seed", "n")
        named = re.findall(r"\w+", traits.named_field(exc.param, exc.response.text[:LONGEST_FAULT]) or said)
        field = next((field for field in fields if field in named), None)
        if field in self._extra_body:
            fix = f"Change assistant.extra_body.{field}, or take it out"
        elif field in CONFIG_KEYS:
            fix = f"Change assistant.{CONFIG_KEYS[field]}, or leave it out: assistant.extra_body: {{{field}: null}}"
        else:
            leave_out = f"{{{field}: null}}" if field == "seed" else "{seed: null, top_p: null}"
            fix = f"Fields that it does not take are left out by assistant.extra_body, such as {leave_out}"
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


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, by a number or a date; 0 if it does not."""
    said = headers.get("retry-after", "")
    try:
        return float(said)
    except ValueError:
        try:
            return parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0.0
