"""The histories of finished runs → one adapter for the assistant of the next (`assistant tune`).

Knows run directories. Reads no rows: a history holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gpta_local.assistant.local import load_model
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient import train_adapter
from gpta_local.dialogues import Dialogue, build_dialogues
from gpta_local.errors import InputError, OutputError
from gpta_local.history import open_with_texts
from gpta_local.schema import DialogueGradientStep


def dialogues_of(runs: Sequence[Path], config: DialogueGradientConfig, *, shown: int, seed: int) -> list[Dialogue]:
    """What the histories of the runs teach; each run counts alike.

    Raises:
        InputError: a folder is no run, is of a version that kept no card, or teaches nothing.
    """
    dialogues = []
    for run in runs:
        history = open_with_texts(run / "history.sqlite")
        about = history.run()
        if about is None:
            raise InputError(
                "the history does not say which data it is about: it was made by an earlier version",
                where=str(run),
                fix="Run it again with this version",
            )
        card, regime = about
        of_run = build_dialogues(
            card,
            history.comparable_groups(regime),
            history.label_text_scores(),
            winners=config.winners,
            per_winner=config.dialogues_per_winner,
            shown=shown,
            seed=seed,
        )
        history.close()
        if not of_run:
            raise InputError("no prefix gained more than another: nothing can be learnt from this run", where=str(run))
        dialogues.append(of_run)
    mean = sum(map(len, dialogues)) / len(dialogues)
    return [replace(d, weight=d.weight * mean / len(of_run)) for of_run in dialogues for d in of_run]


def tune(
    base: Path,
    dialogues: Sequence[Dialogue],
    output: Path,
    config: DialogueGradientConfig,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> DialogueGradientStep:
    """Train an adapter for the model in the folder `base`.

    Raises:
        OutputError: `output` exists or cannot be made.
    """
    if output.exists():
        raise OutputError("exists already", where=str(output), fix="Give a folder that does not exist")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"cannot be made ({exc.strerror})", where=str(output)) from exc
    model, tokenizer = load_model(base, config.device, "dialogue_gradient")
    return train_adapter(model, tokenizer, dialogues, config, output, seed=seed, on_step=on_step)
