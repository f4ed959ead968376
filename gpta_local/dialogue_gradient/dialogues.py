"""History → dialogues: what the assistant is taught.

Knows the card, prefixes, label texts, example texts and their worth, and how requests are worded. Does
not know rows, models or files. The same history and seed give the same dialogues.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpta_local.assistant.prompts import (
    TEXTS_OF_A_REPLY,
    example_texts_request,
    label_texts_request,
    parts_of,
    prefix_request,
    write_example_texts,
    write_label_texts,
)
from gpta_local.config import DialogueGradientConfig
from gpta_local.knowledge.prefixes import shown_history
from gpta_local.schema import DatasetCard, ExampleText, Request, ScoredLabelTexts, ScoredPrefix


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A request and the reply that is taught.

    `weight`: how much the reply counts; 1 on average over dialogues of a kind. `rival`: a request that the reply does
    not answer, to which it shall be less probable.
    """

    request: Request
    reply: str
    weight: float
    rival: Request | None = None


def build_dialogues(
    card: DatasetCard,
    groups: Sequence[Sequence[ScoredPrefix]],
    label_texts: Sequence[ScoredLabelTexts],
    example_texts: Sequence[ExampleText],
    config: DialogueGradientConfig,
    *,
    shown: int,
    seed: int,
) -> list[Dialogue]:
    """All that the history of one run teaches, of the kinds that the configuration names.

    Args:
        groups: scored prefixes; within a group gains compare (the same θ and rows).
        example_texts: those without a verdict teach nothing.
        shown: most entries of a history.
    """
    winners, per_winner, taught = config.winners, config.dialogues_per_winner, config.taught
    dialogues = []
    if "label-texts" in taught:
        dialogues += label_text_dialogues(card, label_texts, winners=winners, per_winner=per_winner)
    if "example-texts" in taught:
        dialogues += example_text_dialogues(card, example_texts, per_label=per_winner, seed=seed)
    for number, group in enumerate(groups if "prefix" in taught else ()):
        dialogues += prefix_dialogues(
            card, group, winners=winners, per_winner=per_winner, shown=shown, seed=f"{seed} {number}"
        )
    return dialogues


def prefix_dialogues(
    card: DatasetCard, group: Sequence[ScoredPrefix], *, winners: float, per_winner: int, shown: int, seed: str
) -> list[Dialogue]:
    """Dialogues {card, entries with a lower gain} → winner, for each winner `per_winner` of them, which
    differ in the entries that are shown. A winner's advantage is its gain less that of the best prefix
    that is not taught.

    Args:
        group: scored prefixes whose gains compare (the same θ and rows).
        winners: the share of the best that is taught, at least one.
        shown: most entries of a request.
    """
    ranked = sorted((scored for scored in group if scored.text), key=lambda scored: (scored.gain, scored.text))
    first = len(ranked) - max(1, round(winners * len(ranked)))
    if first < 1:
        return []
    dialogues, advantages = [], []
    for winner in [scored for scored in ranked[first:] if scored.gain > ranked[first - 1].gain]:
        lower = [scored for scored in ranked if scored.gain < winner.gain]
        for number in range(per_winner):
            rng = random.Random(f"dialogue {seed} {winner.text} {number}")
            size = min(shown, len(lower) - 1) if number == 0 else rng.randint(0, min(shown, len(lower) - 1))
            entries = shown_history(lower, size, f"{seed} {winner.text} {number}")
            dialogues.append(Dialogue(prefix_request(card, entries), winner.text, 1.0))
            advantages.append(winner.gain - ranked[first - 1].gain)
    return _weighted(dialogues, advantages)


def label_text_dialogues(
    card: DatasetCard, sets: Sequence[ScoredLabelTexts], *, winners: float, per_winner: int
) -> list[Dialogue]:
    """Dialogues {card} → label texts, for the sets that start the head best. Their advantage is the loss
    of the best set that is not taught less their own."""
    ranked = sorted(sets, key=lambda scored: (-scored.loss, write_label_texts(scored.texts)))
    first = len(ranked) - max(1, round(winners * len(ranked)))
    if first < 1:
        return []
    dialogues, advantages = [], []
    for winner in [scored for scored in ranked[first:] if scored.loss < ranked[first - 1].loss]:
        for _ in range(min(per_winner, first)):
            for part in parts_of(card):
                reply = write_label_texts({name: winner.texts[name] for name in part.label_names})
                dialogues.append(Dialogue(label_texts_request(part), reply, 1.0))
                advantages.append(ranked[first - 1].loss - winner.loss)
    return _weighted(dialogues, advantages)


def example_text_dialogues(
    card: DatasetCard, texts: Sequence[ExampleText], *, per_label: int, seed: int
) -> list[Dialogue]:
    """Dialogues {card, label} → texts that were kept, for each label `per_label` of them, which differ in the texts
    that are drawn; their rivals ask for the other labels in turn. Their advantage is the mean probability of the label.
    Where too few for a reply were kept, the most probable refused ones fill it up: taught short replies, an assistant
    writes short ones. Texts of the user are not taught."""
    judged = [text for text in texts if not text.own and text.kept is not None]
    dialogues, advantages = [], []
    requests = [(example_texts_request(p, label), label.name) for p in parts_of(card) for label in p.labels]
    for place, (request, label) in enumerate(requests):
        ranked = [text for text in judged if text.label == label]
        ranked.sort(key=lambda text: (not text.kept, -(text.probability or 0.0)))
        kept = sum(bool(text.kept) for text in ranked)
        taught = ranked[: max(kept, TEXTS_OF_A_REPLY)] if kept else []
        others = [other for other, _ in requests[place + 1 :] + requests[:place]]
        for number in range(per_label if taught else 0):
            rng = random.Random(f"dialogue {seed} {label} {number}")
            reply = rng.sample(taught, min(TEXTS_OF_A_REPLY, len(taught)))
            said = write_example_texts(text.text for text in reply)
            dialogues.append(Dialogue(request, said, 1.0, others[number % len(others)]))
            advantages.append(sum(text.probability or 0.0 for text in reply) / len(reply))
    return _weighted(dialogues, advantages)


def _weighted(dialogues: Sequence[Dialogue], advantages: Sequence[float]) -> list[Dialogue]:
    """The dialogues with their advantages as weights, which are 1 on average."""
    mean = sum(advantages) / max(1, len(advantages))
    return [replace(d, weight=advantage / mean) for d, advantage in zip(dialogues, advantages, strict=True)]
