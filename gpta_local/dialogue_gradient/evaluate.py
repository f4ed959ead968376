"""How good an assistant's proposals are: hit rate, new ones, on topic, for the data of some
configurations, with and without adapters.

All assistants are shown the same history and their proposals are scored at the same θ (the model
before training, its head started from the card's label names and meanings) on the same training rows. No validation or
test row is read for a score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpta_local.assistant import Assistant
from gpta_local.assistant.prompts import prefix_request, reply_room
from gpta_local.config import Config
from gpta_local.dialogue_gradient.train import sampling_temperature, taught_replies
from gpta_local.knowledge import prefixes
from gpta_local.metrics import Interval, paired_bootstrap
from gpta_local.privacy.leak_scan import scan_of
from gpta_local.schema import Completion, DatasetCard, Sampling, ScoredPrefix
from gpta_local.tasks import open_task

BASE = "base"
_STOP_WORDS = """
a about above after all also always an and another any are as at be because been before being between both but
by can could did do does done each either english every few first for from given gives had has have having
here how if in input inputs into is it its itself just kind label labelled labels less like mainly make many
may mean means might more most mostly much must neither no none nor not of off often on one only or other
others our out over own part per people person rather row rows said same say says see should since single so
some somebody someone something such task text texts than that the their them then there these they thing
things this those through to too two type under up us use used using value very was we were what when where
whether which while who whom whose why will with within without word words would written writes wrote yet you
your class classes data set sets mark marked tagged three four five six seven eight collection collected
dataset classification classify
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class ProposalQuality:
    """Proposals of one assistant for one sample of one data set. Shares are of all proposals.

    `hit_rate`: new and with a gain above the best that was shown. `fresh`: readable, and no (near)
    repetition of what was shown, taught or proposed before. `on_topic`: shares a content word with
    the card. Gains in nats; `best_gain` is that of the best new proposal.
    """

    card: str
    seed: int
    assistant: str
    proposals: int
    hit_rate: float
    fresh: float
    on_topic: float
    mean_gain: float
    best_gain: float
    best_shown: float


def measure(
    config: Config,
    assistant: Assistant,
    adapters: Sequence[Path],
    *,
    proposals: int,
    first_proposals: int,
    on_scored: Callable[[], None] = lambda: None,
) -> list[ProposalQuality]:
    """The base model, then each adapter, on the data of a configuration, at its seed.

    Args:
        first_proposals: completions of the base model without a history; the history that is shown
            comes from them.

    Raises:
        PrivacyError: private words or personal data are in the card.
    """
    task = open_task(config)
    train, card = task.splits().train, task.card()
    model = task.build(task.own_label_texts())
    rows = task.scoring_rows(train, config.search.scoring_rows, config.seed)
    losses = task.scorer(model, train).losses
    leak_scan = scan_of(config, task.texts(), card)

    def propose(adapter: Path | None, history: Sequence[ScoredPrefix], count: int, seed: int) -> list[Completion]:
        assistant.use_adapter(adapter)
        request = prefix_request(card, history)
        leak_scan.check(request)
        settings = config.assistant
        room = settings.max_new_tokens or reply_room(request)
        temperature = settings.temperature * sampling_temperature(adapter)
        return assistant.complete(request, count, Sampling(temperature, settings.top_p, room, seed))

    reader = prefixes.PrefixReader(
        card,
        lambda text: len(model.tokenizer.prefix_ids(text)),
        config.search.max_prefix_tokens,
        leak_scan.find,
    )

    def new(completions: Sequence[Completion], known: Sequence[str]) -> list[ScoredPrefix]:
        candidates = prefixes.clean(
            completions,
            known,
            embed=lambda texts: model.embed(texts).cpu().numpy(),
            read=reader.read,
        )
        return prefixes.race(candidates.prefixes, losses, rows, first_heat=len(rows), on_scored=on_scored)[1:]

    history = new(propose(None, [], first_proposals, config.seed), [])
    shown = prefixes.shown_history(history, config.search.history_shown, str(config.seed))
    best_shown = max((s.gain for s in shown), default=0.0)
    known = [s.text for s in history]
    known += [text for adapter in adapters for text in taught_replies(adapter) if text not in known]
    results = []
    for adapter in (None, *adapters):
        scored = new(propose(adapter, shown, proposals, config.seed + 1), known)
        gains = np.array([s.gain for s in scored])
        results.append(
            ProposalQuality(
                card=card.name,
                seed=config.seed,
                assistant=str(adapter) if adapter else BASE,
                proposals=proposals,
                hit_rate=float((gains > best_shown).sum() / proposals),
                fresh=len(scored) / proposals,
                on_topic=sum(on_topic(card, s.text) for s in scored) / proposals,
                mean_gain=float(gains.mean()) if len(gains) else 0.0,
                best_gain=float(gains.max()) if len(gains) else 0.0,
                best_shown=best_shown,
            )
        )
    assistant.use_adapter(None)
    return results


def on_topic(card: DatasetCard, text: str) -> bool:
    """Whether a prefix shares a content word with the card."""
    return bool(content_stems(text) & content_stems(f"{card.name} {card.description} {' '.join(card.label_names)}"))


def stem(word: str) -> str:
    """A rough stem, enough to match "reviews" with "review" and "rating" with "ratings"."""
    word = word.lower()
    for ending, keep in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("ly", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not (ending == "s" and word.endswith("ss")):
            word = word[: -len(ending)] + keep
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def content_words(text: str) -> list[str]:
    """The words of a text that say what it is about, lower-cased, in order of appearance."""
    words = re.findall(r"[A-Za-z][A-Za-z']*[A-Za-z]", text.replace("_", " "))
    return [word.lower() for word in words if word.lower() not in STOP_WORDS]


def content_stems(text: str) -> set[str]:
    return {stem(word) for word in content_words(text)}


def compare(results: Sequence[ProposalQuality], assistant: str) -> Interval:
    """Mean hit rate of an adapter less that of the base, paired over samples, with its bootstrap interval, 95 %; of one
    sample that is nothing but the difference.

    Args:
        results: of `measure`, one after the other: each base before its adapters.
    """
    ours, theirs, base = [], [], 0.0
    for result in results:
        if result.assistant == BASE:
            base = result.hit_rate
        elif result.assistant == assistant:
            ours.append(result.hit_rate)
            theirs.append(base)
    return paired_bootstrap(np.array(ours), np.array(theirs))


def as_records(results: Sequence[ProposalQuality]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]
