"""The commands `gpta-local models …`. Like `cli`: arguments and exit codes, nothing heavy at the top."""

from __future__ import annotations

from pathlib import Path

import click

from gpta_local.errors import ModelError


@click.group()
def models() -> None:
    """Show, add and verify language models for this machine."""


@models.command("list")
def list_() -> None:
    """Show the models that are known to work, and those that were added.

    \b
    Example:
      gpta-local models list
    """
    from gpta_local.system.catalogue import read_catalogue
    from gpta_local.system.library import names, state

    known = read_catalogue()
    rows = [
        (entry.name, kind, state(entry), f"{entry.memory_gb:g} GB", entry.licence, entry.source)
        for entry in known.values()
        for kind in [f"{entry.kind} with adapter" if entry.teacher else entry.kind]
    ]
    rows += [(name, "assistant", "added", "", "", "added by you") for name in names() if name not in known]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@models.command()
@click.argument("model", metavar="NAME|FILE.gguf|FOLDER")
def add(model: str) -> None:
    """Add an assistant, so that configurations can name it.

    NAME is one of `gpta-local models list` whose packages are installed; a GGUF file is of the kind llama or
    qwen2, with a chat template. Both are converted once, to bfloat16. A FOLDER is copied.

    The folder goes to $XDG_DATA_HOME/gpta-local/models, by default ~/.local/share/gpta-local/models. Only you
    can read it, and it is there whole or not at all.

    \b
    Examples:
      gpta-local models add SmolLM2-135M-Instruct
      gpta-local models add own-model.gguf
    """
    from gpta_local.system import library
    from gpta_local.system.catalogue import read_catalogue
    from gpta_local.system.interrupt import Interrupt
    from gpta_local.system.models import checked_folder

    def say(text: str) -> None:
        click.echo(text, err=True)

    known = read_catalogue().get(model)
    with Interrupt():
        if known is not None and known.kind == "assistant":
            folder = library.add_known(known, say)
        elif model.endswith(".gguf"):
            folder = library.add_gguf(Path(model), say)
        elif Path(model).is_dir():
            folder = library.add_folder(checked_folder(model, "models add"), say)
        else:
            raise ModelError(
                "no assistant of the catalogue, no GGUF file and no folder",
                where=f"models add {model}",
                fix="The names are shown by: gpta-local models list",
            )
    click.echo(f"{folder.name}: {folder}\nuse it: assistant: {{backend: local, model: {folder.name}}}")


@models.command()
@click.argument("name", required=False)
def verify(name: str | None) -> None:
    """Compare every file of a model with its SHA256SUMS; without NAME, of all models that were added.

    \b
    Example:
      gpta-local models verify
    """
    from gpta_local.system.library import names, stored

    broken = []
    for each in [name] if name else names():
        try:
            if (folder := stored(each)) is None:
                raise ModelError(f"there is no model {each}", fix=f"Add it: gpta-local models add {each}")
            click.echo(f"{each}: as in SHA256SUMS, {folder}")
        except ModelError as exc:
            broken.append(str(exc))
    if broken:
        raise ModelError("\n".join(broken))
