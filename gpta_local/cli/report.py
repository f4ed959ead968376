"""The commands `gpta-local report` and `compare`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gpta_local.cli.options import PATH, json_option


@click.command()
@click.argument("run", type=PATH)
@click.option("--with-rows", is_flag=True, help="Also show rows of the data, in a page of its own: it is private.")
def report(run: Path, with_rows: bool) -> None:
    """Write the report of RUN anew: report.html and report.md in its folder.

    It needs no model and no data. A run writes it by itself when it ends; after a purge this command writes one without
    the assistant's texts.

    --with-rows reads the rows that the run was measured on and writes report-with-rows.html with the mistakes of which
    the model is most sure.

    \b
    Examples:
      gpta-local report runs/NAME
      gpta-local report runs/NAME --with-rows
    """
    from gpta_local.report.run_report import write_report

    click.echo(f"report: {write_report(run, with_rows=with_rows)}")
    if with_rows:
        click.echo("it shows rows of your data: keep it as private as they are", err=True)


@click.command()
@click.argument("runs", metavar="RUN RUN...", type=PATH, nargs=-1, required=True)
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare the models of two or more RUNs on the test rows that they share.

    Shows the accuracy of each on these rows, its difference from that of the first RUN, row by row and with its
    interval; what each took; and the settings in which they differ.

    \b
    Example:
      gpta-local compare runs/FIRST runs/SECOND
    """
    from gpta_local.report.compare import compare_runs

    found = compare_runs(runs)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from gpta_local.cli import console

    console.show_comparison(found)
