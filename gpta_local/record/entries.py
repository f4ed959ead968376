"""The entries of an audit log, `audit.jsonl`, and how its lines are read back. Knows forms and hashes, no run.

A line is a JSON object in ASCII, keys sorted, without blanks. Its `hash` is the SHA-256 of the same
object without that key; its `previous` is the `hash` of the entry before, 64 zeros in the first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, TypeAdapter, ValidationError

from gpta_local.errors import InputError

LOG = "audit.jsonl"
GENESIS = "0" * 64


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileDigest(Form):
    sha256: str
    bytes: int


class TextDigest(Form):
    """Of the text in UTF-8."""

    sha256: str
    characters: int


class CompletionDigest(TextDigest):
    model: str
    finish_reason: str
    endpoint: str = ""
    """The address that gave it, of an assistant that has several; empty where the run was stopped before that was
    written."""


class HistoryDigest(Form):
    figures: str
    results: str
    """Of the texts that were read out of completions; a purge changes them."""


class TornLine(Form):
    line: int
    sha256: str


Files = dict[str, FileDigest]
"""By path: relative to the run, the data folder or the model folder."""


class Entry(Form):
    number: int
    """From 1 on."""
    time: str
    previous: str
    hash: str


class Started(Entry):
    event: Literal["started"]
    versions: dict[str, str]
    config: dict[str, Any]
    """Without the card, which is in config.yaml and in every request, and without the values of extra_body."""
    files: Files


class Resumed(Entry):
    """The run had stopped, and goes on. `unanswered`: the number of the request of which no answer is on record,
    and which is sent once more; 0 if there is none."""

    event: Literal["resumed"]
    versions: dict[str, str]
    unanswered: int


class Data(Entry):
    event: Literal["data"]
    split: str
    path: str
    files: Files


class Backbone(Entry):
    event: Literal["backbone"]
    path: str
    files: Files


class AssistantOpened(Entry):
    event: Literal["assistant"]
    backend: str
    model: str
    """The served name, the model folder, or the run that is replayed."""
    endpoint: str
    files: Files
    """Of a served model those of `assistant.weights`, none without it."""


class AdapterInUse(Entry):
    """From here on the assistant answers with this adapter; with none where `name` is empty."""

    event: Literal["adapter"]
    name: str
    path: str
    sha256: str


class Asked(Entry):
    """Written before the request is sent. `request` is its number in the history; `text` is the
    digest of its messages as they stand there."""

    event: Literal["request"]
    request: int
    round: int
    kind: str
    adapter: str
    completions: int
    sampling: dict[str, Any]
    text: TextDigest


class Answered(Entry):
    """What came back, in order: in the history the completions of `request` by their numbers. `cached`: whether they
    were given to an earlier asking, and kept; None where the run was stopped before that was written."""

    event: Literal["completions"]
    request: int
    cached: bool | None = None
    completions: list[CompletionDigest]


class CheckSent(Entry):
    """Written when the log opens: before that the assistant was asked whether it answers. `text` and `completions` as
    of a request; `asked`: how many were asked for. If the run asks the same, it uses these replies."""

    event: Literal["check"]
    kind: str
    asked: int
    sampling: dict[str, Any]
    text: TextDigest
    completions: list[CompletionDigest]


class Written(Entry):
    event: Literal["written"]
    folder: str
    files: Files


class Finished(Entry):
    event: Literal["finished"]
    requests: int
    completions: int
    files: Files
    summary: str
    """The digest of summary.json without its key `audit_head`."""
    history: HistoryDigest


class Purged(Entry):
    event: Literal["purged"]
    requests: int
    completions: int
    deleted: list[str]
    files: Files
    """Those that were written anew, without the texts."""
    summary: str
    """Empty where the run has none."""
    history: HistoryDigest


class Torn(Entry):
    """The lines after the last whole entry were not written to their ends; the chain goes on here."""

    event: Literal["torn"]
    lines: list[TornLine]


AnyEntry = Annotated[
    Started
    | Resumed
    | Data
    | Backbone
    | AssistantOpened
    | CheckSent
    | AdapterInUse
    | Asked
    | Answered
    | Written
    | Finished
    | Purged
    | Torn,
    Discriminator("event"),
]
ENTRY: TypeAdapter[AnyEntry] = TypeAdapter(AnyEntry)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log. `entry` is None where it is no whole entry; `problem` says why."""

    number: int
    raw: bytes
    entry: AnyEntry | None
    problem: str = ""


def read_log(run: Path) -> list[Line]:
    """All lines of a run's log, whole entries or not.

    Raises:
        InputError: there is no log.
    """
    path = run / LOG
    if not path.is_file():
        raise InputError("no audit log here", where=str(path), fix="Give the directory of a run")
    return split_lines(path.read_bytes())


def split_lines(content: bytes) -> list[Line]:
    *ended, rest = content.split(b"\n")
    lines = [_read_line(number, raw) for number, raw in enumerate(ended, start=1)]
    return [*lines, Line(len(lines) + 1, rest, None, "is cut off in the middle")] if rest else lines


def _read_line(number: int, raw: bytes) -> Line:
    """Only the exact bytes of an entry are one: other blanks, another order of keys are a change."""
    try:
        fields = json.loads(raw)
        unchanged = canonical(fields) == raw and fields.pop("hash") == hex_digest(canonical(fields))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # no JSON, no object, no hash, too deep
        unchanged = False
    if not unchanged:
        return Line(number, raw, None, "was changed: it does not have its hash")
    try:
        return Line(number, raw, ENTRY.validate_json(raw))
    except ValidationError:
        return Line(number, raw, None, "is no entry that this version of gpta-local knows")


def torn_line(line: Line) -> TornLine:
    return TornLine(line=line.number, sha256=hex_digest(line.raw))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def hex_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
