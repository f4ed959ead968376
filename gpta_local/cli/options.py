"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpta_local.system.engines import Engine

PATH = click.Path(path_type=Path)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the configuration; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Print warnings and the result only.")


def engine_options(what: str) -> Callable[[Any], Any]:
    """--jobs, --engine, --ray-address and --gpus; `ray_tasks` takes them.

    Args:
        what: is done side by side.
    """
    options = (
        click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help=f"{what} at a time."),
        click.option(
            "--engine",
            type=click.Choice(["processes", "ray"]),
            default="processes",
            show_default=True,
            help="Processes of this machine, or tasks of a Ray cluster (extra ray; docs/scaling.md).",
        ),
        click.option("--ray-address", default="", help="HOST:PORT of the cluster's head, for --engine ray."),
        click.option("--gpus", default=0.0, type=click.FloatRange(0), help="GPUs of each Ray task, such as 0.25."),
    )

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def ray_tasks(engine: str, address: str, jobs: int, gpus: float) -> Engine[Any] | None:
    """The tasks of a cluster; None for processes of this machine."""
    if engine != "ray":
        return None
    from gpta_local.system.engines import RayTasks

    return RayTasks(address, jobs, gpus)
