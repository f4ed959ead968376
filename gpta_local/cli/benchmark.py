"""The command `gpta-local benchmark`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpta_local.cli.options import PATH, quiet_option


@click.command()
@click.argument("suite", type=PATH)
@click.option("--output", type=PATH, help="Directory of results and report. Default: runs/benchmark-NAME.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Trials at a time.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Processes of this machine, or tasks of a Ray cluster (extra ray; docs/scaling.md).",
)
@click.option("--ray-address", default="", help="HOST:PORT of the cluster's head, for --engine ray.")
@click.option("--gpus", default=0.0, type=click.FloatRange(0), help="GPUs of each Ray task, such as 0.25.")
@click.option("--report-only", is_flag=True, help="Write the report of what is there; measure nothing.")
@click.option("--redo-changed", is_flag=True, help="Measure again what the suite has other settings for now.")
@quiet_option
def benchmark(
    suite: Path,
    output: Path | None,
    jobs: int,
    engine: str,
    ray_address: str,
    gpus: float,
    report_only: bool,
    redo_changed: bool,
    quiet: bool,
) -> None:
    """Compare the arms of SUITE on the same rows and seeds, and write a report.

    Each trial is one thread. What was finished is kept: the same command goes on where it was stopped, and tries
    again what failed.
    """
    from gpta_local.benchmark import suite as suites

    plan_of = suites.load(suite)
    folder = output or Path("runs") / f"benchmark-{suite.resolve().stem}"
    from gpta_local.benchmark import report, runner
    from gpta_local.benchmark.engines import RayTasks
    from gpta_local.benchmark.trials import Results, plan
    from gpta_local.cli.console import TerminalObserver
    from gpta_local.system.network import GUARD, normal_host

    failed: dict[str, str] = {}
    runner.make_folder(folder, must_exist=report_only)
    results = Results(folder / runner.RESULTS)
    jobs_of = plan(plan_of)
    if report_only:
        runner.refuse_changed(jobs_of, results)
    else:
        left = runner.left_to_do(jobs_of, results, redo_changed=redo_changed)
        with results.appending(), TerminalObserver(0, quiet=quiet) as observer:
            observer.note(f"{len(jobs_of)} trainings and runs; {len(jobs_of) - len(left)} are there")
            if engine == "ray":
                GUARD.allow(filter(None, [normal_host(ray_address.rpartition(":")[0])]))
            tasks = RayTasks(ray_address, jobs, gpus) if engine == "ray" and left else None
            failures = runner.run(left, results, folder.resolve(), jobs, observer, tasks)
        failed = {str(job): why for job, why in failures.items()}
    for line in report.write(plan_of, results.of(jobs_of), folder):
        click.echo(line)
    for trial, why in failed.items():
        click.echo(f"failed: {trial}: {why}", err=True)
    if failed:
        click.echo(f"error: {len(failed)} trials failed; the same command tries them again", err=True)
        sys.exit(1)
