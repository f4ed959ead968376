"""Why most replies of an assistant cannot be used, and what may be wrong. Knows verdicts, no text of a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpta_local.assistant import replies

CAUSES = 2
"""How many are named, from the most frequent down."""
THINKS = (
    "If the model thinks before it answers, raise assistant.max_new_tokens (to 2048, for example), "
    "or switch its thinking off where it is served"
)
CUT_OFF = "They are cut off: raise assistant.max_new_tokens (to 2048, for example, for a model that thinks)"
HINTS = {
    replies.ONLY_THOUGHTS: THINKS,
    replies.TOOL_CALL: "If the model is served with tools, serve it without",
    replies.REFUSED: "Say in card.description what the data is for, or take another model",
    replies.NO_ANSWER: "See whether the server uses the model's own chat template, and raise assistant.max_new_tokens",
}
TEMPLATE = "See whether it is a model that follows instructions, and whether it is served with its own chat template"


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a reply: `outcome` and `reason` as in the history; `finish_reason` of its completion."""

    outcome: str
    reason: str
    finish_reason: str


def why(judged: Sequence[Judged]) -> tuple[str, str]:
    """Where more than half of the replies are unusable, the most frequent causes and what may be wrong, each in words
    for the user; else two empty strings."""
    unusable = [one for one in judged if one.outcome == "unusable"]
    if 2 * len(unusable) <= len(judged):
        return "", ""
    causes = Counter(one.reason for one in unusable).most_common(CAUSES)
    named = ", ".join(f"{cause} ({count})" for cause, count in causes)
    cut = sum(one.finish_reason == "length" for one in unusable)
    ended = f"; {cut} ended at the limit" if cut else ""
    hint = CUT_OFF if 2 * cut > len(unusable) else HINTS.get(causes[0][0], TEMPLATE)
    return f"{len(unusable)} of {len(judged)} replies cannot be used: {named}{ended}", hint
