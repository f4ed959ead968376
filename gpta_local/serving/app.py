"""The HTTP interface of a product: `/predict`, `/health`, and a page that documents them.

Knows FastAPI and what a request may be. Keeps nothing of a request, and logs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gpta_local import __version__
from gpta_local.downstream.loaded import Rows
from gpta_local.downstream.product import Product
from gpta_local.serving.batching import Batcher, Full
from gpta_local.system.extras import extra_module

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_TEXTS = 1024
"""Of one request."""
MOST_BYTES = 2**22
"""Of the body of one request."""
MOST_PROBLEMS = 10
"""Of a request, in one answer."""
HOSTS = ["127.0.0.1", "localhost"]
"""Names that a request may call this server: a web page that has its own name point here is refused."""

Text = Annotated[str, StringConstraints(pattern=r"\S")]


class Texts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    texts: list[Text] = Field(min_length=1, max_length=MOST_TEXTS, examples=[["When may I come for my blood test?"]])


class Pairs(BaseModel):
    model_config = ConfigDict(extra="forbid")
    texts: list[tuple[Text, Text]] = Field(
        min_length=1, max_length=MOST_TEXTS, examples=[[["It rained all night.", "The streets are wet."]]]
    )


class Labelled(BaseModel):
    label: str
    probabilities: dict[str, float]


class Predictions(BaseModel):
    predictions: list[Labelled]
    """In the order of the texts."""


class Health(BaseModel):
    status: str
    labels: list[str]
    gpta_local: str


def make_app(product: Product) -> FastAPI:
    """The server's application. The model is loaded here, once.

    Raises:
        InputError: the extra `serve` is not installed.
        ModelError: the model cannot be loaded.
    """
    fastapi, offline = extra_module("fastapi", "serve"), extra_module("fastapi_offline", "serve")
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import JSONResponse

    model = product.load()

    def predict(rows: Rows) -> list[Any]:
        return list(product.predictions(model.logits(rows)))

    predict([("a",) if product.record["columns"]["text_pair"] is None else ("a", "a")])  # or the first request waits

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(predict)
        worker = asyncio.create_task(app.state.batcher.work())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    app: FastAPI = offline.FastAPIOffline(
        title="gpta-local",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        description=f"Labels: {', '.join(product.labels)}.",
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_middleware(BodyLimit)

    async def answer(rows: Rows) -> Predictions:
        try:
            found = await app.state.batcher.predict(rows)
        except Full as exc:
            raise fastapi.HTTPException(503, "too many texts are waiting", headers={"Retry-After": "1"}) from exc
        return Predictions(predictions=[Labelled(label=p.label, probabilities=p.probabilities) for p in found])

    if product.record["columns"]["text_pair"] is None:

        @app.post("/predict", summary="Label texts")
        async def of_texts(request: Texts) -> Predictions:
            return await answer([(text,) for text in request.texts])
    else:

        @app.post("/predict", summary="Label pairs of texts")
        async def of_pairs(request: Pairs) -> Predictions:
            return await answer(request.texts)

    @app.get("/health", summary="Whether the model is ready")
    async def health() -> Health:
        return Health(status="ok", labels=product.labels, gpta_local=__version__)

    @app.exception_handler(RequestValidationError)
    async def unusable(_: Any, exc: RequestValidationError) -> JSONResponse:
        """What is wrong, and where; not what was sent."""
        problems = [{"where": _place(error), "what": _words(error)} for error in exc.errors()[:MOST_PROBLEMS]]
        return JSONResponse({"detail": problems}, status_code=422)

    return app


def _place(error: dict[str, Any]) -> str:
    """As in texts[3]."""
    if error["type"] == "json_invalid":
        return "body"
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"] if part != "body"]
    return "".join(parts).removeprefix(".") or "body"


def _words(error: dict[str, Any]) -> str:
    match error["type"]:
        case "string_pattern_mismatch":
            return "is empty"
        case "json_invalid":
            return "is no JSON"
        case "extra_forbidden":
            return "is not known"
        case "missing":
            return "is missing"
        case "model_attributes_type":
            return "must be a JSON object, sent with the header content-type: application/json"
    return str(error["msg"])


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `MOST_BYTES`, said or sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse

        words = f"the body has more than {MOST_BYTES} bytes: send fewer texts at once"
        if int(dict(scope["headers"]).get(b"content-length", b"0")) > MOST_BYTES:  # h11 has seen that it is a number
            response = JSONResponse({"detail": words}, status_code=413, headers={"Connection": "close"})
            await response(scope, receive, send)
            return
        left = MOST_BYTES

        async def counted() -> Any:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, words, headers={"Connection": "close"})
            return message

        await self._app(scope, counted, send)
