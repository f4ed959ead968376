"""How long a run would take, from a few measured steps. Writes nothing; asks one completion."""

from __future__ import annotations

import time
from collections.abc import Callable

from gpta_local.prefix import FIRST_HEAT
from gpta_local.prompts import prefix_request
from gpta_local.trainer import Run
from gpta_local.training import Training

MEASURED_STEPS = 3


def estimate(run: Run) -> dict[str, float]:
    """Seconds for each stage of the run. Rough: texts differ in length, machines in mood."""
    search, splits = run.config.search, run.splits
    model = run.task.build([{name: name for name in run.task.label_names}])
    rows = min(len(splits.train), search.scoring_rows)
    heat = list(range(rows if rows <= 2 * FIRST_HEAT else FIRST_HEAT))
    scorer = run.task.scorer(model, splits.train)
    scorer.losses("", heat)  # the first call also warms up
    one_prefix = _seconds(lambda: scorer.losses("Text:", heat))
    heats = 1 if rows <= 2 * FIRST_HEAT else 2.5  # later heats: half the prefixes, twice the rows
    sample = (splits.test or splits.train)[:128]
    one_row = _seconds(lambda: run.task.evaluate(model, sample, "Text:")) / len(sample)
    training = Training(model, splits.train, run.config.training, steps=run.steps, seed=0)
    training.run("Text:", 1)
    one_step = _seconds(lambda: training.run("Text:", MEASURED_STEPS)) / MEASURED_STEPS
    request = prefix_request(run.card, [])
    one_request = _seconds(lambda: run.assistant.complete(request, min(8, search.proposals), run.sampling(1, request)))
    finalists = 0 if run.online else run.config.finish.finalists if splits.validation else 1
    trainings = 1 + finalists + run.online + run.config.finish.plain_control
    contestants = 1 + run.config.finish.finalists
    return {
        "asking the assistant": one_request * (1 + search.rounds * max(1, search.proposals / 8)),
        "scoring prefixes": one_prefix * heats * search.rounds * (search.proposals + 1),
        "training": one_step * run.steps * trainings,
        "evaluating": one_row
        * (len(splits.validation) * contestants + len(splits.test) * (2 + run.config.finish.plain_control)),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
