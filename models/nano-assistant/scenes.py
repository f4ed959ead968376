"""Hand-written cards → scenes: cards with other words, other labels or descriptions made from frames.

Knows how a card can be varied so that its description, labels and good answers still agree. Does not know
requests, histories, tokens or models. Held-out cards never come here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from corpus import (
    CardEntry,
    LabelEntry,
    capitalised,
    enumeration,
    fill,
    pseudo_word,
    with_article,
    without_article,
)

from gpta_local.dialogue_gradient.evaluate import content_stems, content_words, stem
from gpta_local.schema import DatasetCard, Label

T = TypeVar("T")


@dataclass(slots=True)
class Scene:
    """A varied card: what the request shows, and what replies are made from."""

    card: DatasetCard
    input: str
    inputs: str
    domain: str
    aspect: str
    label_texts: Callable[[random.Random], list[str]]
    prefixes: tuple[str, ...] = ()
    source: str = ""
    seen: str = field(init=False)  # what the prompt shows of the card, for content words
    stems: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        labels = " ".join(f"{label.name} {label.meaning}" for label in self.card.labels)
        self.seen = f"{self.card.name} {self.card.description} {labels}"
        self.stems = frozenset(content_stems(self.seen))


_FINITE_VERBS = frozenset(
    (
        "is",
        "are",
        "was",
        "were",
        "has",
        "have",
        "had",
        "asks",
        "says",
        "wants",
        "needs",
        "does",
        "should",
        "must",
        "can",
        "will",
        "mentions",
        "describes",
        "complains",
        "names",
        "gives",
        "shows",
        "reports",
    )
)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LEVELS = {
    2: ("bad", "good"),
    3: ("bad", "middle", "good"),
    5: ("very_bad", "bad", "middle", "good", "very_good"),
}


class SceneMaker:
    """Makes scenes without end. All chance comes from the `random.Random` that is passed in."""

    def __init__(self, cards: Sequence[CardEntry], frames: Mapping[str, Any], words: Sequence[str]) -> None:
        self.cards = list(cards)
        self.frames = frames
        self.words = list(words)
        self.nouns = sorted({word for card in cards for word in content_words(f"{card.input} {card.domain}")})
        self.makers: list[Callable[[random.Random], Scene]] = [
            self.hand_scene,
            self.substituted_scene,
            self.composed_scene,
            self.random_scene,
            self.opinion_scene,
        ]

    def scene(self, rng: random.Random, weights: Sequence[float]) -> Scene:
        """A scene of one of the five kinds: hand, substituted, composed, random, opinion."""
        return rng.choices(self.makers, weights)[0](rng)

    # Scenes -----------------------------------------------------------------------------------------

    def hand_scene(self, rng: random.Random) -> Scene:
        """A hand-written card as it stands."""
        return self._from_description(rng, rng.choice(self.cards), "hand")

    def substituted_scene(self, rng: random.Random) -> Scene:
        """A hand-written card in which content words became other words, the same everywhere."""
        card = rng.choice(self.cards)
        shown = f"{' '.join(card.descriptions)} {card.input} {card.domain}"
        used = content_stems(" ".join([card.input, card.domain, card.aspect, *card.prefixes]))
        used |= content_stems(" ".join(f"{label.gloss} {' '.join(label.texts)}" for label in card.labels))
        protected: set[str] = set()
        if rng.random() < 0.6:
            protected = {word for label in card.labels for word in content_words(label.name)}
        candidates = [
            word for word in dict.fromkeys(content_words(shown)) if stem(word) in used and word not in protected
        ]
        share = rng.choice((0.1, 0.25, 0.5))
        mapping: dict[str, str] = {}
        for word in candidates:
            base = word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 4 else word
            if rng.random() < share and base not in mapping:
                mapping[base] = self.word(rng)
        if not mapping and candidates:
            mapping[rng.choice(candidates)] = self.word(rng)
        swap = _Substitution(mapping)
        varied = CardEntry(
            swap(card.name), card.task, swap(card.input), swap(card.inputs), swap(card.domain), swap(card.aspect),
            tuple(map(swap, card.descriptions)),
            tuple(LabelEntry(swap(la.name), swap(la.gloss), tuple(map(swap, la.texts))) for la in card.labels),
            tuple(map(swap, card.prefixes)),
        )  # fmt: skip
        if len({label.name.casefold() for label in varied.labels}) < len(varied.labels):
            return self.hand_scene(rng)
        return self._from_description(rng, varied, "substituted")

    def composed_scene(self, rng: random.Random) -> Scene:
        """Labels of one card or of several, some of them renamed, in a description made from frames."""
        card = rng.choice(self.cards)
        nouns = rng.choice(self.cards) if rng.random() < 0.25 else card
        labels = rng.sample(card.labels, rng.randint(2, len(card.labels)))
        if rng.random() < 0.25:
            others = [rng.choice(rng.choice(self.cards).labels) for _ in range(rng.randint(1, 3))]
            labels = _distinct([*labels, *others])
        explain = rng.choices(("description", "meaning", "both", "partly", "none"), (35, 25, 10, 10, 20))[0]
        names = [label.name for label in labels]
        if explain not in ("partly", "none") and rng.random() < 0.45:
            names = self.label_names(rng, len(labels))
        glosses = [label.gloss for label in labels]
        input_, inputs, domain, aspect = nouns.input, nouns.inputs, nouns.domain, nouns.aspect
        if rng.random() < 0.4:
            input_, inputs = self.input_noun(rng)
        if rng.random() < 0.4:
            domain = self.fill_words(rng, rng.choice(self.frames["domain_patterns"]))
        if rng.random() < 0.4:
            aspect = self.fill_words(rng, rng.choice(self.frames["aspect_patterns"]))
        own = nouns is card and input_ == card.input
        texts = [list(label.texts) if own else [] for label in labels]
        return self._composed(
            rng, card.task, input_, inputs, domain, aspect, names, glosses, texts, explain, "composed"
        )

    def random_scene(self, rng: random.Random) -> Scene:
        """Everything made up: nouns, labels and explanations from random words."""
        input_, inputs = self.input_noun(rng)
        domain = self.fill_words(rng, rng.choice(self.frames["domain_patterns"]))
        aspect = self.fill_words(rng, rng.choice(self.frames["aspect_patterns"]))
        names = self.label_names(rng, rng.choice((2, 2, 2, 3, 3, 4, 4, 5, 6, 7)))
        explain = rng.choices(("description", "meaning", "both", "none"), (40, 30, 10, 20))[0]
        if explain == "none":
            names = _distinct([self.word(rng) for _ in names]) if len(names) > 1 else names
            if len(names) < 2:
                names = ["yes", "no"]
        patterns = self.frames[rng.choice(("np_glosses", "np_glosses", "clause_glosses"))]
        if rng.random() < 0.25:
            patterns = [rng.choice(patterns)]
        glosses = [self.fill_words(rng, rng.choice(patterns)).replace("{input}", input_) for _ in names]
        return self._composed(
            rng, "text-classification", input_, inputs, domain, aspect, names, glosses, [[] for _ in names], explain,
            "random",
        )  # fmt: skip

    def opinion_scene(self, rng: random.Random) -> Scene:
        """Judgements of things: the label text names the thing ("a great hotel")."""
        frames = self.frames
        thing = rng.choice(frames["things"]) if rng.random() < 0.55 else self.word(rng)
        input_, inputs = (pattern.format(thing=thing) for pattern in rng.choice(frames["opinion_inputs"]))
        domain = rng.choice((f"{thing} users", f"a site on {thing}s", "customer opinion"))
        aspect = rng.choice(frames["opinion_aspects"])
        scale = rng.choice(frames["scales"])
        levels = _LEVELS[len(scale)]
        column = rng.randrange(min(len(names) for names in scale))
        same = rng.random() < 0.4
        names = [level[column] if same else rng.choice(level) for level in scale]
        pairs = list(zip(names, levels, strict=True))
        if rng.random() < 0.5:
            rng.shuffle(pairs)
        names = [name for name, _ in pairs]
        options = [[text.format(thing=thing) for text in frames["opinions"][level]] for _, level in pairs]
        opening = rng.choice(frames["opinion_openings"] + frames["openings"][:12])
        slots = self.slots(rng, input_, inputs, domain, aspect, names) | {"thing": thing}
        parts = [fill(opening, slots)]
        if thing not in parts[0]:
            parts.append(fill("{Inputs} in English.", slots))
        if rng.random() < 0.4:
            parts.append(fill(rng.choice(frames["label_sentences"]), slots))
        description = self.with_distractors(rng, parts)

        def label_texts(draw: random.Random) -> list[str]:
            return [draw.choice(phrases) for phrases in options]

        card = self.dataset_card(rng, "text-classification", [thing, input_, aspect], description, names, [])
        return Scene(card, input_, inputs, domain, aspect, label_texts, source="opinion")

    def _from_description(self, rng: random.Random, card: CardEntry, source: str) -> Scene:
        index = rng.randrange(len(card.descriptions))
        meaning = rng.random() < (0.3 if index == 0 else 0.5)
        explained = index == 0 or meaning
        labels = list(card.labels)
        if rng.random() < 0.5:
            rng.shuffle(labels)
        names = [label.name for label in labels]

        def label_texts(draw: random.Random) -> list[str]:
            if explained and draw.random() < 0.75:
                return self.from_glosses(draw, card.input, card.domain, names, [label.gloss for label in labels])
            if explained:
                return [draw.choice(label.texts) for label in labels]
            if draw.random() < 0.6 or not all(map(_is_word, names)):
                return self.from_knowledge(draw, card.input, card.domain, labels)
            return self.from_names(draw, card.input, card.domain, card.aspect, names)

        meanings = [label.gloss for label in labels] if meaning else []
        description = card.descriptions[index]
        if rng.random() < 0.15:
            description = self.with_distractors(rng, [description])
        shown = self.dataset_card(rng, card.task, [card.name], description, names, meanings, keep=card.name)
        return Scene(shown, card.input, card.inputs, card.domain, card.aspect, label_texts, card.prefixes, source)

    def _composed(
        self, rng: random.Random, task: str, input_: str, inputs: str, domain: str, aspect: str, names: Sequence[str],
        glosses: Sequence[str], texts: Sequence[Sequence[str]], explain: str, source: str,
    ) -> Scene:  # fmt: skip
        """A scene in which every sentence of the description is made from a frame."""
        frames = self.frames
        slots = self.slots(rng, input_, inputs, domain, aspect, names)
        openings = frames["pair_openings"] if "pair" in task and rng.random() < 0.8 else frames["openings"]
        parts = [fill(text, slots) for text in rng.sample(openings, rng.choice((1, 1, 1, 2)))]
        told = [True] * len(names)
        if explain == "partly":
            told = [rng.random() < 0.6 for _ in names]
        if explain in ("description", "both", "partly"):
            pairs = [(name, gloss) for name, gloss, tell in zip(names, glosses, told, strict=True) if tell]
            if pairs:
                parts.append(self.gloss_part(rng, pairs, slots))
        elif rng.random() < 0.5:
            parts.append(fill(rng.choice(frames["label_sentences"]), slots))
        description = self.with_distractors(rng, parts)
        meanings = list(glosses) if explain in ("meaning", "both") else []
        card = self.dataset_card(rng, task, [input_, domain, aspect], description, names, meanings)

        def label_texts(draw: random.Random) -> list[str]:
            if explain == "none":
                if all(texts) and (draw.random() < 0.6 or not all(map(_is_word, names))):
                    entries = [LabelEntry(*row) for row in zip(names, glosses, map(tuple, texts), strict=True)]
                    return self.from_knowledge(draw, input_, domain, entries)
                return self.from_names(draw, input_, domain, aspect, names)
            if all(texts) and draw.random() < 0.15:
                return [draw.choice(options) for options in texts]
            known = self.from_glosses(draw, input_, domain, names, glosses)
            if all(told):
                return known
            bare = self.from_names(draw, input_, domain, aspect, names)
            return [a if tell else b for a, b, tell in zip(known, bare, told, strict=True)]

        return Scene(card, input_, inputs, domain, aspect, label_texts, source=source)

    # Parts ------------------------------------------------------------------------------------------

    def word(self, rng: random.Random) -> str:
        """A random word: of the open list, of the cards' nouns, or made up."""
        draw = rng.random()
        if draw < 0.6:
            return rng.choice(self.words)
        return rng.choice(self.nouns) if draw < 0.85 else pseudo_word(rng)

    def fill_words(self, rng: random.Random, pattern: str) -> str:
        return re.sub(r"\{w\d?\}", lambda _: self.word(rng), pattern)

    def input_noun(self, rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.25:
            card = rng.choice(self.cards)
            return card.input, card.inputs
        one, many = rng.choice(self.frames["input_nouns"])
        if rng.random() < 0.6:
            word = self.word(rng)
            return f"{word} {one}", f"{word} {many}"
        return one, many

    def label_names(self, rng: random.Random, count: int) -> list[str]:
        """Names that do not say what they mean: codes, numbers, made-up or unrelated words."""
        style = rng.randrange(9)
        if style == 0:
            letter = rng.choice("ABCKLMPRSTX")
            return [f"{letter}{i + 1}" for i in range(count)]
        if style == 1:
            stub = rng.choice(("cat", "class", "label", "type", "group", "topic", "code"))
            return [f"{stub}_{i + 1}" for i in range(count)]
        if style == 2:
            start = rng.choice((0, 1, 10))
            return [str(start + i) for i in range(count)]
        if style == 3:
            return [chr(ord("A") + i) for i in range(count)]
        if style == 4:
            return _distinct([pseudo_word(rng).upper()[:4] for _ in range(count * 3)])[:count]
        if style == 5:
            return _distinct([f"{self.word(rng)}_{self.word(rng)}" for _ in range(count * 2)])[:count]
        if style == 6:
            return _distinct([pseudo_word(rng) for _ in range(count * 2)])[:count]
        names = _distinct([self.word(rng) for _ in range(count * 2)])[:count]
        return [capitalised(name) for name in names] if rng.random() < 0.3 else names

    def from_glosses(
        self, rng: random.Random, input_: str, domain: str, names: Sequence[str], glosses: Sequence[str]
    ) -> list[str]:
        """One way of saying it for all labels: as explained, or wrapped."""
        noun_like = all(_is_noun_phrase(gloss) for gloss in glosses)
        pattern = rng.choice(self.frames["np_wraps" if noun_like else "clause_wraps"])
        if "{label}" in pattern and not all(map(_is_word, names)):
            pattern = "{gloss}"
        slots = {"input": input_, "a_input": with_article(input_), "domain": domain}
        pairs = zip(map(_spoken, names), glosses, strict=True)
        return [fill(pattern, slots | {"label": name, "gloss": gloss}) for name, gloss in pairs]

    def from_knowledge(self, rng: random.Random, input_: str, domain: str, labels: Sequence[LabelEntry]) -> list[str]:
        """What the label's name alone does not say; rests on the name where it is a word."""
        texts = [rng.choice((*label.texts, label.gloss)) for label in labels]
        if rng.random() < 0.45 or not all(_is_word(label.name) for label in labels):
            return texts
        pattern = rng.choice(self.frames["known_wraps"])
        slots = {"input": input_, "a_input": with_article(input_), "domain": domain}
        return [fill(pattern, slots | {"label": _spoken(la.name), "text": text})
                for la, text in zip(labels, texts, strict=True)]  # fmt: skip

    def from_names(self, rng: random.Random, input_: str, domain: str, aspect: str, names: Sequence[str]) -> list[str]:
        pattern = rng.choice(self.frames["name_wraps"])
        slots = {"input": input_, "a_input": with_article(input_), "domain": domain}
        slots |= {"aspect": without_article(aspect)}
        return [fill(pattern, slots | {"label": _spoken(name)}) for name in names]

    def slots(
        self, rng: random.Random, input_: str, inputs: str, domain: str, aspect: str, names: Sequence[str]
    ) -> dict[str, str]:
        aspect, bare_domain, count = without_article(aspect), without_article(domain), len(names)
        number = _NUMBERS[count] if count < len(_NUMBERS) and rng.random() < 0.5 else str(count)
        slots = {
            "input": input_, "inputs": inputs, "domain": domain, "aspect": aspect, "a_input": with_article(input_),
            "n": number, "labels": ", ".join(names), "labels_and": enumeration(names, "and"),
            "labels_or": enumeration(names, "or"),
        }  # fmt: skip
        slots |= {capitalised(key): capitalised(text) for key, text in slots.items()}
        return slots | {"dom": bare_domain, "Domain": capitalised(bare_domain)}

    def gloss_part(self, rng: random.Random, pairs: Sequence[tuple[str, str]], slots: Mapping[str, str]) -> str:
        if rng.random() < 0.25:
            pattern = rng.choice(self.frames["gloss_own_sentence"])
            own = [fill(pattern, {**slots, "label": name, "Label": name, "gloss": gloss}) for name, gloss in pairs]
            return capitalised(" ".join(own))
        item, separator, last = rng.choice(self.frames["gloss_styles"])
        items = [item.replace("{label}", name).replace("{gloss}", gloss) for name, gloss in pairs]
        listed = items[0] if len(items) == 1 else separator.join(items[:-1]) + last + items[-1]
        sentence = rng.choice(self.frames["gloss_sentences"])
        return capitalised(fill(sentence, {**slots, "glosses": listed}))

    def with_distractors(self, rng: random.Random, parts: Sequence[str]) -> str:
        count = rng.choice((0, 0, 0, 1, 1, 2, 3, 5))
        year = rng.randint(1975, 2025)
        slots = {
            "year": str(year), "year2": str(year + rng.randint(1, 9)), "count": str(rng.randint(2, 60) * 10),
            "percent": str(rng.randint(30, 95)), "percent2": str(rng.randint(1, 12)),
            "small": rng.choice((*_NUMBERS[2:], "12", "15", "23")), "small2": str(rng.randint(1, 9)),
        }  # fmt: skip
        extra = [fill(text, slots) for text in rng.sample(self.frames["distractors"], count)]
        sentences = list(parts)
        for sentence in extra:
            sentences.insert(rng.randint(1 if rng.random() < 0.9 else 0, len(sentences)), sentence)
        return " ".join(sentences)

    def dataset_card(
        self, rng: random.Random, task: str, sources: Sequence[str], description: str, names: Sequence[str],
        meanings: Sequence[str], keep: str = "",
    ) -> DatasetCard:  # fmt: skip
        if keep and rng.random() < 0.6:
            name = keep
        elif rng.random() < 0.4:
            name = "-".join(self.word(rng) for _ in range(rng.randint(1, 2)))
        else:
            words = content_words(" ".join(sources)) or [self.word(rng)]
            name = "-".join(rng.sample(words, min(len(words), rng.randint(1, 3))))
        if rng.random() < 0.2:
            name += rng.choice(("-2", "-small", "-v1", "-en", "-set", "-data"))
        training = rng.choice((8, 16, 32, 64, 100)) * len(names) if rng.random() < 0.4 else rng.randint(12, 9000)
        meanings = meanings or [""] * len(names)
        return DatasetCard(
            name=name.lower(), task=task, description=description,
            labels=tuple(Label(a, b) for a, b in zip(names, meanings, strict=True)), training_rows=training,
            validation_rows=rng.choice((0, 0, training // 10, rng.randint(10, 900))),
            test_rows=rng.choice((0, rng.randint(10, 3000), 500, 1000)),
        )  # fmt: skip


class _Substitution:
    """Replaces words and their plurals, keeps capitals, mends the article before them."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.mapping = dict(mapping)
        listed = "|".join(sorted(map(re.escape, self.mapping), key=len, reverse=True))
        self.pattern = re.compile(rf"(?i)\b(?:(an?)(\s+))?({listed})(s|es)?(?![A-Za-z])") if listed else None

    def __call__(self, text: str) -> str:
        return self.pattern.sub(self._replace, text) if self.pattern else text

    def _replace(self, match: re.Match[str]) -> str:
        article, space, word, plural = match.groups()
        new = self.mapping[word.lower()]
        if plural:
            new = new if new.endswith("s") else f"{new}s"
        if word.isupper() and len(word) > 1:
            new = new.upper()
        elif word[0].isupper():
            new = capitalised(new)
        if not article:
            return new
        fixed = "an" if new[:1].lower() in "aeiou" else "a"
        return f"{capitalised(fixed) if article[0].isupper() else fixed}{space}{new}"


def _is_noun_phrase(gloss: str) -> bool:
    """Whether "about …" can stand before it: no finite verb among its first words (a rough guess)."""
    start = re.findall(r"[a-z']+", gloss.lower())[:5]
    first = start[0] if start else ""
    if first not in {"a", "an", "the", "how", "what", "who", "which", "where", "when"} and not first.endswith("ing"):
        return False
    return not set(start) & _FINITE_VERBS


def _spoken(name: str) -> str:
    return re.sub(r"[_\-]+", " ", name)


def _is_word(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z _\-/']{2,}", name)) and not name.isupper()


def _distinct(items: Iterable[T]) -> list[T]:
    seen: dict[str, T] = {}
    for item in items:
        seen.setdefault((item.name if isinstance(item, LabelEntry) else str(item)).casefold(), item)
    return list(seen.values())
