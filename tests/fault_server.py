"""A chat endpoint on 127.0.0.1 that behaves as the test tells it to, and remembers what it was sent.

Knows HTTP and the wire format. Does not know the client under test.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: Json | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """A reply that is written byte by byte; the connection is closed after it."""

    write: Callable[[socket.socket], None]


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Json


Chat = Callable[[Json], Reply | Raw]


def completion(*texts: str | None, model: str = "m", finish_reason: str | None = "stop") -> Json:
    """The body of a well-formed reply with a choice for each text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(texts), "total_tokens": 7 + 3 * len(texts)}
    return {"object": "chat.completion", "model": model, "choices": choices, "usage": usage}


def model_list(*names: str, **facts: object) -> Reply:
    return Reply(body={"object": "list", "data": [{"id": name, **facts} for name in names]})


def well_behaved(body: Json) -> Reply:
    """As vLLM: choice i of a request says seed + i."""
    return Reply(
        body=completion(*(f"seed {body.get('seed', 0) + i}" for i in range(body.get("n", 1))), model=body["model"])
    )


def ignores_n(body: Json) -> Reply:
    """As `transformers serve`."""
    return well_behaved(body | {"n": 1})


def always(reply: Reply | Raw) -> Chat:
    return lambda body: reply


def first(*replies: Reply | Raw, then: Chat = well_behaved) -> Chat:
    """The replies in turn, then `then`."""
    left = list(replies)
    lock = threading.Lock()

    def chat(body: Json) -> Reply | Raw:
        with lock:
            reply = left.pop(0) if left else None
        return then(body) if reply is None else reply

    return chat


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def reset(connection: socket.socket) -> None:
    """Close so that the other side hears of an error."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang_up(connection: socket.socket) -> None:
    """Close without a word."""


def half_a_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b'content-length: 4000\r\n\r\n{"object": "chat.comp')


def endless(connection: socket.socket) -> None:
    """As fast as the other side reads."""
    connection.sendall(HEAD + b'\r\n{"choices": "')
    while True:
        connection.sendall(b"x" * 2**16)


def byte_by_byte(of_what: bytes, pause: float = 0.1) -> Callable[[socket.socket], None]:
    """No pause is longer than any timeout, and there is no end."""

    def write(connection: socket.socket) -> None:
        connection.sendall(of_what)
        while True:
            time.sleep(pause)
            connection.sendall(b"x")

    return write


def error(status: int, words: str, param: str | None = None, code: object = None) -> Reply:
    return Reply(status, {"error": {"message": words, "type": "SomeError", "param": param, "code": code or status}})


def forbidden(
    status: int, field: str, kind: str = "extra_forbidden", words: str = "Extra inputs are not permitted"
) -> Reply:
    """As FastAPI refuses a field."""
    return Reply(status, {"detail": [{"type": kind, "loc": ["body", *field.split(".")], "msg": words, "input": 0}]})


def refusing(fault: Callable[[Json], Reply | None], then: Chat = well_behaved) -> Chat:
    """What it finds no fault in is answered."""
    return lambda body: fault(body) or then(body)


def streamed(body: Json, *, piece: int = 3, usage: bool = False) -> Reply:
    """The answer of `well_behaved` as server-sent events, a few characters in each."""
    whole = well_behaved(body).body
    assert isinstance(whole, dict)
    events: list[Json] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    for choice in whole["choices"]:
        text, index = choice["message"]["content"], choice["index"]
        parts = [text[start : start + piece] for start in range(0, len(text), piece)]
        events += [{"choices": [{"index": index, "delta": {"content": part}}]} for part in parts]
        events.append({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        events.append({"choices": [], "usage": whole["usage"]})
    lines = [f"data: {json.dumps({'object': 'chat.completion.chunk', 'model': body['model'], **e})}" for e in events]
    content = "\n\n".join([": ping", *lines, "data: [DONE]"]) + "\n\n"
    return Reply(200, content, {"content-type": "text/event-stream"})


def roles(body: Json) -> list[str]:
    return [message["role"] for message in body["messages"]]


def no_system(refusal: Reply) -> Chat:
    return refusing(lambda body: refusal if "system" in roles(body) else None)


def no_field(field: str, refusal: Reply) -> Chat:
    return refusing(lambda body: refusal if field in body else None)


def at_most(n: int, refusal: Reply) -> Chat:
    return refusing(lambda body: refusal if body.get("n", 1) > n else None)


ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
NOT_SUPPORTED = "Unsupported parameter: '{0}' is not supported with this model."
USE_OTHER = f"{NOT_SUPPORTED.format('max_tokens')} Use 'max_completion_tokens' instead."
FIXED = (
    "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported."
)
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
ONLY_STREAM = "This model only support stream mode, please enable the stream parameter to access the model. "
LISTS = "messages[0].content: invalid type: string, expected a sequence"
PARAMETER = "unsupported_parameter"

CHANGED = {
    "no system role, vLLM": (no_system(error(400, "System role not supported")), "no system role"),
    "no system role, llama.cpp": (no_system(error(500, f"{ALTERNATE} at row 19, column 27")), "no system role"),
    "no system role, TGI": (
        no_system(
            Reply(422, {"error": "Template error: invalid operation: System role not supported (in <string>:1)"})
        ),
        "no system role",
    ),
    "no system role, o1": (
        no_system(
            error(
                400,
                "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                "messages[0].role",
            )
        ),
        "no system role",
    ),
    "no system role, Ministral": (
        no_system(error(400, "Only user, assistant and tool roles are supported, got system.")),
        "no system role",
    ),
    "no system role, FastAPI": (
        no_system(forbidden(422, "messages.0.role", "literal_error", "Input should be 'user' or 'assistant'")),
        "no system role",
    ),
    "no system role, Google": (
        no_system(error(400, "Developer instruction is not enabled for models/gemma-3-27b-it")),
        "no system role",
    ),
    "max_completion_tokens": (
        no_field("max_tokens", error(400, USE_OTHER, "max_tokens", PARAMETER)),
        "max_completion_tok",
    ),
    "max_tokens forbidden": (no_field("max_tokens", forbidden(422, "max_tokens")), "max_completion_tok"),
    "one choice, llama.cpp": (
        at_most(1, error(500, "Only one completion choice is allowed")),
        "at most 1 completion of",
    ),
    "one choice, Groq": (
        at_most(1, error(400, "'n' : number must be at most 1 with this model")),
        "at most 1 completion of",
    ),
    "no n": (at_most(1, error(400, NOT_SUPPORTED.format("n"), "n", PARAMETER)), "at most 1 completion of"),
    "no n, FastAPI": (at_most(1, forbidden(422, "n")), "at most 1 completion of"),
    "up to four choices": (at_most(4, error(400, "n must be between 1 and 4")), "at most 4 completions of"),
    "up to eight choices": (at_most(8, error(400, "Range of n should be [1, 8], got 16")), "at most 8 completions of"),
    "no seed, Mistral": (
        no_field("seed", Reply(422, {"object": "error", "message": forbidden(422, "seed").body})),
        "takes no seed",
    ),
    "no seed": (no_field("seed", error(400, "Unrecognized request argument supplied: seed")), "takes no seed"),
    "no seed, words": (
        no_field("seed", Reply(422, {"detail": "Unexpected fields in the request: {'seed'}"})),
        "no seed",
    ),
    "no top_p": (no_field("top_p", error(400, NOT_SUPPORTED.format("top_p"), "top_p", PARAMETER)), "takes no top_p"),
    "no top_p beside temperature": (
        refusing(lambda body: error(400, BOTH) if {"top_p", "temperature"} <= body.keys() else None),
        "takes top_p or temperature, not both",
    ),
    "fixed temperature": (
        refusing(lambda body: error(400, FIXED, "temperature") if body.get("temperature", 1) != 1 else None),
        "takes no temperature but its own",
    ),
    "fixed temperature, Kimi": (
        no_field("temperature", error(400, "invalid temperature: only 1 is allowed for this model")),
        "takes no temperature but its own",
    ),
    "content in parts": (
        refusing(lambda body: error(422, LISTS) if isinstance(body["messages"][0]["content"], str) else None),
        "content of messages in parts",
    ),
    "content in parts, FastAPI": (
        refusing(
            lambda body: (
                forbidden(422, "messages.0.content", "list_type", "Input should be a valid list")
                if isinstance(body["messages"][0]["content"], str)
                else None
            )
        ),
        "content of messages in parts",
    ),
    "only streams": (
        refusing(lambda body: None if body.get("stream") else error(400, ONLY_STREAM), then=streamed),
        "only streams",
    ),
    "stream is a must": (
        refusing(lambda body: forbidden(422, "stream", "missing", "Field required") if "stream" not in body else None),
        "nothing is streamed",
    ),
}
"""Servers that do not take a request as it is, and what the user is told of them."""


class Http(ThreadingHTTPServer):
    request_queue_size = 256  # connections that may wait to be accepted; 5 by default


class FaultServer:
    """Serves `/v1/models` and `/v1/chat/completions`; everything else is 404, an empty body 400.

    `received` holds all requests in the order of their arrival; `most_at_once` is the largest
    number of chat requests that were in hand together.
    """

    def __init__(
        self, chat: Chat = well_behaved, models: Reply | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.received: list[Received] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._chat = chat
        self._models = model_list("m") if models is None else models
        self._http = Http((host, port), self._handler())
        self.port = self._http.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def chats(self) -> list[Json]:
        """The bodies of the chat requests."""
        return [request.body for request in self.received if request.method == "POST"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop_listening()
        self._thread.join()

    def stop_listening(self) -> None:
        """Refuse connections from now on; a request in hand is still answered."""
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: Received) -> Reply | Raw:
        with self._lock:
            self.received.append(request)
        if request.path == "/v1/models":
            return self._models
        if request.path != "/v1/chat/completions":
            return Reply(404, {"detail": "Not Found"})
        if not request.body:
            return error(400, "Field required")
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._chat(request.body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:  # `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length)) if length else {}
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = server._answer(Received(self.command, self.path, headers, body))
                if isinstance(reply, Raw):
                    self.close_connection = True
                    with suppress(OSError):  # the client has given up, as the test wants
                        reply.write(self.connection)
                    return
                content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                kind = "text/html" if isinstance(reply.body, str) else "application/json"
                try:
                    self.send_response(reply.status)
                    for name, value in {"content-type": kind, **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(content.encode())))
                    self.end_headers()
                    self.wfile.write(content.encode())
                except OSError:
                    pass  # the client has given up, as the test wants

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


class FakeVLLM(FaultServer):
    """Answers as vLLM 0.32 with LoRA and run-time loading; `on_load` takes the place of a load's answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(self._chat_as_vllm, model_list("m", max_model_len=2048, root=str(root)))
        self.adapters: dict[str, str] = {}
        self.on_load: Callable[[Json], Reply] | None = None

    def sent(self, action: str) -> list[Json]:
        return [request.body for request in self.received if request.path == f"/v1/{action}_lora_adapter"]

    def _answer(self, request: Received) -> Reply | Raw:
        if request.path == "/v1/load_lora_adapter" and request.body:
            self.received.append(request)
            return (self.on_load or self._load)(request.body)
        if request.path == "/v1/unload_lora_adapter" and request.body:
            self.received.append(request)
            name = request.body["lora_name"]
            found = self.adapters.pop(name, None)
            return Reply(200, "Success") if found else error(404, f"The lora adapter '{name}' cannot be found.")
        return super()._answer(request)

    def _load(self, body: Json) -> Reply:
        if not Path(body["lora_path"]).is_dir():
            return error(404, f"Loading lora {body['lora_name']} failed: No adapter found for {body['lora_path']}")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return Reply(200, "Success")

    def _chat_as_vllm(self, body: Json) -> Reply:
        model = body["model"]
        if model != "m" and model not in self.adapters:
            return error(404, f"The model `{model}` does not exist. Valid aliases: m.")
        return Reply(body=completion(*["by " + Path(self.adapters.get(model, "base")).name] * 2, model=model))


def failed(words: str) -> Reply:
    """As vLLM 0.32 says that an adapter cannot be loaded."""
    sentence = f"Call to add_lora method failed: Worker failed with error '{words}', please check the stack trace above"
    return error(500, f"{sentence} for the root cause")
