"""`gpta-local init`: a commented configuration written from a data file. Guesses columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from gpta_local.data.readers import (
    Record,
    read_records,
)
from gpta_local.errors import DataError
from gpta_local.system.models import EMBEDDED_ASSISTANT

LONGEST_LABEL = 200
"""Characters; a key of YAML has room for 1024."""
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "y")
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("question", "answer"),
)


def starter_config(path: Path) -> str:
    """A configuration for the data at `path`, with siblings named validation and test if there.
    Paths stay as given, so the configuration belongs into the folder that the user is in.

    Raises:
        DataError: if the file cannot be read, or no text or label column can be found.
    """
    records = read_records(str(path))
    label = _label_column(records, str(path))
    texts = _text_columns(records, label, str(path))
    values = [record.values.get(label) for record in records]
    if any(isinstance(value, list | dict) or len(str(value)) > LONGEST_LABEL for value in values):
        raise DataError(
            f"the column {label!r} holds lists or long texts, no labels",
            where=str(path),
            fix="Name the label column `label`",
        )
    names = sorted({str(value).strip() for value in values})
    if 2 * len(names) > len(records):
        raise DataError(
            f"the column {label!r} has {len(names)} different values in {len(records)} rows; it holds no labels",
            where=str(path),
            fix="Name the label column `label`",
        )
    siblings = {split: _sibling(path, split) for split in ("validation", "test")}
    pair = len(texts) == 2
    shots = "# shots: 8             # rows per class to train with; all rows if not given"

    def line(key: str, value: str | None, comment: str) -> str:
        start = f"  {key}: {_quoted(value)}" if value else f"  # {key}: {path.stem}-{key}{path.suffix}"
        return f"{start:<40} # {comment}"

    return "\n".join(
        [
            "# Made by `gpta-local init`. Fill in card.description, then: gpta-local train THIS_FILE",
            f"task: text{'-pair' if pair else ''}-classification",
            "",
            "data:                                    # paths are relative to this file",
            line("train", str(path), f"{len(records)} rows"),
            line("validation", siblings["validation"], "rows to choose the prefix on"),
            line("test", siblings["test"], "rows for the one evaluation at the end"),
            f"  text: {_quoted(texts[0])}",
            *([f"  text_pair: {_quoted(texts[1])}"] if pair else []),
            f"  label: {_quoted(label)}",
            f"  {shots}",
            "",
            "card:                                    # all that the assistant is told; it sees no row",
            f"  name: {_quoted(path.parent.resolve().name or path.stem)}",
            "  # What is one input? Who wrote it, where? What does the label say? Two or three sentences",
            "  # in your own words, without any private text.",
            '  description: ""',
            "  labels:                                # a meaning behind each helps; it may stay empty",
            *(f'    {_quoted(name)}: ""' for name in names),
            "",
            "assistant:                               # in this process; see README for vLLM and others",
            "  backend: local",
            f"  model: {EMBEDDED_ASSISTANT}",
            "",
            "downstream:",
            "  backbone: all-MiniLM-L6-v2             # or the path of a model folder",
            "",
            "seed: 0",
            "",
        ]
    )


def _label_column(records: Sequence[Record], where: str) -> str:
    columns = list(records[0].values)
    named = [name for name in LABEL_COLUMNS if name in columns]
    if named:
        return named[0]
    distinct = {name: len({str(record.values.get(name)) for record in records}) for name in columns}
    few = [name for name in columns if 2 <= distinct[name] <= min(50, max(2, len(records) // 3))]
    if not few:
        raise DataError(
            "no column looks like a label",
            where=where,
            fix=f"The columns are: {', '.join(columns)[:200]}; name one of them `label`",
        )
    return min(few, key=lambda name: distinct[name])


def _text_columns(records: Sequence[Record], label: str, where: str) -> list[str]:
    length = {
        name: sum(len(str(record.values.get(name) or "")) for record in records) / len(records)
        for name in records[0].values
        if name != label and isinstance(records[0].values[name], str)
    }
    if not length:
        raise DataError("no column holds text", where=where)
    for pair in PAIRS:
        if all(name in length for name in pair):
            return list(pair)
    return [max(length, key=lambda name: length[name])]


def _sibling(path: Path, split: str) -> str | None:
    for name in (split, {"validation": "dev", "test": "test"}[split]):
        for candidate in (path.with_name(name + path.suffix), path.with_name(path.name.replace("train", name))):
            if candidate != path and candidate.exists():
                return str(candidate)
    return None


def _quoted(value: str | None) -> str:
    """The value as a YAML scalar that reads back as this very string ("no" and "1" in quotes)."""
    return yaml.safe_dump(value, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
