"""Small data of the tests, the configurations that use them, and recorded replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from commands import ROOT

from gpta_local.config import Config, load
from gpta_local.data.examples import Example
from gpta_local.observer import Observer
from gpta_local.record.history import History
from gpta_local.schema import (
    Ask,
    Completion,
    DatasetCard,
    DialogueGradientStep,
    Label,
    Message,
    ProposalFigures,
    Request,
    RequestKind,
    Round,
    Sampling,
    ScoredPrefix,
    Selection,
    StepVerdict,
)

QUICKSTART = ROOT / "configs" / "quickstart"
LABEL_TEXTS = {
    "appointments": "booking, moving or cancelling a visit to a doctor",
    "billing": "a question about an invoice, a claim or a refund",
    "prescriptions": "a refill of a medicine at a pharmacy",
    "test_results": "the result of a blood test or a scan",
    "medical_records": "a copy of records, a letter or a form",
    "nurse_advice": "symptoms and whether to come in",
    "technical_support": "trouble with the login, the app or a video link",
}
PREFIXES = ("Request:", "The patient wants", "Department for this message:")
CARD = DatasetCard(
    "restaurant",
    "text-classification",
    "What guests wrote.",
    (Label("bad", "an unhappy guest"), Label("good")),
)

SENTIMENT = [  # 24 rows of two classes
    ("the soup was cold and the waiter rude", "bad"),
    ("we will come back next week", "good"),
    ("never again", "bad"),
    ("best bread in town", "good"),
    ("an hour late and the wrong dish", "bad"),
    ("lovely garden, kind people", "good"),
    ("overpriced and bland", "bad"),
    ("the cake alone is worth the walk", "good"),
    ("my fork was dirty", "bad"),
    ("they even found a chair for the baby", "good"),
    ("the music hurt my ears", "bad"),
    ("fresh fish, fair price", "good"),
    ("they lost our booking", "bad"),
    ("I dream of that sauce", "good"),
    ("tastes like cardboard", "bad"),
    ("warm welcome on a wet day", "good"),
    ("the bill was wrong twice", "bad"),
    ("generous plates and quick service", "good"),
    ("smells of old oil", "bad"),
    ("the chef came out to say hello", "good"),
    ("hair in the salad", "bad"),
    ("perfect for a birthday", "good"),
    ("stale beer, stale jokes", "bad"),
    ("our new favourite", "good"),
]
PAIRS = [  # 16 rows of two classes
    ("A man plays a guitar.", "Somebody makes music.", "follows"),
    ("A man plays a guitar.", "The room is silent.", "contradicts"),
    ("Two dogs run on the beach.", "Animals are outdoors.", "follows"),
    ("Two dogs run on the beach.", "The dogs are asleep at home.", "contradicts"),
    ("She bought three red apples.", "She has fruit.", "follows"),
    ("She bought three red apples.", "She bought nothing.", "contradicts"),
    ("The train left at noon.", "The train has gone.", "follows"),
    ("The train left at noon.", "The train never left.", "contradicts"),
    ("It rained all night.", "The streets are wet.", "follows"),
    ("It rained all night.", "It was a dry night.", "contradicts"),
    ("The baby is sleeping.", "Nobody is up in the cradle.", "follows"),
    ("The baby is sleeping.", "The baby is crying loudly.", "contradicts"),
    ("He speaks French and Greek.", "He knows two languages.", "follows"),
    ("He speaks French and Greek.", "He speaks no language but English.", "contradicts"),
    ("The shop closes at six.", "At seven the shop is shut.", "follows"),
    ("The shop closes at six.", "The shop is open all night.", "contradicts"),
]


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of a quickstart file: train, validation or test."""
    lines = (QUICKSTART / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def examples(rows: Sequence[Mapping[str, str]], labels: Sequence[str] = tuple(LABEL_TEXTS)) -> list[Example]:
    return [Example((row["text"],), list(labels).index(row["label"])) for row in rows]


def sentiment_rows() -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in SENTIMENT]


