"""What a report needs of what a run keeps: summary, history, audit log, losses. Reads no row of the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gpta_local.config import Config, load
from gpta_local.record import folder as run_folder
from gpta_local.record.entries import AnyEntry, Started, read_log
from gpta_local.record.history import History, open_existing
from gpta_local.schema import ExampleText, RequestKind, ScoredPrefix

UNSAID = ("assistant", "card", "privacy")
"""Sections of the configuration that a report does not list: it says what matters of them elsewhere."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Of one kind: requests, completions, and their tokens; None where the assistant did not count them all."""

    requests: int
    completions: int
    read: int | None
    written: int | None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`losses`: of each training, by its name in `metrics.jsonl`; `watched`: its steps, and the loss after each on some
    of the rows that the run is measured on. `prefixes`: from best to worst. `purged`: when the
    assistant's texts were, or ""."""

    summary: dict[str, Any]
    config: Config
    assistant: str
    environment: list[tuple[str, str]]
    losses: dict[str, list[float]]
    watched: dict[str, list[tuple[int, float]]]
    asked: dict[RequestKind, Asked]
    prefixes: list[ScoredPrefix]
    example_texts: list[ExampleText]
    purged: str

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Keys and values that are not the defaults."""
        changed = run_folder.flat(self.config.model_dump(mode="json", exclude_defaults=True))
        paths = {f"data.{split}" for split in ("train", "validation", "test")} | {"downstream.backbone"}
        return [
            (key, Path(value).name if key in paths and value else json.dumps(value, ensure_ascii=False))
            for key, value in changed.items()
            if key.partition(".")[0] not in UNSAID
        ]

    def without_paths(self, text: str) -> str:
        """With the names of the data files in place of where they lie."""
        data = self.config.data
        for path in filter(None, (data.train, data.validation, data.test)):
            text = text.replace(path, Path(path).name)
        return text


def read_record(run: Path) -> RunRecord:
    """
    Raises:
        InputError: there is no finished run.
    """
    summary = run_folder.summary(run)
    config = load(run / run_folder.CONFIG_FILE)
    entries = [line.entry for line in read_log(run) if line.entry is not None]
    with closing(open_existing(run)) as history:
        return RunRecord(
            summary=summary,
            config=config,
            assistant=_assistant(history) or config.assistant.backend,
            environment=list(_environment(entries, config, summary)),
            losses=_courses(run / run_folder.METRICS_FILE, "losses"),
            watched=_courses(run / run_folder.METRICS_FILE, "watched"),
            asked=_asked(history),
            prefixes=sorted(history.scored(), key=lambda s: s.gain, reverse=True),
            example_texts=run_folder.example_texts(run),
            purged=history.purged(),
        )


def _environment(entries: list[AnyEntry], config: Config, summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if started := next((entry for entry in entries if isinstance(entry, Started)), None):
        yield "from", f"{started.time[:19].replace('T', ' ')} UTC"
        yield "to", f"{entries[-1].time[:19].replace('T', ' ')} UTC"
        yield "versions", ", ".join(f"{name} {version}" for name, version in started.versions.items())
    yield "backbone", Path(config.downstream.backbone).name
    yield "search", f"{summary['regime']}, {summary['seconds']['search']:.0f} of {summary['seconds']['total']:.0f} s"
    yield "seed", str(config.seed)


def _courses(path: Path, key: str) -> dict[str, list[Any]]:
    """Of each training what stands under `key`."""
    found: dict[str, list[Any]] = {}
    for training, values in run_folder.json_lines(path, lambda line: (line["training"], line[key])):
        found.setdefault(training, []).extend(values)
    return found


def _assistant(history: History) -> str:
    """What it says that it is, in its completions; "" without any."""
    replies = [reply for kind in get_args(RequestKind) for reply in history.completions(kind)]
    return ", ".join(dict.fromkeys(Path(reply.model).name for reply in replies))


def _asked(history: History) -> dict[RequestKind, Asked]:
    kinds = [kind for _, _, kind, *_ in history.requests()]
    found: dict[RequestKind, Asked] = {}
    for kind in get_args(RequestKind):
        replies = history.completions(kind)
        read, written = ([getattr(c, name) for c in replies] for name in ("prompt_tokens", "completion_tokens"))
        if kind in kinds:
            found[kind] = Asked(
                kinds.count(kind),
                len(replies),
                None if None in read else sum(read),
                None if None in written else sum(written),
            )
    return found
