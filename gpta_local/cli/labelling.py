"""The commands `gpta-local suggest` and `check`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpta_local.cli.options import PATH, json_option, set_option

if TYPE_CHECKING:
    from gpta_local.labelling.doubts import Doubt


@click.command()
@click.argument("run", type=PATH)
@click.argument("inputs", metavar="UNLABELLED...", nargs=-1, required=True)
@click.option("-n", "count", type=click.IntRange(1), default=50, show_default=True, help="Rows to choose.")
@click.option("--output", type=PATH, help="File to write: .jsonl, .csv or .tsv. Default: standard output.")
@set_option
def suggest(run: Path, inputs: tuple[str, ...], count: int, output: Path | None, overrides: tuple[str, ...]) -> None:
    """Choose the rows of UNLABELLED that are worth labelling next for the model of RUN.

    They are rows that the model is unsure of, and unlike each other; the least certain comes first. Each is written
    with all its columns, and beside them input_row (its number), predicted_label and its probability: CSV for CSV,
    otherwise JSON lines, or what the ending of --output says.

    \b
    Example:
      gpta-local suggest runs/NAME unlabelled.csv -n 50 --output to-label.csv
    """
    from gpta_local.labelling.suggest import suggest_from

    suggest_from(run, inputs, output, count, overrides)


@click.command()
@click.argument("run", type=PATH)
@click.option("-n", "count", type=click.IntRange(1), default=50, show_default=True, help="Rows to show at most.")
@json_option
def check(run: Path, count: int, as_json: bool) -> None:
    """List the training rows of RUN whose label is doubtful, the most doubtful first.

    Each row is judged by a model that was fitted without it. No row's text is printed: look it up by its place.

    \b
    Examples:
      gpta-local check runs/NAME
      gpta-local check runs/NAME -n 20 --json
    """
    from gpta_local.labelling.doubts import check

    found = check(run)
    shown = found.doubts[:count]
    if as_json:
        for doubt in shown:
            click.echo(json.dumps(asdict(doubt), ensure_ascii=False))
        return
    for line in _table(shown):
        click.echo(line)
    more = f"; the first {len(shown)} are shown" if len(shown) < len(found.doubts) else ""
    click.echo(f"{found.rows} rows checked, {len(found.doubts)} labels are doubtful{more}")


def _table(doubts: list[Doubt]) -> Iterator[str]:
    if not doubts:
        return
    place, label = (max(len(getattr(doubt, name)) for doubt in doubts) for name in ("where", "label"))
    for doubt in doubts:
        yield (
            f"{doubt.where:<{place}}  {doubt.label:<{label}} {doubt.probability:.2f}"
            f"   rather {doubt.suggested} {doubt.suggested_probability:.2f}"
        )
