"""The command line. Knows arguments and exit codes; everything heavy is imported inside a command.

Exit codes: 0 done, 1 failed while running, 2 bad input or configuration, 3 stopped by the user.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import click

from gpta_local import __version__
from gpta_local.cli.assistant import assistant
from gpta_local.cli.audit import audit, purge
from gpta_local.cli.benchmark import benchmark
from gpta_local.cli.bundle import bundle
from gpta_local.cli.doctor import doctor
from gpta_local.cli.export import export
from gpta_local.cli.labelling import check, suggest
from gpta_local.cli.models import models
from gpta_local.cli.options import PATH, json_option, set_option
from gpta_local.cli.report import compare, report
from gpta_local.cli.serve import serve
from gpta_local.cli.train import train
from gpta_local.errors import GptaError
from gpta_local.system.network import GUARD

THREADS = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
"""Set before any library is imported: idle threads do not keep the cores of a shared server spinning."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch says of a GPU's memory, and of the machine's."""


class Commands(click.Group):
    """Turns our errors into one clear message and the documented exit code, and tells what was refused."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program. Tests that go in below, at `main`, stay without the guard: it is for the life of a process."""
        GUARD.install()
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        os.environ.update(THREADS)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that knows no "±" gets a "?"
        try:
            return super().invoke(ctx)
        except (GptaError, KeyboardInterrupt, click.Abort, RuntimeError, MemoryError, sqlite3.Error, OSError) as exc:
            message, code = _ending(exc, ctx.obj)
            click.echo(message, err=True)
            sys.exit(code)
        finally:
            for refusal, times in GUARD.refused.items():
                click.echo(f"refused: {times} connection{'s' if times > 1 else ''}: {refusal}", err=True)


def _ending(exc: BaseException, resume_command: str | None) -> tuple[str, int]:
    """What is said of an exception, and the exit code. One that is a fault of the program is raised again."""
    match exc:
        case GptaError():
            how_to_go_on = f"\nto go on: {resume_command}" if resume_command else ""
            return f"error: {exc}{how_to_go_on}", exc.exit_code
        case KeyboardInterrupt() | click.Abort():
            return f"stopped. To go on: {resume_command}" if resume_command else "stopped.", 3
        case sqlite3.Error():
            return f"error: the history cannot be written ({exc})", 2
        case OSError():  # a disk that is full or a file that went away while running
            if exc.errno == errno.EPIPE:  # the reader of the output has had enough
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.raise_signal(signal.SIGPIPE)  # as other programs end then
            where = f"{exc.filename}: " if exc.filename else ""
            return f"error: {where}{exc.strerror or exc}", 2
        case _ if isinstance(exc, MemoryError) or any(words in str(exc) for words in OUT_OF_MEMORY):
            return (
                "error: out of memory. Lower training.batch_size, downstream.max_length or, with an assistant in this "
                "process, search.proposals"
            ), 1
    raise exc


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpta-local")
def main() -> None:
    """A better small text classifier out of a language model that never sees your data.

    \b
    From a file of labelled rows to labels for others:
      gpta-local init letters.csv > config.yaml   # then write what labels mean
      gpta-local doctor config.yaml
      gpta-local train config.yaml
      gpta-local evaluate runs/NAME other.csv
      gpta-local predict runs/NAME new.csv --output labelled.csv
    """


main.add_command(train)
main.add_command(assistant)
main.add_command(doctor)
main.add_command(bundle)
main.add_command(models)
main.add_command(audit)
main.add_command(purge)
main.add_command(benchmark)
main.add_command(export)
main.add_command(suggest)
main.add_command(check)
main.add_command(serve)
main.add_command(report)
main.add_command(compare)


