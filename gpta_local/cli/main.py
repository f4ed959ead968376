"""The command line. Knows arguments and exit codes; everything heavy is imported inside a command.

Exit codes: 0 done, 1 failed while running, 2 bad input or configuration, 3 stopped by the user.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from gpta_local import __version__
from gpta_local.cli.assistant import assistant
from gpta_local.cli.audit import audit, purge
from gpta_local.cli.benchmark import benchmark
from gpta_local.cli.bundle import bundle
from gpta_local.cli.doctor import doctor
from gpta_local.errors import AssistantError, GptaError, StorageError
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
        except GptaError as exc:
            click.echo(f"error: {exc}", err=True)
            if ctx.obj:
                click.echo(f"to go on: {ctx.obj}", err=True)
            sys.exit(exc.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo(f"stopped. To go on: {ctx.obj}" if ctx.obj else "stopped.", err=True)
            sys.exit(3)
        except (RuntimeError, MemoryError) as exc:
            if not isinstance(exc, MemoryError) and not any(words in str(exc) for words in OUT_OF_MEMORY):
                raise
            click.echo(
                "error: out of memory. Lower training.batch_size, downstream.max_length or, with an assistant in this "
                "process, search.proposals",
                err=True,
            )
            sys.exit(1)
        except sqlite3.Error as exc:
            click.echo(f"error: the history cannot be written ({exc})", err=True)
            sys.exit(2)
        except OSError as exc:  # a disk that is full or a file that went away while running
            if exc.errno == errno.EPIPE:  # the reader of the output has had enough
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                signal.raise_signal(signal.SIGPIPE)  # as other programs end then
            where = f"{exc.filename}: " if exc.filename else ""
            click.echo(f"error: {where}{exc.strerror or exc}", err=True)
            sys.exit(2)
        finally:
            for refusal, times in GUARD.refused.items():
                click.echo(f"refused: {times} connection{'s' if times > 1 else ''}: {refusal}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpta-local")
def main() -> None:
    """A better small model out of a large one that never sees your data."""


main.add_command(assistant)
main.add_command(doctor)
main.add_command(bundle)
main.add_command(audit)
main.add_command(purge)
main.add_command(benchmark)

PATH = click.Path(path_type=Path)
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the configuration; may be repeated."
)


@main.command()
@click.argument("config", type=PATH)
@overrides
@click.option("--output", type=PATH, help="Run directory. Default: runs/NAME-DATE-TIME.")
@click.option("--resume", is_flag=True, help="Go on with the run that was stopped in the run directory.")
@click.option("--dry-run", is_flag=True, help="Check everything and estimate the time; write nothing.")
@click.option("--quiet", is_flag=True, help="Print warnings and the result only.")
@click.option("--verbose", is_flag=True, help="Print every prefix and all label texts.")
@click.pass_context
def train(
    ctx: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    resume: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Search for a prefix and train the model of CONFIG.

    With --resume, a run that was stopped goes on, and ends as if it had not been; without --output it is the
    newest below runs/ of this configuration. Where there is none, one begins.
    """
    from gpta_local.config import load

    settings = load(config, overrides)
    GUARD.allow(settings.privacy.allow_hosts)
    from gpta_local.cli import console
    from gpta_local.record import folder as run_folder
    from gpta_local.system.interrupt import Interrupt

    stopped = None if output else run_folder.newest_stopped(settings)
    folder = output or (stopped if resume and stopped else run_folder.new(settings))
    terminal = console.TerminalObserver(settings.search.rounds, verbose=verbose, quiet=quiet)
    with terminal as observer, Interrupt() as interrupt, _resume_told(ctx, folder):
        if stopped and not resume:
            observer.note(f"a run of this configuration was stopped; to go on with it: {_resume_command(stopped)}")
        observer.stage("reading data, loading models", 1)
        from gpta_local.record.folder import check_folder

        match run_folder.check(folder, settings, resume=resume):
            case "finished":
                click.echo(f"{folder}: the run is finished")
                return
            case "nothing":
                check_folder(folder)
        from gpta_local.run.loop import Run

        run = Run(settings, observer, interrupt)
        card = run.plan.card
        observer.note(
            f"{settings.card.name}: {card.task}, {len(card.labels)} labels; {card.training_rows} training, "
            f"{card.validation_rows} validation, {card.test_rows} test rows; "
            f"{run.plan.regime} search, {run.plan.steps} training steps"
        )
        with closing(run.assistant):  # whatever happens, no adapter stays in a server
            if dry_run:
                from gpta_local.run.estimate import estimate

                stages = estimate(run)
                for stage, seconds in stages.items():
                    click.echo(f"{stage:<22}{seconds:8.0f} s")
                click.echo(f"{'all together, about':<22}{sum(stages.values()):8.0f} s")
                return
            result = run.run(folder, resume=resume)
    console.show_result(result, str(folder))


