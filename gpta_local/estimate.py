"""How long a run would take, from a few measured steps. Writes nothing; asks for prefixes once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpta_local.assistant.local import LocalAssistant
from gpta_local.dialogue_gradient import number_of_steps, train_adapter
from gpta_local.dialogues import build_dialogues
from gpta_local.prefix import FIRST_HEAT, templated
from gpta_local.prompts import prefix_request
from gpta_local.schema import ScoredPrefix
from gpta_local.trainer import Run, open_training

MEASURED_STEPS = 3


def estimate(run: Run) -> dict[str, float]:
    """Seconds for each stage of the run. Rough: texts differ in length, machines in mood."""
    search, splits = run.config.search, run.splits
    templates = ["Text:"] * run.most_templates
    model = run.task.build(templated(run.task.own_label_texts(), templates))
    rows = min(len(splits.train), search.scoring_rows)
    heat = list(range(rows if rows <= 2 * FIRST_HEAT else FIRST_HEAT))
    scorer = run.task.scorer(model, splits.train)
    scorer.losses("", heat)  # the first call also warms up
    one_prefix = _seconds(lambda: scorer.losses("Text:", heat))
    heats = 1 if rows <= 2 * FIRST_HEAT else 2.5  # later heats: half the prefixes, twice the rows
    sample = (splits.test or splits.train)[:128]
    one_row = _seconds(lambda: run.task.evaluate(model, sample, "Text:")) / len(sample)
    training = open_training(run.config, splits, model)
    training.run("Text:", 1)
    one_step = _seconds(lambda: training.run("Text:", MEASURED_STEPS)) / MEASURED_STEPS
    request = prefix_request(run.card, [])
    one_request = _seconds(lambda: run.assistant.complete(request, min(8, search.proposals), run.sampling(1, request)))
    dialogue_gradients = _dialogue_gradients(run)
    plain = run.trains_plainly
    # online besides: plain fine-tuning, the model of the search with its prefix, and without
    contestants = 1 + run.config.finish.finalists + (len(templates) > 0) + run.online * (plain + 2)
    return {
        "asking the assistant": one_request * (1 + search.rounds * max(1, search.proposals / 8)),
        **({"teaching the assistant": dialogue_gradients} if dialogue_gradients else {}),
        "scoring prefixes": one_prefix * heats * search.rounds * (search.proposals + 1),
        "training": one_step * run.steps * number_of_trainings(run),
        "evaluating": one_row * (len(splits.validation) * contestants + len(splits.test) * (2 + plain)),
    }


def number_of_trainings(run: Run) -> int:
    """Trainings of a run over all its steps, with as many templates and finalists as it may have; that of an online
    search is one."""
    finalists = 0 if run.online else run.config.finish.finalists if run.splits.validation else 1
    with_templates = run.most_templates > 0
    control = run.measured or not with_templates
    return control + with_templates + finalists + run.online + run.trains_plainly


def _dialogue_gradients(run: Run) -> float:
    """Seconds for all of them, from a short one; 0 where another process would train (that takes as long
    as loading the weights there, and longer)."""
    config = run.config.dialogue_gradient
    if config is None or not isinstance(run.assistant, LocalAssistant) or config.method == "grpo":
        return 0.0
    history = [ScoredPrefix(f"Text number {i}:", i / 100, 0.01, 0.5, 16) for i in range(run.config.search.proposals)]
    shown = run.config.search.history_shown
    dialogues = build_dialogues(
        run.card, [history], [], winners=config.winners, per_winner=config.dialogues_per_winner, shown=shown, seed=0
    )
    if not dialogues:
        return 0.0
    short = config.model_copy(update={"steps": MEASURED_STEPS})
    model, tokenizer = run.assistant.base()
    with tempfile.TemporaryDirectory() as scratch:
        train_adapter(model, tokenizer, dialogues, short, Path(scratch, "first"), seed=0)  # also imports
        seconds = _seconds(lambda: train_adapter(model, tokenizer, dialogues, short, Path(scratch, "second"), seed=0))
    rounds = range(config.every, run.config.search.rounds, config.every)
    steps = sum(number_of_steps(config, len(dialogues) * number) for number in rounds)  # the history grows
    return seconds / MEASURED_STEPS * steps


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