@main.command()
@click.argument("run", type=PATH)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--output", type=PATH, help="File to write: .jsonl, .csv or .tsv. Default: standard output.")
@click.option("--probabilities", is_flag=True, help="Write the probability of every label.")
@click.option("--top-k", "top", type=click.IntRange(1), metavar="K", help="Write the K most probable labels.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), metavar="P", help="Give no label that is less probable than P."
)
@click.option("--abstain", default="unsure", show_default=True, help="What is written then.")
@click.option("--resume", is_flag=True, help="Go on with the output of this command that was stopped.")
@set_option
def predict(
    run: Path, inputs: tuple[str, ...], output: Path | None, resume: bool, overrides: tuple[str, ...], **wanted: Any
) -> None:
    """Label the rows of INPUT with the model of RUN (a run or an exported folder).

    INPUT is a file, a folder, a pattern such as 'letters/*.csv', or - for standard input: JSON lines, or a table with
    its header.

    Writes every row with all its columns, and beside them predicted_label and its probability: CSV for CSV, otherwise
    JSON lines, or what the ending of --output says. A row without text gets an empty label. FILE is there only when it
    is whole; until then its rows are in FILE.partial, and --resume goes on with them.

    \b
    Examples:
      gpta-local predict runs/NAME letters.csv --output labelled.csv
      gpta-local predict runs/NAME letters.csv --output labelled.csv --resume
      gpta-local predict runs/NAME letters.csv --threshold 0.7 --top-k 3
      cat letters.jsonl | gpta-local predict runs/NAME - > labelled.jsonl
      zcat letters.csv.gz | gpta-local predict runs/NAME - > labelled.csv
      gpta-local predict runs/NAME letters.csv --set data.text=body
    """
    from gpta_local.downstream import inference
    from gpta_local.downstream.predicting import Wanted
    from gpta_local.system.interrupt import Interrupt

    with Interrupt():
        inference.predict(run, inputs, output, Wanted(**wanted), overrides, resume=resume)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", required=False, type=PATH)
@json_option
@set_option
def evaluate(run: Path, data: Path | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Evaluate the model of RUN on DATA, a file with labels (default: the test rows of the run's configuration).

    \b
    Examples:
      gpta-local evaluate runs/NAME
      gpta-local evaluate runs/NAME other.csv --json --set data.label=office
    """
    from gpta_local.downstream import inference

    figures = inference.evaluate(run, data, overrides)
    click.echo(json.dumps(figures, indent=2, ensure_ascii=False) if as_json else inference.as_table(figures))


@main.command()
@click.argument("run", type=PATH)
@click.option("--best", default=20, show_default=True, help="Prefixes to show.")
def history(run: Path, best: int) -> None:
    """Show the rounds of RUN, the adapters of its assistant, and its prefixes from best to worst.

    \b
    Example:
      gpta-local history runs/NAME --best 5
    """
    from gpta_local.record.history import open_existing

    record = open_existing(run)
    if time := record.purged():
        click.echo(f"purged {time}: figures are left, the texts of prefixes are gone")
    figures = record.proposal_figures()
    for number, chosen, scored, seconds in record.rounds():
        click.echo(f"round {number}: {scored} prefixes scored in {seconds:.1f} s, chosen: {chosen or '(no prefix)'}")
        for f in (f for of, f in figures if of == number and record.steps()):
            who = f"adapter {f.adapter}" if f.adapter else "the base model"
            click.echo(f"  {who}: {f.hits} hits among {f.fresh} new of {f.asked} proposals")
    rounds = {number for number, *_ in record.rounds()}
    for number, step, verdict in record.steps():
        what = f"after round {number}" if number in rounds else "for example texts"
        click.echo(f"adapter {step.adapter}, {what} ({step.method}, {step.dialogues} dialogues): {verdict}")
    for _, f in record.askings():
        who = f"adapter {f.adapter}" if f.adapter else "the base model"
        click.echo(f"  {who}: {f.hits} example texts with their label among {f.fresh} usable of {f.asked} asked for")
    for entry in sorted(record.scored(), key=lambda s: s.gain, reverse=True)[:best]:
        click.echo(f"{entry.gain:+.3f} ± {entry.standard_error:.3f} ({entry.rows} rows)  {entry.text}")


@main.command()
def schema() -> None:
    """Write the JSON Schema of configurations to standard output, for editors.

    \b
    Example:
      gpta-local schema > gpta-local.schema.json
    """
    from gpta_local.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@main.command()
@click.argument("data", type=PATH)
@click.option("--split", is_flag=True, help="First set a quarter of the rows aside for a test, into files beside DATA.")
def init(data: Path, split: bool) -> None:
    """Write a commented configuration for the training rows DATA to standard output.

    \b
    Examples:
      gpta-local init letters.csv > config.yaml
      gpta-local init letters.csv --split > config.yaml
    """
    from gpta_local.data.starter import divided, starter_config

    if not split:
        click.echo(starter_config(data), nl=False)
        return
    files = divided(data)
    click.echo(f"rows to train on: {files['train']}; set aside for the test: {files['test']}", err=True)
    click.echo(starter_config(files["train"], files["test"]), nl=False)
