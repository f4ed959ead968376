"""Is the audit log of a run in order, and are texts and files those that it tells of?

Knows logs, histories and the files of a run. Changes nothing. Who writes a log anew from its first
line, or cuts off its end together with the summary, is seen only by its head, noted down elsewhere.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpta_local.errors import GptaError
from gpta_local.record import entries
from gpta_local.record.audit import HEAD_KEY, file_digest, history_digest, summary_digest, text_digest
from gpta_local.record.entries import GENESIS, AnyEntry, Files, Finished, Line, Purged, TextDigest, Torn, read_log
from gpta_local.record.history import GONE_MESSAGES, GONE_TEXT, open_existing
from gpta_local.system.files import files_below

Whole = Sequence[tuple[int, AnyEntry]]
"""Each whole entry with the number of its line."""


class Problem(NamedTuple):
    """What is wrong, and at which line of the log; 0 where no line tells of it."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line} {self.what}" if self.line else self.what


@dataclass(frozen=True, slots=True)
class Findings:
    """`head`: the hash of the last whole entry. `notes` are no problems, but good to know."""

    entries: list[AnyEntry]
    problems: list[Problem]
    notes: list[str]
    head: str


def verify(run: Path, noted_head: str = "") -> Findings:
    """Check the chain of the log, its beginning and end, the texts of the history, the files of the run.

    Args:
        noted_head: a hash that was noted down, when the run or a purge ended; empty if none was.

    Raises:
        InputError: there is no log here.
    """
    lines = read_log(run)
    whole = [(line.number, line.entry) for line in lines if line.entry is not None]
    found: list[Problem | str] = [*check_chain(lines), *check_ends(whole)]
    if noted_head:
        found.append(_check_head(whole, noted_head))
    found += [*_check_texts(run, whole), *_check_files(run, whole), *_check_summary(run, whole)]
    return Findings(
        entries=[entry for _, entry in whole],
        problems=[one for one in found if isinstance(one, Problem)],
        notes=[one for one in found if isinstance(one, str)],
        head=whole[-1][1].hash if whole else GENESIS,
    )


def check_chain(lines: Sequence[Line]) -> list[Problem]:
    """Every line that was changed, and every place where the next entry is not the next."""
    problems: list[Problem] = []
    number, previous = 0, GENESIS
    broken: list[Line] = []  # since the last whole entry
    for line in lines:
        entry = line.entry
        if entry is None:
            broken.append(line)
            continue
        if isinstance(entry, Torn) and entry.lines == [entries.torn_line(b) for b in broken]:
            broken = []
        problems += [Problem(b.number, b.problem) for b in broken]
        expected = number + len(broken) + 1
        if entry.number > expected:
            missing = f"entry {expected} is" if entry.number == expected + 1 else f"entries {expected} to "
            missing += "" if entry.number == expected + 1 else f"{entry.number - 1} are"
            problems.append(Problem(line.number, f"holds entry {entry.number}: {missing} missing before it"))
        elif entry.number < expected:
            problems.append(Problem(line.number, f"holds entry {entry.number} again, or not in its place"))
        elif not broken and entry.previous != previous:
            what = f"does not continue line {line.number - 1}: one of the two was changed"
            problems.append(Problem(line.number, what))
        number, previous, broken = entry.number, entry.hash, []
    return problems + [Problem(b.number, b.problem) for b in broken]


def check_ends(whole: Whole) -> Iterator[Problem]:
    """A log begins with the start of a run; after its end come only purges."""
    first = next((entry for _, entry in whole if not isinstance(entry, Torn)), None)
    if not isinstance(first, entries.Started):
        yield Problem(whole[0][0] if whole else 1, "is not the start of a run")
    finished = False
    for number, entry in whole:
        if finished and not isinstance(entry, Purged | Torn):
            yield Problem(number, "comes after the end of the run")
        finished = finished or isinstance(entry, Finished)
    if not finished:
        after = whole[-1][0] if whole else 0
        yield Problem(after + 1, "should tell of the end of the run: it did not finish, or the end was cut off")


def _check_head(whole: Whole, noted: str) -> Problem | str:
    place = next((number for number, entry in whole if entry.hash == noted), None)
    if place is None:
        return Problem(0, "no entry has the noted head: the end was cut off, or all was written anew")
    later = ", ".join(f"line {number} ({entry.event})" for number, entry in whole if number > place)
    return f"the noted head is that of line {place}" + (f"; after it came {later}" if later else ", the last")


