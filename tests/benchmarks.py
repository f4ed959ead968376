"""A small benchmark of the tests: two sets, tiny models, recorded replies; and made-up results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from samples import (
    EXAMPLE_TEXTS,
    PAIRS,
    label_text_reply,
    merge,
    record_replies,
    sentiment_rows,
    write_config,
    write_jsonl,
)

from gpta_local.benchmark.suite import Shots
from gpta_local.benchmark.trials import Trial

GUEST_TEXTS = {"bad": "an unhappy guest", "good": "a happy guest"}
LEAKED = "Our chef came out to say hello twice"
"""An example text that shares six words in a row with a test row of the guests."""
PAIR_ROWS = [{"text": f"{a} {b}", "label": "bad" if label == "contradicts" else "good"} for a, b, label in PAIRS]
"""A second set with the labels of the first."""


def write_sets(folder: Path, backbone: Path) -> None:
    """`guests.yaml` and `scenes.yaml` with their rows, the first rows of each for training."""
    replies = record_replies(
        folder / "record",
        [label_text_reply(GUEST_TEXTS)],
        ["Opinion:", "The guest says:", "Room"],
        [EXAMPLE_TEXTS[0], f"{EXAMPLE_TEXTS[1]}\n6. {LEAKED}"],
    )
    for name, rows in (("guests", sentiment_rows()), ("scenes", PAIR_ROWS)):
        write_jsonl(folder / f"{name}-train.jsonl", rows[:12])
        write_jsonl(folder / f"{name}-test.jsonl", rows[12:])
        changes = {
            "data": {"train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"},
            "assistant": {"backend": "replay", "run": str(replies)},
            "downstream": {"backbone": str(backbone)},
            "knowledge": {"example_texts": 8},
            "privacy": {"leak_scan": {"words": 8}},
        }
        write_config(folder / f"{name}.yaml", changes)


def suite_content(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "sets": {
            "guests": {"config": "guests.yaml", "fixed_prefix": "Feeling:", "domain": "table"},
            "scenes": {"config": "scenes.yaml", "fixed_prefix": "Sense:"},
        },
        "tables": {"main": {"shots": [2], "samples": 1, "arms": ["plain", "label_texts", "gpta"]}},
    }
    return merge(content, changes or {})


def write_suite(folder: Path, changes: Mapping[str, Any] | None = None, name: str = "suite.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(suite_content(changes), sort_keys=False), encoding="utf-8")
    return path


def record(accuracy: float, **changes: Any) -> dict[str, Any]:
    """The line of a finished trial."""
    figures = {"accuracy": accuracy, "macro_f1": accuracy, "loss": 0.5}
    return {
        **figures,
        "rows": 100,
        "prefix": "",
        "train": {**figures, "accuracy": 1.0},
        "seconds": {"total": 20.0, "training": 5.0, "evaluation": 1.0},
        "digest": "d",
        "versions": {"gpta-local": "0"},
        "processes": 1,
        "finished": "2026-01-01T00:00:00+00:00",
        **changes,
    }


def arm(name: str, of: str, sample: int = 0, shots: Shots = 8) -> Trial:
    return Trial("arm", name, shots, sample, of)
