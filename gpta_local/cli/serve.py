"""The command `gpta-local serve`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

from pathlib import Path

import click

from gpta_local.cli.options import PATH


@click.command()
@click.argument("run", type=PATH)
@click.option("--port", type=click.IntRange(0, 65535), default=8008, show_default=True, help="0 takes a free one.")
def serve(run: Path, port: int) -> None:
    """Answer HTTP requests with the model of RUN, on this machine alone.

    POST /predict labels texts, GET /health says whether the model is ready, /docs is a page that documents both. Ctrl-C
    stops the server.

    \b
    Example:
      gpta-local serve runs/NAME
      curl 127.0.0.1:8008/predict -H 'content-type: application/json' \\
        -d '{"texts": ["When may I come?"]}'
    """
    from gpta_local.downstream.product import open_product
    from gpta_local.serving.server import serve

    product = open_product(run)

    def ready(url: str) -> None:
        click.echo(
            f"{product.folder}: {len(product.labels)} labels, at {url}; {url}/docs explains. Ctrl-C stops", err=True
        )

    serve(product, port, ready)
    click.echo("stopped", err=True)
