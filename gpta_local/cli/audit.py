"""The commands `gpta-local audit …` and `gpta-local purge`. Like `cli`: arguments and exit codes,
nothing heavy at the top."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from gpta_local.cli.options import PATH


@click.group()
def audit() -> None:
    """Check and read the audit log of a run."""


def _hash(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        return ""
    head = value.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", head):
        raise click.BadParameter("a head has 64 digits from 0 to f")
    return head


@audit.command()
@click.argument("run", type=PATH)
@click.option("--head", callback=_hash, help="The head noted down when the run (or a purge) ended.")
def verify(run: Path, head: str) -> None:
    """Check that the audit log of RUN was not changed, and that texts and files are those it tells of.

    Exit code 0 if all is in order, 1 if anything is not. That the end was cut off together with the
    summary, or that all was written anew, can be seen only with --head.

    \b
    Examples:
      gpta-local audit verify runs/NAME
      gpta-local audit verify runs/NAME --head HASH
    """
    from gpta_local.record.verification import verify as check
    from gpta_local.record.view import printable

    verdict = check(run, head)
    for problem in verdict.problems:
        click.echo(printable(f"wrong: {problem}"))
    for note in verdict.notes:
        click.echo(printable(f"note: {note}"))
    times = f", {verdict.entries[0].time} to {verdict.entries[-1].time}" if verdict.entries else ""
    click.echo(printable(f"{len(verdict.entries)} {'entry' if len(verdict.entries) == 1 else 'entries'}{times}"))
    click.echo(f"head: {verdict.head}")
    if verdict.problems:
        count = f"{len(verdict.problems)} problem{'s' if len(verdict.problems) > 1 else ''}"
        click.echo(f"{count}: the log, or what it tells of, is not in order")
        sys.exit(1)
    click.echo("in order: the chain is whole, and texts and files are those that it tells of")


@audit.command()
@click.argument("run", type=PATH)
@click.option("--full", is_flag=True, help="Show the texts of requests and completions, from the history.")
def show(run: Path, full: bool) -> None:
    """Print the audit log of RUN, a line for each entry.

    \b
    Example:
      gpta-local audit show runs/NAME --full
    """
    from gpta_local.record import view

    for line in view.lines(run, full=full):
        click.echo(line)


@click.command()
@click.argument("run", type=PATH)
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(run: Path, yes: bool) -> None:
    """Delete the texts of requests and completions from RUN; the model and the figures stay.

    What they say stays nowhere in the run but in the prefix that the model ships. Copies elsewhere
    (exports, backups, the log of a server) are not reached.

    \b
    Example:
      gpta-local purge runs/NAME
    """
    from gpta_local.record import purge as purging
    from gpta_local.record.history import open_existing
    from gpta_local.record.view import printable

    open_existing(run).close()
    question = f"Delete all requests, completions, label texts and unused prefixes of {run}? They cannot be recovered."
    if not yes and not click.confirm(question):
        click.echo("nothing was deleted")
        sys.exit(3)
    done = purging.purge(run)
    if done.before:
        click.echo(printable(f"already purged {done.before}; nothing left to delete"))
    else:
        click.echo(f"purged: the texts of {done.requests} requests and {done.completions} completions")
    for what, names in (("deleted", done.deleted), ("rewritten without texts", done.rewritten)):
        for name in names:
            click.echo(printable(f"{what}: {name}"))
    for line in done.left:
        click.echo(printable(f"left: {line}"))
    if done.head:
        click.echo(f"audit head: {done.head}")
    else:
        click.echo("warning: the run has no audit log, so nothing proves the purge", err=True)
