"""A chat endpoint on 127.0.0.1 that behaves as the test tells it to, and remembers what it was sent.

Knows HTTP and the wire format. Does not know the client under test.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: Json | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Json


Chat = Callable[[Json], Reply]


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
    return Reply(body=completion(*(f"seed {body['seed'] + i}" for i in range(body.get("n", 1))), model=body["model"]))


def ignores_n(body: Json) -> Reply:
    """As `transformers serve`."""
    return well_behaved(body | {"n": 1})


def always(reply: Reply) -> Chat:
    return lambda body: reply


def first(*replies: Reply, then: Chat = well_behaved) -> Chat:
    """The replies in turn, then `then`."""
    left = list(replies)
    lock = threading.Lock()

    def chat(body: Json) -> Reply:
        with lock:
            reply = left.pop(0) if left else None
        return then(body) if reply is None else reply

    return chat


class Http(ThreadingHTTPServer):
    request_queue_size = 256  # connections that may wait to be accepted; 5 by default


class FaultServer:
    """Serves `/v1/models` and `/v1/chat/completions`; everything else is 404.

    `received` holds all requests in the order of their arrival; `most_at_once` is the largest
    number of chat requests that were in hand together.
    """

    def __init__(self, chat: Chat = well_behaved, models: Reply | None = None) -> None:
        self.received: list[Received] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._chat = chat
        self._models = model_list("m") if models is None else models
        self._http = Http(("127.0.0.1", 0), self._handler())
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
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, request: Received) -> Reply:
        with self._lock:
            self.received.append(request)
        if request.path == "/v1/models":
            return self._models
        if request.path != "/v1/chat/completions":
            return Reply(404, {"detail": "Not Found"})
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
