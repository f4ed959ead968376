"""Label texts: read out of completions, and put behind templates. Knows texts, neither rows nor models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from gpta_local.assistant.prompts import UnusableReply, read_label_texts, write_label_texts
from gpta_local.knowledge.readable import fault, scripts, words_of
from gpta_local.record.history import Outcome
from gpta_local.schema import Completion, DatasetCard

Leak = Callable[[str], str]
"""A text → what of a person or, for what is sent again, of a private row is in it, in words; "" for nothing."""


def read_label_text_sets(
    completions: Sequence[Completion], card: DatasetCard, leak: Leak
) -> tuple[list[dict[str, str]], list[Outcome]]:
    """The usable, distinct sets of label texts, and what became of each completion.

    Args:
        card: with the labels that the request was for.
    """
    allowed = scripts(words_of(card))
    sets: list[dict[str, str]] = []
    verdicts: list[Outcome] = []
    for completion in completions:
        try:
            texts = read_label_texts(completion.text, card.label_names)
            for line in write_label_texts(texts).splitlines():  # as it would be taught
                refuse_leak(line, leak)
            if reason := next((reason for text in texts.values() if (reason := fault(text, allowed))), ""):
                raise UnusableReply(reason)
        except UnusableReply as exc:
            verdicts.append(("unusable", str(exc)))
            continue
        verdicts.append(("repeated" if texts in sets else "accepted", " | ".join(texts.values())))
        if texts not in sets:
            sets.append(texts)
    return sets, verdicts


def joined(parts: Sequence[Sequence[Mapping[str, str]]], own: Mapping[str, str]) -> list[dict[str, str]]:
    """Sets for all labels, from the sets for each part of them: the first of each part together, then the second …

    Args:
        own: what the card says of each label. It stands where a part has no further set, and where another label has
            the same phrase.
    """
    found: list[dict[str, str]] = []
    for together in zip_longest(*parts, fillvalue={}):
        phrases = [(name, phrase) for texts in together for name, phrase in texts.items()]
        first = {phrase.casefold(): name for name, phrase in reversed(phrases)}
        found.append(dict(own) | {name: phrase for name, phrase in phrases if first[phrase.casefold()] == name})
    return found


def templated(label_texts: Sequence[Mapping[str, str]], templates: Sequence[str]) -> list[dict[str, str]]:
    """The sets of label texts, then each of them behind each of the templates. The mean of a label's embeddings in
    many wordings stands better for its rows than one (prompt ensembling, Radford et al. 2021, §3.1.4)."""
    behind = [
        {name: f"{template} {text}" for name, text in texts.items()} for template in templates for texts in label_texts
    ]
    return [*map(dict, label_texts), *behind]


def refuse_leak(text: str, leak: Leak) -> None:
    if kind := leak(text):
        raise UnusableReply(f"holds {kind}")
