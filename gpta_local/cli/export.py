"""The command `gpta-local export`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

from pathlib import Path

import click

from gpta_local.cli.options import PATH


@click.command()
@click.argument("run", type=PATH)
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["folder", "onnx"]),
    default="folder",
    show_default=True,
    help="folder: as it is. onnx: a graph for ONNX Runtime.",
)
@click.option("--int8", is_flag=True, help="With --format onnx: 8-bit weights, a quarter of the size.")
def export(run: Path, directory: Path, form: str, int8: bool) -> None:
    """Copy the model of RUN to DIR: stock libraries load it, the prefix is inside.

    With --format onnx DIR gets a graph and a tokenizer that need neither torch nor transformers. The graph is compared
    with the model on 1,000 rows of random words.

    \b
    Examples:
      gpta-local export runs/NAME letters-model
      gpta-local export runs/NAME letters-onnx --format onnx
    """
    from gpta_local.downstream.product import copy_product, loading_code, open_product

    if int8 and form != "onnx":
        raise click.UsageError("--int8 goes with --format onnx")
    product = open_product(run)
    if form == "onnx":
        from gpta_local.downstream.onnx import export_onnx

        found = export_onnx(product, directory, int8=int8)
        click.echo(
            f"the same label on {found.same_labels:,} of {found.rows:,} rows of random words, "
            f"logits differ by {found.difference:.1g} at most"
        )
    else:
        copy_product(product, directory)
    click.echo(f"{directory}: {len(product.labels)} labels, prefix {product.record['prefix']!r}")
    click.echo(loading_code("onnx" if form == "onnx" else product.record["library"], directory))
