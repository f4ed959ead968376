"""Runs the application on a port of this machine until it is stopped. Knows sockets and uvicorn."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

from gpta_local.downstream.product import Product
from gpta_local.errors import InputError
from gpta_local.serving.app import make_app
from gpta_local.system.extras import extra_module

HOST = "127.0.0.1"
LAST_ANSWERS = 5
"""Seconds that requests which are being answered have when the server is stopped."""


def serve(product: Product, port: int, ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        port: 0 for any that is free.
        ready: told the address.

    Raises:
        InputError: the port is taken, or the extra `serve` is not installed.
        ModelError: the model cannot be loaded.
    """
    uvicorn = extra_module("uvicorn", "serve")
    try:
        listener = socket.create_server((HOST, port))
    except OSError as exc:
        raise InputError(f"port {port} cannot be used ({exc.strerror})", where="--port", fix="Give another") from exc
    with listener:
        app = make_app(product)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=LAST_ANSWERS, server_header=False
        )
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        with suppress(KeyboardInterrupt):  # uvicorn has ended in order, and raises what had stopped it once more
            uvicorn.Server(settings).run(sockets=[listener])
