"""The commands `gpta-local bundle …`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from gpta_local.cli.options import PATH
from gpta_local.errors import GptaError, InputError

sha256_option = click.option("--sha256", metavar="HEX", help="What the SHA-256 of the whole archive must be.")


@click.group()
def bundle() -> None:
    """Carry gpta-local, its requirements and models to a machine without a network."""


@contextmanager
def _our_errors() -> Iterator[None]:
    """The errors of `bundle`, which stands alone, as those of this package."""
    from gpta_local.bundle.install import BundleError

    try:
        yield
    except BundleError as exc:
        raise (InputError if exc.exit_code == 2 else GptaError)(str(exc)) from exc


@bundle.command()
@click.argument("output", metavar="OUT.tar", type=PATH)
@click.option("--platform", default="manylinux_2_28_x86_64", show_default=True, help="manylinux_GLIBC_MACHINE.")
@click.option(
    "--python",
    default="{}.{}".format(*sys.version_info[:2]),
    metavar="X.Y",
    show_default="this one",
    help="Python of the machine.",
)
@click.option("--model", "models", multiple=True, metavar="NAME|FOLDER", help="A folder, or a name of the catalogue.")
@click.option("--config", "configs", multiple=True, type=PATH, help="A configuration; its data is not put in.")
@click.option("--extra", "extras", multiple=True, metavar="NAME", help="An extra of gpta-local, such as demo.")
@click.option("--constraints", type=PATH, help="Exact versions, as pip reads them. Default: what is installed here.")
@click.option("--wheels", type=PATH, help="Take all wheels from this folder. Default: pip downloads them.")
def create(
    output: Path,
    platform: str,
    python: str,
    models: tuple[str, ...],
    configs: tuple[Path, ...],
    extras: tuple[str, ...],
    constraints: Path | None,
    wheels: Path | None,
) -> None:
    """Make one archive for a machine without a network, on a machine that has one.

    It holds the wheels of gpta-local and of all that it needs, the models and configurations named, a bill
    of materials, and an installer that needs nothing but Python. It never holds rows: take the data there
    by the way that you take private data.

    \b
    Example:
      gpta-local bundle create OUT.tar --extra demo --config config.yaml
    """
    from gpta_local.bundle.creation import create, sidecar

    with _our_errors():
        made = create(
            output,
            platform=platform,
            python=python,
            models=models,
            configs=configs,
            extras=extras,
            constraints=constraints,
            wheels=wheels,
            say=lambda text: click.echo(text, err=True),
        )
    if configs:
        click.echo("the data of the configurations is not in the bundle: private rows are never put in", err=True)
    wheel_count = sum(name.startswith("wheels/") for name in made.files)
    click.echo(
        f"{output}: {len(made.files)} files, {wheel_count} of them wheels, {output.stat().st_size / 1e6:.1f} MB\n"
        f"SHA-256: {made.sha256}, also in {sidecar(output).name}. Take this number there by another way than the\n"
        f"archive: it is what the archive can be trusted by. On the other machine:\n"
        f"  sha256sum -c {sidecar(output).name}\n"
        f"  tar -xf {output.name} install.py\n"
        f"  python{python} install.py {output.name} /opt/gpta-local"
    )


@bundle.command()
@click.argument("archive", metavar="BUNDLE.tar", type=PATH)
@sha256_option
def verify(archive: Path, sha256: str | None) -> None:
    """Check every byte of a bundle; exit code 1 if anything differs.

    Without --sha256 and without a file BUNDLE.tar.sha256 beside it, the bundle is checked against its own
    manifest only. That finds damage, but not a person who wrote a new manifest as well.

    \b
    Example:
      gpta-local bundle verify BUNDLE.tar
    """
    from gpta_local.bundle.install import describe, verify

    with _our_errors():
        click.echo(describe(verify(archive, sha256)))


@bundle.command()
@click.argument("archive", metavar="BUNDLE.tar", type=PATH)
@click.argument("target", type=PATH)
@sha256_option
def install(archive: Path, target: Path, sha256: str | None) -> None:
    """Verify a bundle, and install it into the new folder TARGET; needs no network.

    A machine without gpta-local does the same by the bundle's own installer:

        tar -xf BUNDLE.tar install.py && python3 install.py BUNDLE.tar TARGET

    \b
    Example:
      gpta-local bundle install BUNDLE.tar /opt/gpta-local
    """
    from gpta_local.bundle.install import install

    with _our_errors():
        install(archive, target, sha256, say=click.echo)
