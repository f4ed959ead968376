"""The histories of finished runs → one adapter for the assistant of the next (`assistant tune`).

Knows run directories. Reads no rows: a history holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gpta_local.assistant.local import load_model
from gpta_local.config import (
    AssistantConfig,
    DialogueGradientConfig,
    LeakScanConfig,
    LocalAssistantConfig,
    ReplayAssistantConfig,
    load,
)
from gpta_local.dialogue_gradient.dialogues import Dialogue, build_dialogues
from gpta_local.dialogue_gradient.plots import plot_dialogue_gradient
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.errors import InputError, OutputError, PrivacyError
from gpta_local.privacy.leak_scan import LeakScan
from gpta_local.record.folder import CONFIG_FILE, example_texts
from gpta_local.record.history import open_with_texts
from gpta_local.schema import DialogueGradientStep
from gpta_local.system.files import owner_only


def dialogues_of(runs: Sequence[Path], config: DialogueGradientConfig, *, shown: int, seed: int) -> list[Dialogue]:
    """What the histories of the runs teach; each run counts alike.

    Raises:
        InputError: a folder is no run, is of a version that kept no card, or teaches nothing.
        PrivacyError: personal data are in a history. Words of rows are looked for while a run goes on:
            here the rows are not known.
    """
    dialogues = []
    leak_scan = LeakScan(LeakScanConfig(), texts=(), label_names=())
    for run in runs:
        history = open_with_texts(run)
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
            [text for text in example_texts(run) if not leak_scan.find_personal(text.text)],
            config,
            shown=shown,
            seed=seed,
        )
        history.close()
        for dialogue in of_run:
            try:
                leak_scan.check_dialogue(dialogue.request, dialogue.reply)
                if dialogue.rival:
                    leak_scan.check(dialogue.rival)
            except PrivacyError as exc:
                raise PrivacyError(exc.what, where=f"{run}: {exc.where}", fix="Leave this run out") from exc
        if not of_run:
            what = f"nothing in its history did better than something else (taught: {', '.join(config.taught)})"
            raise InputError(f"nothing can be learnt from this run: {what}", where=str(run))
        dialogues.append(of_run)
    mean = sum(map(len, dialogues)) / len(dialogues)
    return [replace(d, weight=d.weight * mean / len(of_run)) for of_run in dialogues for d in of_run]


def assistant_of(runs: Sequence[Path]) -> str:
    """The name or folder of the model that proposed in the runs.

    Raises:
        InputError: they do not tell: one replayed the answers of another, or named no weights, or they differ.
    """
    told = {run: _weights(load(run / CONFIG_FILE).assistant) for run in runs}
    if len({*told.values()}) > 1 or None in told.values():
        where = ", ".join(f"{run}: {model or 'unknown'}" for run, model in told.items())
        raise InputError("which model is to be taught, the runs do not tell", where=where, fix="Say it with --model")
    return str(told[runs[0]])


def _weights(assistant: AssistantConfig) -> str | None:
    if isinstance(assistant, LocalAssistantConfig):
        return assistant.model
    return None if isinstance(assistant, ReplayAssistantConfig) else assistant.weights


@owner_only()
def tune(
    base: Path,
    dialogues: Sequence[Dialogue],
    output: Path,
    config: DialogueGradientConfig,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> DialogueGradientStep:
    """Train an adapter for the model in the folder `base`, and plot its losses beside it.

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
    step = train_adapter(model, tokenizer, dialogues, config, output, seed=seed, on_step=on_step)
    plot_dialogue_gradient([], [], [step], output)
    return step
