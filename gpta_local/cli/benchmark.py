"""The command `gpta-local benchmark`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpta_local.cli.options import PATH, engine_options, quiet_option, ray_tasks


@click.command()
@click.argument("suite", type=PATH)
@click.option("--output", type=PATH, help="Directory of results and report. Default: runs/benchmark-NAME.")
@engine_options("Trials")
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

    \b
    Examples:
      gpta-local benchmark configs/benchmark/quick.yaml --jobs 2
      gpta-local benchmark configs/benchmark/suite.yaml --report-only
    """
    from gpta_local.benchmark import suite as suites

    plan_of = suites.load(suite)
    folder = output or Path("runs") / f"benchmark-{suite.resolve().stem}"
    from gpta_local.benchmark import report, runner
    from gpta_local.benchmark.trials import Results, plan
    from gpta_local.cli.console import TerminalObserver

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
            tasks = ray_tasks(engine, ray_address, jobs, gpus) if left else None
            failures = runner.run(left, results, folder.resolve(), jobs, observer, tasks)
        failed = {str(job): why for job, why in failures.items()}
    for line in report.write(plan_of, results.of(jobs_of), folder):
        click.echo(line)
    for trial, why in failed.items():
        click.echo(f"failed: {trial}: {why}", err=True)
    if failed:
        click.echo(f"error: {len(failed)} trials failed; the same command tries them again", err=True)
        sys.exit(1)