def pair_rows() -> list[dict[str, str]]:
    return [{"text": first, "text_pair": second, "label": label} for first, second, label in PAIRS]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def merge(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with `changes` put in, section by section; None takes a key out."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), dict):
            merge(content[key], value)
        elif value is None:
            content.pop(key, None)
        else:
            content[key] = value
    return content


def write_config(path: Path, changes: Mapping[str, Any]) -> Path:
    """A configuration for `train.jsonl` beside it, changed. Servers are asked anew: their ports are used again by
    others."""
    content: dict[str, Any] = {
        "data": {"train": "train.jsonl"},
        "card": {"description": "What guests of a restaurant wrote about their visit."},
        "knowledge": {"example_texts": 0},
        "search": {"rounds": 1, "proposals": 3, "label_text_samples": 1, "max_prefix_tokens": 12},
        "training": {"steps": 2, "precision": "fp32"},
    }
    if changes.get("assistant", {}).get("backend") in ("openai", "vllm"):
        content["assistant"] = {"cache": False}
    path.write_text(yaml.safe_dump(merge(content, changes), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def config_of(folder: Path, rows: Sequence[Mapping[str, Any]], changes: Mapping[str, Any]) -> Config:
    """Write rows and configuration into `folder` and load them."""
    write_jsonl(folder / "train.jsonl", rows)
    return load(write_config(folder / "config.yaml", changes))


EXAMPLE_TEXTS = (
    "1. The steak was burnt and nobody said sorry\n"
    "2. we waited two hours for cold noodles\n"
    "3. so loud, so dear, so dull\n"
    "4. there was a fly in my tea\n"
    "5. the toilet had no light and no paper",
    "1. Thank you for a wonderful evening by the lake\n"
    "2. the dumplings melt on your tongue\n"
    "3. Our waiter sang for us!\n"
    "4. cheap, quick and very good\n"
    "5. I could eat that lemon pie every day",
)
"""A reply for each label of the sentiment rows."""


def label_text_reply(texts: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def record_replies(
    folder: Path, label_texts: Sequence[str], prefixes: Sequence[str], example_texts: Sequence[str] = ()
) -> Path:
    """A run directory that holds nothing but these replies, for the replay backend.

    Args:
        example_texts: replies of several lines, those for the first label first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / "history.sqlite")
    kinds: dict[RequestKind, Sequence[str]] = {
        "label-texts": label_texts,
        "example-texts": example_texts,
        "prefix": prefixes,
    }
    for kind, replies in kinds.items():
        completions = [Completion(text, "scripted") for text in replies]
        asking = history.add_request(1, Request(kind, (Message("user", "?"),)), Sampling())
        history.add_completions({asking: completions})
    history.close()
    return folder


class OneByOne:
    """An assistant that answers several requests one after the other."""

    checked = None

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        raise NotImplementedError

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        return [self.complete(ask.request, ask.n, ask.sampling) for ask in asks]


class Silent(Observer):
    """An observer of a run that remembers what it was told, and insists that stages end as announced."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.rounds: list[Round] = []
        self.verdicts: list[tuple[ProposalFigures, ProposalFigures, StepVerdict]] = []
        self.texts: list[tuple[ProposalFigures, ProposalFigures, StepVerdict]] = []
        self.steps: list[tuple[DialogueGradientStep, str]] = []
        self.selections: list[Selection] = []
        self.usable = 0
        self.left = 0

    def stage(self, title: str, steps: int) -> None:
        assert self.left == 0, f"the stage before {title!r} ended early"
        self.left = steps

    def advance(self) -> None:
        self.left -= 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def label_texts(self, chosen: Sequence[dict[str, str]], joined: int, usable: int, asked: int) -> None:
        self.usable = usable

    def round(self, entry: Round) -> None:
        self.rounds.append(entry)

    def judged(self, before: ProposalFigures, after: ProposalFigures, verdict: StepVerdict) -> None:
        self.verdicts.append((before, after, verdict))

    def texts_judged(self, before: ProposalFigures, after: ProposalFigures, verdict: StepVerdict) -> None:
        self.texts.append((before, after, verdict))

    def taught(self, step: DialogueGradientStep, refused: str) -> None:
        self.steps.append((step, refused))

    def selection(self, selection: Selection) -> None:
        self.selections.append(selection)


def scored(text: str, gain: float, standard_error: float = 0.0, rows: int = 8) -> ScoredPrefix:
    return ScoredPrefix(text, gain, standard_error, 1.0 - gain, rows)