def _check_texts(run: Path, whole: Whole) -> Iterator[Problem | str]:
    try:
        history = open_existing(run)
        requests = {number: (about, messages) for number, *about, messages in history.requests()}
        texts, purged, digest_here = history.texts(), history.purged(), history_digest(history)
        history.close()
    except (GptaError, sqlite3.Error) as exc:
        yield Problem(0, f"the texts cannot be checked: {exc}")
        return
    logged = [entry for _, entry in whole if isinstance(entry, Purged)]
    if logged:
        yield f"the texts of requests and completions are gone: purged {logged[-1].time}"
    elif purged:
        yield Problem(0, f"the texts were purged {purged}, and the log does not say so: run gpta-local purge again")

    told = [(line, entry.history) for line, entry in whole if isinstance(entry, Finished | Purged)]
    for line, there in told:
        if there.figures != digest_here.figures:
            yield Problem(line, "tells of other figures than are in the history")
    if told and told[-1][1].results != digest_here.results and (logged or not purged):
        yield Problem(told[-1][0], "tells of other prefixes, label texts or results than are in the history")

    def kept(digest: TextDigest, text: object, gone: str) -> bool:
        if not isinstance(text, str):  # a BLOB
            return False
        there = text_digest(text)
        same = (there.sha256, there.characters) == (digest.sha256, digest.characters)
        return same or (bool(logged or purged) and text == gone)

    for line, entry in whole:
        if isinstance(entry, entries.Asked):
            if entry.request not in requests:
                yield Problem(line, f"tells of request {entry.request}, which is not in the history")
                continue
            about, messages = requests.pop(entry.request)
            if about != [entry.round, entry.kind, entry.adapter] or not kept(entry.text, messages, GONE_MESSAGES):
                yield Problem(line, f"tells of another request {entry.request} than is in the history")
        elif isinstance(entry, entries.Answered):
            replies = texts.pop(entry.request, [])
            if len(replies) != len(entry.completions):
                counts = f"{len(entry.completions)} completions of request {entry.request}"
                yield Problem(line, f"tells of {counts}; the history holds {len(replies)}")
            for place, (digest, text) in enumerate(zip(entry.completions, replies, strict=False), start=1):
                if not kept(digest, text, GONE_TEXT):
                    what = f"tells of another completion {place} of request {entry.request} than is in the history"
                    yield Problem(line, what)
    for number in requests:
        yield Problem(0, f"the history holds request {number}, of which the log does not tell")
    for number in texts:
        yield Problem(0, f"the history holds completions of request {number}, of which the log does not tell")


def _check_files(run: Path, whole: Whole) -> Iterator[Problem]:
    """By what was written last under a name. Only what a purge deleted may be gone."""
    known: Files = {}
    lines: dict[str, int] = {}
    folders: set[str] = set()
    for line, entry in whole:
        if isinstance(entry, entries.Started | entries.Written | Finished | Purged):
            known |= entry.files
            lines |= dict.fromkeys(entry.files, line)
        if isinstance(entry, entries.Written):
            folders.add(entry.folder)
        if isinstance(entry, Purged):
            known = {name: digest for name, digest in known.items() if name not in entry.deleted}
    for name, digest in known.items():
        if not (run / name).is_file():
            yield Problem(lines[name], f"tells of {name}, which is not there any more")
            continue
        try:
            if file_digest(run / name) != digest:
                yield Problem(lines[name], f"tells of another file {name} than is here")
        except OSError as exc:
            yield Problem(lines[name], f"tells of {name}, which cannot be read: {exc.strerror}")
    for folder in sorted(folders):
        for path in files_below(run / folder):
            if (name := path.relative_to(run).as_posix()) not in known:
                yield Problem(0, f"{name} is here, and the log does not tell of it")


def _check_summary(run: Path, whole: Whole) -> Iterator[Problem]:
    ends = [(line, entry.summary) for line, entry in whole if isinstance(entry, Finished | Purged) and entry.summary]
    if not (run / "summary.json").is_file():
        if ends:
            yield Problem(ends[-1][0], "tells of summary.json, which is not there any more")
        return
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        head, digest = summary.get(HEAD_KEY), summary_digest(summary)
    except OSError as exc:
        yield Problem(0, f"summary.json cannot be read: {exc.strerror}")
        return
    except (ValueError, AttributeError, RecursionError):
        yield Problem(0, "summary.json is broken")
        return
    if head not in [entry.hash for _, entry in whole]:
        yield Problem(0, "no entry has the head that summary.json holds: the end of the log was cut off or changed")
    if ends and digest != ends[-1][1]:
        yield Problem(ends[-1][0], "tells of another summary.json than is here")
