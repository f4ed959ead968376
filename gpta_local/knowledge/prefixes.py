"""Propose → clean → score → choose. Knows completions, candidates and gains.

Does not know rows (they are numbers here), tasks or models: it is given functions that embed a
prefix and score it row by row.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpta_local.assistant.prompts import LONGEST_LINE, UnusableReply, read_prefixes
from gpta_local.knowledge.label_texts import Leak, refuse_leak
from gpta_local.knowledge.readable import fault, scripts, words_of
from gpta_local.metrics import paired_mean
from gpta_local.record.history import Outcome
from gpta_local.schema import Completion, DatasetCard, ProposalFigures, ScoredPrefix

NUMBER = re.compile(r"[+-]?\d+[.,]\d+|^\W*[+-]?\d")
"""As gains are written, or at the beginning: small models copy what stands in a list."""
MOST_LINES = 8
"""Of a reply that are looked at."""
FIRST_HEAT = 64
"""Scoring rows in the first heat of a race."""
NEAR_DUPLICATE = 0.97
"""Cosine of two prefixes' embeddings from which on the second counts as there before: the same words with another
sign or ending."""


class PrefixReader:
    """Reads a completion into the prefixes that can be used with this card.

    Args:
        tokens: length of a prefix in the backbone's tokens.
        leak: what it finds something in is unusable: it would be shown in the next request.
    """

    def __init__(self, card: DatasetCard, tokens: Callable[[str], int], max_tokens: int, leak: Leak) -> None:
        self._tokens, self._max_tokens, self._leak = tokens, max_tokens, leak
        self._scripts = scripts(words_of(card))
        names = "|".join(re.escape(label.name).replace("_", "[ _]") for label in card.labels)
        self._names_a_label = re.compile(rf"(?i)^\W*(?:{names})\W*(?::|$)")

    def read(self, text: str) -> list[str]:
        """The prefixes in a reply, one a line, in their order; at least one.

        Raises:
            UnusableReply: there is none, or none that can be used; it says why the first cannot.
        """
        found, reasons = list[str](), list[UnusableReply]()
        for prefix in read_prefixes(text)[:MOST_LINES]:
            try:
                self._check(prefix)
            except UnusableReply as exc:
                reasons.append(exc)
            else:
                found.append(prefix)
        if not found:
            raise reasons[0]
        return found

    def _check(self, prefix: str) -> None:
        """
        Raises:
            UnusableReply: it is too long, holds a private word, a number or a label's name as a heading, or is no
                plain text.
        """
        if len(prefix) > LONGEST_LINE:
            raise UnusableReply(f"{len(prefix)} characters")
        if (length := self._tokens(prefix)) > self._max_tokens:
            raise UnusableReply(f"{length} tokens, {self._max_tokens} allowed")
        if NUMBER.search(prefix):
            raise UnusableReply("holds a number")
        if self._names_a_label.search(prefix):
            raise UnusableReply("names a label")
        if reason := fault(prefix, self._scripts):
            raise UnusableReply(reason)
        refuse_leak(prefix, self._leak)


@dataclass(frozen=True, slots=True)
class Candidates:
    """New prefixes, in the order in which they were taken; of each completion those that are its own, and what became
    of it."""

    prefixes: list[str]
    found: list[list[str]]
    verdicts: list[Outcome]

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(outcome for outcome, _ in self.verdicts))


def clean(
    completions: Sequence[Completion],
    known: Sequence[str],
    *,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    read: Callable[[str], list[str]],
    fill: bool = False,
) -> Candidates:
    """Read completions and drop what cannot be used or was there before: the first prefix of each completion.

    Args:
        known: prefixes of earlier rounds.
        embed: texts (n) → unit vectors (n, d).
        read: a reply → its prefixes, as `PrefixReader.read`.
        fill: where some completions bring none, take second and further ones of the others, up to one for each
            completion in all.
    """
    lines = list[list[str]]()
    verdicts = list[Outcome]()
    for completion in completions:
        text = completion.text
        if completion.finish_reason == "length":  # the end of its last line is missing
            text = text.rpartition("\n")[0].strip() or text
        try:
            lines.append(read(text))
            verdicts.append(("repeated", lines[-1][0]))  # until one of them turns out to be new
        except UnusableReply as exc:
            lines.append([])
            verdicts.append(("unusable", str(exc)))
    seen = {_fold(prefix) for prefix in known}
    waiting = list[tuple[int, int, str]]()
    for depth in range(max(map(len, lines), default=0) if fill else 1):
        for place, of_reply in enumerate(lines):
            if depth < len(of_reply) and _fold(of_reply[depth]) not in seen:
                seen.add(_fold(of_reply[depth]))
                waiting.append((depth, place, of_reply[depth]))
    found: list[list[str]] = [[] for _ in completions]
    accepted = list[str]()
    if waiting:
        vectors = embed([*known, *(prefix for *_, prefix in waiting)])
        similar = vectors[len(known) :] @ vectors.T
        kept = list(range(len(known)))
        for position, (depth, place, prefix) in enumerate(waiting):
            if depth and len(accepted) == len(completions):
                break
            if kept and similar[position, kept].max() >= NEAR_DUPLICATE:
                continue
            kept.append(len(known) + position)
            found[place].append(prefix)
            accepted.append(prefix)
            verdicts[place] = ("accepted", " | ".join(found[place]))
    return Candidates(accepted, found, verdicts)


def race(
    prefixes: Sequence[str],
    losses: Callable[[str, Sequence[int]], NDArray[np.float64]],
    rows: Sequence[int],
    *,
    first_heat: int = FIRST_HEAT,
    kept: str = "",
    on_scored: Callable[[], None] = lambda: None,
) -> list[ScoredPrefix]:
    """Score all prefixes on a few rows, the better half on twice as many, and so on to all rows (successive
    halving, Jamieson & Talwalkar 2016). No prefix ("") is measured in every heat and leads the
    result; then come the prefixes from best to worst, each with the gain of its last heat.

    Args:
        losses: (prefix, rows) → loss per row, in nats.
        rows: all scoring rows, in the order in which heats take them.
        first_heat: rows of the first heat; up to twice as many are taken in one.
        kept: a prefix that stays in the race to the end.
        on_scored: called after each prefix of the first heat.
    """
    size = len(rows) if len(rows) <= 2 * first_heat else first_heat
    running, finished = list(dict.fromkeys(prefixes)), list[ScoredPrefix]()
    while True:
        heat = rows[:size]
        baseline = losses("", heat)
        scored = []
        for prefix in running:
            of_prefix = losses(prefix, heat)
            gain, standard_error = paired_mean(baseline - of_prefix)
            scored.append(ScoredPrefix(prefix, gain, standard_error, float(of_prefix.mean()), len(heat)))
            if not finished:
                on_scored()
        scored.sort(key=lambda s: (s.text == kept, s.gain), reverse=True)
        if size >= len(rows) or not scored:
            none = ScoredPrefix("", 0.0, 0.0, float(baseline.mean()), len(heat))
            return [none, *sorted(scored, key=lambda s: s.gain, reverse=True), *finished]
        half = (len(scored) + 1) // 2
        finished = scored[half:] + finished
        running = [s.text for s in scored[:half]]
        size = min(2 * size, len(rows))


def figures(
    adapter: str, found: Sequence[Sequence[str]], scored: Sequence[ScoredPrefix], best_shown: ScoredPrefix | None
) -> ProposalFigures:
    """How the proposals of an adapter did in a race.

    Args:
        found: the new prefixes of each of its completions, as `clean` gives them.
        scored: what `race` returned. Who ran longer than the best shown prefix has beaten it.
        best_shown: with its score at the same θ on the same rows; None where nothing was shown.
    """
    ran = {s.text: s for s in scored}
    fresh = [ran[text] for of_reply in found for text in of_reply]
    best = (best_shown.rows, best_shown.gain) if best_shown else (0, 0.0)
    hits = sum((s.rows if best_shown else 0, s.gain) > best for s in fresh)
    mean = float(np.mean([s.gain for s in fresh])) if fresh else None
    return ProposalFigures(adapter, len(found), len(fresh), hits, mean)


def margin(candidates: int) -> float:
    """Standard errors that a gain must exceed when it is the best of so many: √(2 ln k), which the
    largest of k standard normal draws stays below on average (Boucheron, Lugosi & Massart 2013,
    §2.5), and at least 1. It corrects the winner's curse: of many noisy candidates the best looks
    better than it is."""
    return max(1.0, math.sqrt(2 * math.log(max(1, candidates))))


def choose(scored: Sequence[ScoredPrefix], current: str = "") -> ScoredPrefix:
    """The best prefix of a race if it is clearly better than the current one, else the current one:
    θ has learnt to read that, so leaving it must be worth it.

    Args:
        scored: what `race` returned; no prefix is among it.
        current: the prefix that θ was last trained with.
    """
    finishers = [s for s in scored if s.rows == scored[0].rows]
    kept = next(s for s in finishers if s.text == current)
    challenger = finishers[best(finishers, len(scored) - 1)]
    return challenger if challenger.bound(margin(len(scored) - 1)) > kept.gain else kept


def best(gains: Sequence[ScoredPrefix], candidates: int) -> int:
    """Position of the highest lower bound, given how many were tried; the first of equals."""
    return max(range(len(gains)), key=lambda i: gains[i].bound(margin(candidates)))


def ranked(scored: Sequence[ScoredPrefix], margin: float) -> list[ScoredPrefix]:
    """Those that were measured on the most rows, from the highest lower bound to the lowest; "" is left out.

    Args:
        scored: prefixes whose gains compare.
        margin: standard errors that are taken off a gain.
    """
    most = max((s.rows for s in scored if s.text), default=0)
    return sorted((s for s in scored if s.text and s.rows == most), key=lambda s: s.bound(margin), reverse=True)


def shown_history(history: Sequence[ScoredPrefix], size: int, seed: str) -> list[ScoredPrefix]:
    """What the assistant sees: half of `size` the best prefixes, the rest drawn from the others."""
    ranked = sorted(history, key=lambda s: s.gain, reverse=True)
    best, others = ranked[: (size + 1) // 2], ranked[(size + 1) // 2 :]
    return best + random.Random(f"history-{seed}").sample(others, min(size // 2, len(others)))


def _fold(prefix: str) -> str:
    return " ".join(prefix.casefold().split())
