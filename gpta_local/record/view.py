"""The audit log for people: a line for each entry. Checks nothing; shows no control character."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gpta_local.errors import GptaError
from gpta_local.record import entries
from gpta_local.record.entries import LOG, AnyEntry, Files, read_log
from gpta_local.record.history import open_existing


def lines(run: Path, *, full: bool) -> Iterator[str]:
    """The log as lines of text, with `full` the texts of the history below their entries.

    Raises:
        InputError: there is no log, or (`full`) no history.
        GptaError: at the end, if no line was a whole entry.
    """
    log = read_log(run)
    gone = ""
    messages: dict[int, str] = {}
    replies: dict[int, list[str]] = {}
    if full:
        history = open_existing(run)
        messages = {number: text for number, *_, text in history.requests()}
        replies = history.texts()
        gone = "(purged)" if history.purged() else ""
        history.close()
    for line in log:
        if line.entry is None:
            yield f"line {line.number} {line.problem}"
            continue
        entry = line.entry
        yield printable(f"{entry.time[:19]}  {entry.event:<11}  {_describe(entry)}")
        if isinstance(entry, entries.Asked):
            yield from _indented(_dialogue(messages.get(entry.request, "[]")) or gone)
        elif isinstance(entry, entries.Answered):
            for place, text in enumerate(replies.get(entry.request, []), start=1):
                yield from _indented(f"{place}: {_text(text) or gone}")
    if not any(line.entry for line in log):
        raise GptaError("no whole entry is in this log", where=str(run / LOG), fix="Check it with audit verify")


def _describe(entry: AnyEntry) -> str:
    match entry:
        case entries.Started():
            versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
            return f"{versions}; config.yaml: {_sizes(entry.files)}"
        case entries.Resumed():
            again = f"; request {entry.unanswered} is sent once more" if entry.unanswered else ""
            return f"gpta-local {entry.versions['gpta-local']}{again}"
        case entries.Data():
            return f"{entry.split}: {entry.path}, {_sizes(entry.files)}"
        case entries.Backbone():
            return f"{entry.path}, {_sizes(entry.files)}"
        case entries.AssistantOpened():
            files = f", {_sizes(entry.files)}" if entry.files else ""
            return f"{entry.backend}: {entry.model}" + (f" at {entry.endpoint}" if entry.endpoint else "") + files
        case entries.AdapterInUse():
            return f"{entry.path}, weights {entry.sha256[:12]}" if entry.name else "none: the base model"
        case entries.Asked():
            adapter = f", adapter {entry.adapter}" if entry.adapter else ""
            size = f"{entry.text.characters} characters, {entry.text.sha256[:12]}"
            return f"{entry.request}, round {entry.round}: {entry.kind} × {entry.completions}{adapter}, {size}"
        case entries.CheckSent():
            size = f"{entry.text.characters} characters, {entry.text.sha256[:12]}"
            return f"sent before this log: {entry.kind} × {entry.asked}, {size}; {len(entry.completions)} came back"
        case entries.Answered():
            characters = sum(completion.characters for completion in entry.completions)
            kept = ", kept from an earlier asking" if entry.cached else ""
            return f"of request {entry.request}: {len(entry.completions)}, {characters} characters{kept}"
        case entries.Written():
            return f"{entry.folder}/: {_sizes(entry.files)}"
        case entries.Finished():
            return f"{entry.requests} requests, {entry.completions} completions"
        case entries.Purged():
            texts = f"the texts of {entry.requests} requests and {entry.completions} completions"
            return ", ".join([texts, *entry.deleted])
        case entries.Torn():
            return f"line {', '.join(str(line.line) for line in entry.lines)} was not written to its end"


def _sizes(files: Files) -> str:
    size = sum(digest.bytes for digest in files.values())
    digest = f", {next(iter(files.values())).sha256[:12]}" if len(files) == 1 else ""
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}, {size} bytes{digest}"


def _text(kept: object) -> str:
    return kept if isinstance(kept, str) else "(the history was changed: this is no text)"


def _dialogue(messages: str) -> str:
    """Messages as the history keeps them, a paragraph each; as they stand there if they were damaged."""
    try:
        return "\n".join(f"{message['role']}: {message['content']}" for message in json.loads(messages))
    except (ValueError, KeyError, TypeError, RecursionError):
        return _text(messages)


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"    {printable(line)}"


def printable(text: str) -> str:
    """What an assistant wrote, or who changed a run, must not steer a terminal."""
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)
