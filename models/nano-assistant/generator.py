"""Scenes → training examples: a request and several good replies to it.

Knows what a good answer to each request looks like, and how gains in a history hint at what works. Does not
know how scenes are made, tokens, models or training. Prompts are worded by `gpta_local.assistant.prompts`, so they
always agree with what the program asks.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from corpus import QUESTION_WORD, Example, capitalised, fill
from scenes import Scene, SceneMaker

from gpta_local.assistant.prompts import (
    UnusableReply,
    label_texts_request,
    prefix_request,
    read_label_texts,
    read_prefix,
)
from gpta_local.dialogue_gradient.evaluate import content_stems, content_words, stem
from gpta_local.schema import Message, Request, ScoredPrefix

MAX_PREFIX_WORDS = 12
_FITS_QUESTION = re.compile(r"^\{Aspect\}[:.?]|\b(?:the|its) \{aspect\}[:.,?]?$")


class Generator:
    """Makes examples without end. All chance comes from the `random.Random` that is passed in."""

    def __init__(self, scenes: SceneMaker) -> None:
        self.scenes = scenes
        self.frames = scenes.frames

    def example(self, rng: random.Random, weights: Sequence[float]) -> Example:
        """A request with up to six good replies; label texts and prefixes are about equally frequent."""
        while True:
            scene = self.scenes.scene(rng, weights)
            if rng.random() < 0.4:
                made = self._label_texts_example(rng, scene)
            else:
                made = self._prefix_example(rng, scene, shows_history=rng.random() < 0.5)
            if made is not None:
                return made

    def drill(self, rng: random.Random) -> Example:
        """An exercise for the start of training: repeat words, or look up explanations and copy them."""
        if rng.random() < 0.5:
            words = [self.scenes.word(rng) for _ in range(rng.randint(5, 25))]
            text = " ".join(capitalised(word) if rng.random() < 0.2 else word for word in words)
            return Example(Request("prefix", (Message("user", text),)), (text,), "drill")
        names = self.scenes.label_names(rng, rng.choice((2, 3, 4, 5, 6, 7, 8)))
        glosses = [" ".join(self.scenes.word(rng) for _ in range(rng.choice((1, 2, 3, 4, 6, 8)))) for _ in names]
        pairs = list(zip(names, glosses, strict=True))
        input_, inputs = rng.choice(self.frames["input_nouns"])
        slots = self.scenes.slots(rng, input_, inputs, self.scenes.word(rng), self.scenes.word(rng), names)
        explained = rng.random() < 0.5  # in the description, else beside the labels
        description = self.scenes.gloss_part(rng, pairs, slots) if explained else f"{capitalised(inputs)}."
        rng.shuffle(pairs)
        meanings = [] if explained else [gloss for _, gloss in pairs]
        card = self.scenes.dataset_card(
            rng, "text-classification", [input_], description, [name for name, _ in pairs], meanings
        )
        reply = "\n".join(f"{name}: {gloss}" for name, gloss in pairs)
        return Example(label_texts_request(card), (reply,), "drill")

    def _label_texts_example(self, rng: random.Random, scene: Scene) -> Example | None:
        names = scene.card.label_names
        replies: list[str] = []
        for _ in range(5):
            phrases = scene.label_texts(rng)
            if rng.random() < 0.1:
                phrases = [capitalised(phrase) for phrase in phrases]
            reply = "\n".join(f"{name}: {phrase}" for name, phrase in zip(names, phrases, strict=True))
            try:
                read_label_texts(reply, names)
            except UnusableReply:
                continue
            if reply not in replies:
                replies.append(reply)
        if not replies:
            return None
        return Example(label_texts_request(scene.card), tuple(replies[: rng.choice((2, 3, 3))]), scene.source)

    def _prefix_example(self, rng: random.Random, scene: Scene, *, shows_history: bool) -> Example | None:
        pool = self.prefix_pool(rng, scene)
        if len(pool) < 8:
            return None
        if not shows_history:
            chosen = list(dict.fromkeys(text for text, _ in rng.sample(pool, min(len(pool), 6))))
            return Example(prefix_request(scene.card, ()), tuple(chosen), scene.source)
        history, targets = self.history(rng, scene, pool)
        return Example(prefix_request(scene.card, history), tuple(targets), f"{scene.source}+history")

    def prefix_pool(self, rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
        """Distinct (prefix, style) pairs for a scene: hand-written ones and filled templates."""
        found: dict[str, tuple[str, str]] = {}

        def add(text: str) -> None:
            short = len(text.split()) <= MAX_PREFIX_WORDS and len(text) <= 90
            if short and _same(text) not in found and _readable(text):
                found[_same(text)] = (text, _style_of(text))

        for text in scene.prefixes:
            if rng.random() < 0.4 or content_stems(text) & scene.stems:
                add(text)
        names = [re.sub(r"_+", " ", name) for name in scene.card.label_names]
        words = self.keywords(scene)
        available = {"input", "inputs", "a_input", "domain", "aspect"} - self._unseen(scene)
        styles = list(self.frames["prefixes"])
        wanted = len(found) + (14 if scene.prefixes else 26)
        for _ in range(70):
            if len(found) >= wanted:
                break
            style = rng.choice(styles)
            template = rng.choice(self.frames["prefixes"][style])
            needed = {name.lower() for name in re.findall(r"\{(\w+)\}", template)}
            if needed & {"input", "inputs", "a_input", "domain", "aspect"} - available:
                continue
            if needed & {"labels", "labels_or"} and len(names) > 4:
                continue
            if "aspect" in needed and len(needed) > 1 and len(scene.aspect.split()) > 3:
                continue
            picked = rng.sample(words, 3) if len(words) >= 3 else [*words, *[rng.choice(self.scenes.words)] * 3]
            order = rng.sample(names, len(names))
            if rng.random() < 0.6:
                order = names
            slots = self.scenes.slots(rng, scene.input, scene.inputs, scene.domain, scene.aspect, names)
            slots |= {"a": order[0], "b": order[1], "A": capitalised(order[0])}
            slots |= {f"word{i or ''}": word for i, word in zip((0, 2, 3), picked, strict=False)}
            slots |= {"Word": capitalised(picked[0])}
            if needed & {"word", "word2", "word3"} and len(words) < 3:
                continue
            if QUESTION_WORD.match(slots["aspect"]) and "aspect" in needed and not _FITS_QUESTION.search(template):
                continue
            add(fill(template, slots))
        return list(found.values())

    def keywords(self, scene: Scene) -> list[str]:
        """Content words of the prompt that say what the data set is about."""
        slots = content_words(f"{scene.input} {scene.domain} {scene.aspect} {' '.join(scene.card.label_names)}")
        rare = [word for word in content_words(scene.seen) if stem(word) in self._topical(scene)]
        return list(dict.fromkeys([*[w for w in slots if stem(w) in scene.stems], *rare]))

    def _topical(self, scene: Scene) -> set[str]:
        told = " ".join(scene.prefixes) if scene.prefixes else " ".join(label.meaning for label in scene.card.labels)
        return content_stems(told)

    def _unseen(self, scene: Scene) -> set[str]:
        """Slots whose words the prompt does not show; nobody could guess them."""
        missing = set()
        for name, text in (("input", scene.input), ("domain", scene.domain), ("aspect", scene.aspect)):
            if not content_stems(text) <= scene.stems:
                missing |= {"input", "inputs", "a_input"} if name == "input" else {name}
        return missing

    def history(
        self, rng: random.Random, scene: Scene, pool: Sequence[tuple[str, str]]
    ) -> tuple[list[ScoredPrefix], list[str]]:
        """Tried prefixes whose gains follow a hidden preference, and new prefixes that follow it too."""
        generic = [(text, "generic") for text in rng.sample(self.frames["generic_prefixes"], rng.choice((0, 0, 1, 2)))]
        candidates = [*pool, *[pair for pair in generic if _same(pair[0]) not in {_same(text) for text, _ in pool}]]
        features = [self._features(scene, text, style) for text, style in candidates]
        names = sorted({name for row in features for name in row})
        liked = {name: rng.gauss(0, 1) for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2, 3))))}
        utility = [sum(liked.get(name, 0.0) * value for name, value in row.items()) for row in features]
        spread = max(utility) - min(utility)
        if spread > 0:
            utility = [(value - min(utility)) / spread for value in utility]
        count = min(rng.randint(1, 12), len(candidates) - 5)
        if rng.random() < 0.4:  # mostly good ones, as the program shows them
            order = sorted(range(len(candidates)), key=lambda i: -utility[i] + rng.gauss(0, 0.4))
        else:
            order = rng.sample(range(len(candidates)), len(candidates))
        shown, rest = order[:count], [i for i in order[count:] if i < len(pool)]
        scale = math.exp(rng.uniform(math.log(0.012), math.log(0.25)))
        noise, offset = scale * rng.choice((0.03, 0.1, 0.25)), rng.uniform(0.2, 1.0)
        scored = [
            ScoredPrefix(candidates[i][0], scale * (utility[i] - offset) + rng.gauss(0, noise), 0.0, 0.0, 0)
            for i in shown
        ]
        if rng.random() < 0.6:
            scored.append(ScoredPrefix("", 0.0, 0.0, 0.0, 0))
        drawn = sorted(rest, key=lambda i: -(utility[i] / 0.08) + math.log(-math.log(rng.random() or 1e-9)))
        return scored, [candidates[i][0] for i in drawn[:4]]

    def _features(self, scene: Scene, text: str, style: str) -> dict[str, float]:
        stems = content_stems(text)
        words = len(text.split())
        features = {
            f"style {style}": 1.0,
            "short": float(words <= 2),
            "length": min(words, 10) / 10,
            "input": float(bool(stems & content_stems(scene.input))),
            "domain": float(bool(stems & content_stems(scene.domain))),
            "aspect": float(bool(stems & content_stems(scene.aspect))),
            "labels": float(any(stems & content_stems(name) for name in scene.card.label_names)),
            "colon": float(text.endswith(":")),
            "question mark": float(text.endswith("?")),
            "lower case": float(text[:1].islower()),
        }
        return features | {f"word {word}": 1.0 for word in stems & scene.stems}


def _style_of(text: str) -> str:
    words = text.split()
    if text.endswith("?"):
        return "question"
    if words[0].lower() in {"find", "tell", "classify", "read", "decide", "choose", "look", "judge", "say", "mind"}:
        return "instruction"
    if " or " in text or "/" in text:
        return "labels"
    if text.endswith(":"):
        return "noun" if len(words) <= 3 else "setting"
    return "keyword" if len(words) <= 3 and words[0].lower() != "this" else "continuation"


def _same(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def _readable(text: str) -> bool:
    try:
        return read_prefix(text) == text
    except UnusableReply:
        return False
