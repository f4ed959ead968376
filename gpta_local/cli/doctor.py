"""The command `gpta-local doctor`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpta_local.cli.options import PATH, json_option, set_option


@click.command()
@click.argument("config", required=False, type=PATH)
@set_option
@json_option
def doctor(config: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, and whether CONFIG will run on it; change nothing.

    Looks at versions, devices, disk, model folders, the endpoint and what it leaves open, data and file
    modes. Without CONFIG, at the machine only. Exit code 1 if there is an error; warnings do not count.

    \b
    Examples:
      gpta-local doctor
      gpta-local doctor config.yaml --json
    """
    if overrides and config is None:
        raise click.UsageError("--set changes a configuration: give CONFIG too.")
    from gpta_local.doctor.checks import examine
    from gpta_local.doctor.machine import versions

    findings = examine(config, overrides)
    if as_json:
        import json
        from dataclasses import asdict

        report = {"versions": versions(), "checks": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        from gpta_local.cli import console

        console.show_checks(findings)
    if any(finding.grade == "error" for finding in findings):
        sys.exit(1)