def _resume_command(folder: Path) -> str:
    return shlex.join(["gpta-local", "train", str(folder / "config.yaml"), "--output", str(folder), "--resume"])


@contextmanager
def _resume_told(ctx: click.Context, folder: Path) -> Iterator[None]:
    """Let `Commands` say how to go on with a run that was stopped by what can pass."""
    from gpta_local.record import folder as run_folder

    try:
        yield
    except (KeyboardInterrupt, AssistantError, StorageError):
        if run_folder.state_of(folder) == "stopped":
            ctx.find_root().obj = _resume_command(folder)
        raise


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", metavar="INPUT", type=PATH)
@click.option("--output", type=PATH, help="File to write. Default: standard output.")
def predict(run: Path, data: Path, output: Path | None) -> None:
    """Label the rows of INPUT with the model of RUN (a run or an exported folder).

    Writes JSON lines in the order of the rows: the label and the probability of each label.
    """
    from gpta_local.downstream import inference

    product, rows = inference.open_inputs(run, data)
    inference.write_lines(inference.predictions(product, rows), output)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", required=False, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(run: Path, data: Path | None, as_json: bool) -> None:
    """Evaluate the model of RUN on DATA (default: the test rows of the run's configuration)."""
    from gpta_local.downstream import inference

    figures = inference.evaluate(run, data)
    click.echo(json.dumps(figures, indent=2, ensure_ascii=False) if as_json else inference.as_table(figures))


@main.command()
@click.argument("run", type=PATH)
@click.argument("directory", metavar="DIR", type=PATH)
def export(run: Path, directory: Path) -> None:
    """Copy the model of RUN to DIR: stock libraries load it, the prefix is inside."""
    from gpta_local.downstream.product import (
        copy_product,
        open_product,
    )

    product = open_product(run)
    copy_product(product, directory)
    loader = {
        "sentence-transformers": f'SentenceTransformer("{directory}").encode(texts), logits in the order of gpta.json',
        "transformers": f'pipeline("text-classification", "{directory}", truncation=True)(texts)',
    }[product.record["library"]]
    click.echo(f"{directory}: {len(product.labels)} labels, prefix {product.record['prefix']!r}\nload with: {loader}")


@main.command()
@click.argument("run", type=PATH)
@click.option("--best", default=20, show_default=True, help="Prefixes to show.")
def history(run: Path, best: int) -> None:
    """Show the rounds of RUN, the adapters of its assistant, and its prefixes from best to worst."""
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
    for number, step, verdict in record.steps():
        click.echo(
            f"adapter {step.adapter}, after round {number} ({step.method}, {step.dialogues} dialogues): {verdict}"
        )
    for entry in sorted(record.scored(), key=lambda s: s.gain, reverse=True)[:best]:
        click.echo(f"{entry.gain:+.3f} ± {entry.standard_error:.3f} ({entry.rows} rows)  {entry.text}")


@main.command()
@click.argument("data", type=PATH)
def init(data: Path) -> None:
    """Write a commented configuration for the training rows DATA to standard output."""
    from gpta_local.data.starter import starter_config

    click.echo(starter_config(data), nl=False)
