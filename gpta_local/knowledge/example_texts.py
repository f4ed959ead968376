"""Example texts: read out of completions, cleaned, and put among the rows. Knows the card and texts; neither rows nor
models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from gpta_local.assistant.prompts import EXAMPLE_TEXTS, UnusableReply, read_lines
from gpta_local.knowledge.readable import fault, scripts, words, words_of
from gpta_local.record.history import Outcome
from gpta_local.schema import Completion, DatasetCard, ExampleText

FEWEST_WORDS, MOST_WORDS = 3, 80
ALIKE = 0.6
"""Share of common words (Jaccard) from which on two texts are near duplicates."""


class ExampleTextReader:
    """Reads completions into example texts, each of which is there once: what was read before is remembered.

    `refused`: how many lines were refused, by reason.

    Args:
        known: texts that are there already.
    """

    def __init__(self, card: DatasetCard, known: Sequence[ExampleText] = ()) -> None:
        self._scripts = scripts(words_of(card))
        self._labels = {_fold(label.name): label.name for label in card.labels}
        said = (card.description, *(label.meaning for label in card.labels), *(text.text for text in known))
        self._known = [_words(text) for text in (*EXAMPLE_TEXTS, *said)]
        names = sorted((re.escape(name).replace(r"\ ", "[ _-]") for name in self._labels), key=len, reverse=True)
        heading = rf"(?P<label>{'|'.join(names)})|(?:label|text|style|subject|about)[^:;.!?]{{0,60}}"
        self._heading = re.compile(rf"(?i)^[\[(*\"]*(?:{heading})(?:[\])]\**\s*[:;]?|[*\"]*\s*[:;])\**\s*(?=\S)")
        self._ending = re.compile(rf"(?i)\s*[\[(](?:{heading})[\])]\.?$")
        self.refused: Counter[str] = Counter()

    def read(self, completions: Sequence[Completion], label: str) -> tuple[list[ExampleText], list[Outcome]]:
        """The usable, new texts of replies to a request for texts with this label, and what became of each reply."""
        texts: list[ExampleText] = []
        outcomes: list[Outcome] = []
        for completion in completions:
            try:
                lines = read_lines(completion.text)
            except UnusableReply as exc:
                outcomes.append(("unusable", str(exc)))
                continue
            if completion.finish_reason == "length":
                lines = lines[:-1]  # its end is missing
            found = [text for line in lines if (text := self._usable(line, label))]
            texts += [ExampleText(label, text) for text in found]
            outcomes.append(("accepted", " | ".join(found)) if found else ("unusable", "no usable text"))
        return texts, outcomes

    def _usable(self, line: str, label: str) -> str:
        """The text of a line; "" where it cannot be used or was there before."""
        text, named = self._without_heading(line)
        if reason := self._reason_against(text, named, label):
            self.refused[reason] += 1
            return ""
        self._known.append(_words(text))
        return text

    def _reason_against(self, text: str, named: str, label: str) -> str:
        if named and self._labels[named] != label:
            return "another label"
        if not FEWEST_WORDS <= len(words(text)) <= MOST_WORDS:
            return "too short or too long"
        if text.endswith(":"):
            return "speaks of the task"
        own = _words(text)
        if any(len(own & other) >= ALIKE * len(own | other) for other in self._known):
            return "repeated"
        return fault(text, self._scripts)

    def _without_heading(self, line: str) -> tuple[str, str]:
        """Without "positive:" or "Style: short;" before it and "(numeric)" after it; and the label that stood there,
        folded."""
        named = ""
        for _ in range(3):
            match = self._heading.match(line) or self._ending.search(line)
            if match is None:
                break
            named = _fold(match["label"]) if match["label"] else named
            line = (line[: match.start()] + line[match.end() :]).strip().strip('"').strip()
        return line, named


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _words(text: str) -> frozenset[str]:
    return frozenset(words(text))
