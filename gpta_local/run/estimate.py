"""How long a run would take, from a few measured steps. Writes nothing; asks for label texts and for prefixes once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import (
    TEXTS_OF_A_REPLY,
    example_texts_request,
    label_texts_request,
    parts_of,
    prefix_request,
)
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue, build_dialogues, example_text_dialogues
from gpta_local.dialogue_gradient.train import number_of_steps, train_adapter
from gpta_local.knowledge.label_texts import templated
from gpta_local.run.loop import Run
from gpta_local.run.plan import WITH_TEXTS, Plan
from gpta_local.schema import Ask, ExampleText, Request, ScoredPrefix

MEASURED_STEPS = 3
SHORT_REPLY = 8
"""Tokens."""
MADE_UP = "I could not come last week, so please let me know when there is another free place on a Monday."
"""In place of example texts, where there are no rows."""


def estimate(run: Run) -> dict[str, float]:
    """Seconds for each stage of the run. Rough: texts differ in length, machines in mood."""
    plan, task, search, splits = run.plan, run.plan.task, run.plan.config.search, run.plan.splits
    search = search.model_copy(update={"rounds": 0}) if not plan.searches else search
    templates = ["Text:"] * plan.most_templates
    model = task.build(templated(task.own_label_texts(), templates))
    rows = min(len(splits.train), search.scoring_rows)
    heat = list(range(rows if rows <= 2 * plan.first_heat else plan.first_heat))
    scorer = task.scorer(model, splits.train)
    one_prefix = 0.0
    if search.rounds:
        scorer.losses("", heat)  # the first call also warms up
        one_prefix = _seconds(lambda: scorer.losses("Text:", heat))
    heats = 1 if rows <= 2 * plan.first_heat else 2.5  # later heats: half the prefixes, twice the rows
    sample = (splits.test or splits.train)[:128]
    one_row = _seconds(lambda: task.evaluate(model, sample, "Text:")) / len(sample) if sample else 0.0
    made_up = [] if splits.train else [ExampleText(task.label_names[0], MADE_UP)] * max(1, plan.example_texts)
    training = plan.training(model, texts=made_up)
    training.run("Text:", 1)
    one_step = _seconds(lambda: training.run("Text:", MEASURED_STEPS)) / MEASURED_STEPS
    label_texts, prefixes = map(label_texts_request, plan.label_text_parts), prefix_request(plan.card, [])

    def seconds(requests: Iterable[Request], n: int, number: int) -> float:
        asks = [Ask(request, n, plan.sampling(number, request)) for request in requests]
        return _seconds(lambda: run.assistant.complete_all(asks)) if n else 0.0

    asking = seconds(label_texts, plan.label_text_samples if plan.searches else 0, 0)
    asking += seconds([prefixes], search.proposals, 1) * search.rounds if search.rounds else 0.0
    asking += _example_texts(run) * (1 + plan.text_steps) if plan.example_texts else 0.0
    dialogue_gradients = _dialogue_gradients(run)
    plain = plan.trains_plainly
    # online besides: plain fine-tuning, the model of the search with its prefix, and without
    contestants = 1 + plan.config.finish.finalists + (len(templates) > 0) + plan.online * (plain + 2)
    compared = 2 + plain + plan.compares_with_card
    if not plan.searches:
        contestants, compared = 1 + 2 * len(plan.shares), 1
    return {
        "asking the assistant": asking,
        **({"teaching the assistant": dialogue_gradients} if dialogue_gradients else {}),
        "scoring prefixes": one_prefix * heats * search.rounds * (search.proposals + 1),
        "training": one_step * plan.steps * steps_of_all_trainings(plan),
        "evaluating": one_row
        * (
            len(splits.validation) * contestants
            + (len(splits.test) + len(splits.fitted)) * plan.measured * compared
            + len(splits.train) * plan.cross_validates * (1 + plan.compares_with_plain)
        ),
    }


def steps_of_all_trainings(plan: Plan) -> float:
    """In units of one training's steps, with as many templates and finalists as a run may have; the training of an
    online search is one. With example texts a training takes more steps, and there is one more, to judge them, and
    another where the assistant is taught them. Of what they and the prefixes make, without validation rows only what is
    chosen is trained."""
    if not plan.searches:
        return 1 + sum(2 / part for part in plan.shares)
    searched = plan.config.search.rounds > 0 and not plan.online
    finalists = (plan.config.finish.finalists if plan.splits.validation else 1) if searched else 0
    with_templates, with_texts = plan.most_templates > 0, plan.trains_with_texts
    control = bool(plan.splits.train) and (plan.measured or with_texts or not with_templates)
    contestants = with_texts + with_templates + finalists
    trained = contestants if plan.splits.validation else min(1, contestants)
    judges = with_texts + (plan.text_steps > 0)
    after_texts = (judges + trained) * (WITH_TEXTS if with_texts else 1)
    of_a_part = (WITH_TEXTS + 1 if with_texts else 1) + plan.compares_with_plain
    parts = plan.config.finish.folds * of_a_part if plan.cross_validates else 0
    return control + plan.trains_from_card + after_texts + plan.online + plan.trains_plainly + parts


def _example_texts(run: Run) -> float:
    """Seconds for the example texts of all labels, from replies that are cut short twice."""
    plan = run.plan
    requests = [example_texts_request(part, label) for part in parts_of(plan.card) for label in part.labels]
    n = -(-plan.example_texts // TEXTS_OF_A_REPLY)

    def seconds(tokens: int) -> float:
        asks = [Ask(r, n, replace(plan.sampling(0, r), max_new_tokens=tokens)) for r in requests]
        return _seconds(lambda: run.assistant.complete_all(asks))

    first, second = seconds(SHORT_REPLY), seconds(2 * SHORT_REPLY)
    whole = plan.sampling(0, requests[0]).max_new_tokens / SHORT_REPLY
    return first + max(0.0, second - first) * (whole - 1)


def _dialogue_gradients(run: Run) -> float:
    """Seconds for all of them, from short ones; 0 where another process would train (that takes as long
    as loading the weights there, and longer)."""
    plan, config, search = run.plan, run.plan.config.dialogue_gradient, run.plan.config.search
    if config is None or not isinstance(run.assistant, LocalAssistant):
        return 0.0
    history = [ScoredPrefix(f"Text number {i}:", i / 100, 0.01, 0.5, 16) for i in range(search.proposals)]
    texts = [ExampleText(label, MADE_UP, 0.9, kept=True) for label in plan.task.label_names] * TEXTS_OF_A_REPLY
    shown = search.history_shown
    of_prefixes = build_dialogues(plan.card, [history], [], [], config, shown=shown, seed=0)
    of_texts = example_text_dialogues(plan.card, texts, per_label=config.dialogues_per_winner, seed=0)
    rounds = range(config.every, search.rounds, config.every)
    steps = sum(number_of_steps(config, len(of_prefixes) * number) for number in rounds)  # the history grows
    seconds = _one_step(run.assistant, of_prefixes, config) * steps if of_prefixes and rounds else 0.0
    if plan.text_steps:
        steps = plan.text_steps * number_of_steps(config, len(of_texts))
        seconds += _one_step(run.assistant, of_texts, config) * steps
    return seconds


def _one_step(assistant: LocalAssistant, dialogues: Sequence[Dialogue], config: DialogueGradientConfig) -> float:
    """Seconds for one optimiser step."""
    short = config.model_copy(update={"steps": MEASURED_STEPS})
    model, tokenizer = assistant.base()
    with tempfile.TemporaryDirectory() as scratch:
        train_adapter(model, tokenizer, dialogues, short, Path(scratch, "first"), seed=0)  # also imports
        again = Path(scratch, "second")
        return _seconds(lambda: train_adapter(model, tokenizer, dialogues, short, again, seed=0)) / MEASURED_STEPS


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
