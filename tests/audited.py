"""A small run over sentiment rows whose assistant says words that are nowhere else, and its copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import invoke
from samples import label_text_reply, merge, record_replies, sentiment_rows, write_config, write_jsonl

PREFIXES = ("Vorlax note:", "Quimbel of guests:", "", "Zandrik?", "Vorlax note:", "Plofter this is")
LABEL_TEXTS = {"bad": "a jurmish visit", "good": "a wexel evening"}
SAID = ("Vorlax", "Quimbel", "Zandrik", "Plofter", "jurmish", "wexel")
"""Words that stand in completions only."""


def train(folder: Path, backbone: Path, changes: dict[str, Any] | None = None) -> Path:
    """A run in `folder / "run"`, its data and the record that it replays beside it."""
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows())
    record_replies(folder / "record", [label_text_reply(LABEL_TEXTS)], PREFIXES)
    settings: dict[str, Any] = {
        "data": {"test": "test.jsonl"},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(backbone)},
        "search": {"rounds": 2},
    }
    config = write_config(folder / "guests.yaml", merge(settings, changes or {}))
    result = invoke("train", config, "--output", folder / "run")
    assert result.exit_code == 0, result.output
    (folder / "stdout").write_text(result.stdout, encoding="utf-8")
    return folder / "run"


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "audit.jsonl").read_text("ascii").splitlines()]


def files_with(folder: Path, words: Sequence[str]) -> list[str]:
    """Each file of the folder whose bytes hold one of the words."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.name for path in files if any(word.encode() in path.read_bytes() for word in words)]
