"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the configuration; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Print warnings and the result only.")
