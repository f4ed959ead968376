"""The command `gpta-local train`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpta_local.cli.options import PATH, engine_options, quiet_option, ray_tasks, set_option
from gpta_local.errors import AssistantError, StorageError
from gpta_local.system.network import GUARD

if TYPE_CHECKING:
    from gpta_local.config import Config
    from gpta_local.downstream.team import Team
    from gpta_local.run.loop import Run

MOST_SEEDS = 1000
OF_A_LAUNCH = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables that a launcher sets."""


@click.command()
@click.argument("config", type=PATH)
@set_option
@click.option("--output", type=PATH, help="Run directory. Default: runs/NAME-DATE-TIME.")
@click.option(
    "--seeds",
    callback=lambda ctx, param, value: _seeds(value),
    metavar="N|A,B,…",
    help="A run for each of N seeds, from the configuration's on, or for those named; in runs/NAME-seeds.",
)
@engine_options("Runs of --seeds")
@click.option("--resume", is_flag=True, help="Go on with the run that was stopped in the run directory.")
@click.option("--dry-run", is_flag=True, help="Check everything and estimate the time; write nothing.")
@quiet_option
@click.option("--verbose", is_flag=True, help="Print every prefix and all label texts.")
@click.pass_context
def train(
    ctx: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    seeds: int | list[int] | None,
    jobs: int,
    engine: str,
    ray_address: str,
    gpus: float,
    resume: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train the model of CONFIG, with what the assistant writes where that helps.

    With --resume, a run that was stopped goes on, and ends as if it had not been; without --output it is the
    newest below runs/ of this configuration. Where there is none, one begins. Exit code 1 with a finished run: the
    assistant replied, and no reply could be used.

    With --seeds, each run has a folder of its own, and their mean is shown with its interval. The same command goes on
    where it was stopped, and makes what is missing.

    \b
    Examples:
      gpta-local train config.yaml
      gpta-local train config.yaml --dry-run
      gpta-local train config.yaml --set data.shots=8 --output runs/eight
      gpta-local train config.yaml --resume
      gpta-local train config.yaml --seeds 5 --jobs 2
    """
    from gpta_local.config import load

    if seeds is not None and (dry_run or _launched()):
        alone = "--dry-run estimates one run" if dry_run else "a launcher starts the processes of one run"
        raise click.UsageError(f"{alone}: leave --seeds out, or the other")
    with _team() as team:
        if team and not team.main:
            _take_part(partial(load, config, overrides), team)
            return
        settings = load(config, overrides)
        if seeds is not None:
            wanted = list(range(settings.seed, settings.seed + seeds)) if isinstance(seeds, int) else seeds
            _train_seeds(settings, wanted, output, (engine, ray_address, jobs, gpus), quiet=quiet)
        else:
            _train(ctx, settings, output, team, resume=resume, dry_run=dry_run, quiet=quiet, verbose=verbose)
    if team:
        ctx.find_root().call_on_close(_end)  # after all that is said at the end of a command


def _train(
    ctx: click.Context,
    settings: Config,
    output: Path | None,
    team: Team | None,
    *,
    resume: bool,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    GUARD.allow(settings.privacy.allow_hosts)
    from gpta_local.cli import console
    from gpta_local.record import folder as run_folder
    from gpta_local.report.summary import nothing_usable
    from gpta_local.system.interrupt import Interrupt

    stopped = None if output else run_folder.newest_stopped(settings)
    folder = output or (stopped if resume and stopped else run_folder.new(settings))
    terminal = console.TerminalObserver(settings.search.rounds, verbose=verbose, quiet=quiet)
    with terminal as observer, Interrupt() as interrupt, _resume_told(ctx, folder):
        if stopped and not resume:
            observer.note(f"a run of this configuration was stopped; to go on with it: {_resume_command(stopped)}")
        observer.stage("reading data, loading models", 1)
        match run_folder.check(folder, settings, resume=resume):
            case "finished":
                click.echo(f"{folder}: the run is finished")
                return
            case "nothing":
                run_folder.check_folder(folder)
        from gpta_local.run.loop import Run

        run = Run(settings, observer, interrupt, team=team)
        observer.note(_in_words(run))
        with closing(run.assistant):  # whatever happens, no adapter stays in a server
            if dry_run:
                _show_estimate(run)
                return
            result = run.run(folder, resume=resume)
    console.show_result(result, str(folder))
    if nothing_usable(result):
        sys.exit(1)


def _launched() -> bool:
    """Whether this is one of several processes that `accelerate launch` or `torchrun` has started."""
    return os.environ.keys() >= OF_A_LAUNCH and os.environ["WORLD_SIZE"] != "1"


def _team() -> AbstractContextManager[Team | None]:
    if not _launched():
        return nullcontext()
    from gpta_local.downstream.team import Team

    return Team()


def _take_part(settings: Callable[[], Config], team: Team) -> None:
    """Be one of the other processes of a launch. The main one stops where it can be gone on from; we end with it."""
    from gpta_local.run.loop import take_part
    from gpta_local.system.interrupt import SIGNALS

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    take_part(settings, team)
    _end()


def _end() -> None:
    """Of a process of a launch: nothing is left to do, and threads of torch can abort one that ends as usual."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _seeds(value: str | None) -> int | list[int] | None:
    """How many, or which."""
    if value is None:
        return None
    numbers = [int(part) if part.strip().isdecimal() else -1 for part in value.split(",")]
    if "," not in value and 1 <= numbers[0] <= MOST_SEEDS:
        return numbers[0]
    if "," in value and all(0 <= n < 2**31 for n in numbers) and len({*numbers}) == len(numbers):
        return numbers
    raise click.BadParameter(
        f"{value!r} is neither a number from 1 to {MOST_SEEDS} nor different seeds, such as 3,7,11"
    )


def _train_seeds(
    config: Config, wanted: list[int], output: Path | None, place: tuple[str, str, int, float], *, quiet: bool
) -> None:
    """
    Args:
        place: arguments of `ray_tasks`.
    """
    from gpta_local.cli import console
    from gpta_local.errors import InputError
    from gpta_local.record import folder as run_folder
    from gpta_local.run.seeds import LOG, Seeds
    from gpta_local.system.engines import Processes

    seeds = Seeds(config, wanted, output or run_folder.of_seeds(config))
    failed: dict[int, str] = {}
    if seeds.left:
        with console.TerminalObserver(0, quiet=quiet) as observer:
            observer.note(f"{len(wanted)} runs in {seeds.folder}; {len(wanted) - len(seeds.left)} are there")
            jobs = place[2]
            seeds.make_folder()
            wished = os.environ.get("OMP_NUM_THREADS", "")
            threads = int(wished) if wished.isdecimal() else max(1, len(os.sched_getaffinity(0)) // jobs)
            failed = seeds.run(ray_tasks(*place) or Processes(jobs, seeds.folder / LOG, threads), observer)
    if len(failed) == len(wanted) and len({*failed.values()}) == 1:
        raise InputError(failed[wanted[0]])
    found = seeds.sum_up()
    console.show_seeds(found)
    for seed, why in failed.items():
        click.echo(f"failed: seed {seed}: {why}", err=True)
    if failed:
        click.echo(f"error: {len(failed)} runs failed; the same command tries them again", err=True)
    if failed or all(run["nothing_usable"] for run in found["runs"]):
        sys.exit(1)


def _in_words(run: Run) -> str:
    plan, card, splits = run.plan, run.plan.card, run.plan.splits
    return (
        f"{card.name}: {card.task}, {len(card.labels)} labels; {len(splits.train)} training, "
        f"{len(splits.validation)} validation, {len(splits.test)} test rows; "
        f"{plan.regime if plan.searches else 'no'} search, {plan.steps} training steps"
    )


def _show_estimate(run: Run) -> None:
    from gpta_local.run.estimate import estimate

    stages = estimate(run)
    for stage, seconds in stages.items():
        click.echo(f"{stage:<22}{seconds:8.0f} s")
    click.echo(f"{'all together, about':<22}{sum(stages.values()):8.0f} s")


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
