"""Deletes from a run what was said to the assistant and by it, and leaves what the run found.

Knows which files of a run hold such texts. What stays: the model with its prefix, figures, adapters,
the user's own words in the configuration, and the audit log, which holds digests. There are no rows
in a run to delete.

The order makes a purge that was interrupted one that can be run again: files first, the history,
which says that it is purged, then the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpta_local.errors import InputError
from gpta_local.history import open_existing
from gpta_local.privacy.audit import HEAD, LOG, Audit, summary_digest
from gpta_local.privacy.files import owner_only

GONE = "(purged)"


@dataclass(frozen=True, slots=True)
class Purge:
    """What was deleted, by name, and what is left. `head`: the hash of the last entry of the audit log;
    empty where the run has none."""

    requests: int
    completions: int
    deleted: list[str]
    rewritten: list[str]
    left: list[str]
    head: str


@owner_only()
def purge(run: Path) -> Purge:
    """Delete the texts of requests and completions, and what holds their words.

    Raises:
        InputError: this is no run, or its summary is broken.
        OutputError: the run is still going on.
    """
    with ExitStack() as stack:
        history = stack.enter_context(closing(open_existing(run / "history.sqlite")))
        log = stack.enter_context(closing(Audit(run / LOG))) if (run / LOG).is_file() else None
        summary = _clean_summary(run / "summary.json")
        prefix = str(summary.get("prefix", ""))
        requests, completions = len(history.requests()), sum(map(len, history.texts().values()))
        done_before = bool(history.purged()) and log is not None and log.last_event == "purged"

        metrics = [path for path in (run / "metrics.jsonl",) if path.is_file()]
        rewritten = [path for path in metrics if _rewrite(path, _clean_metrics(path, prefix))]
        if summary and _rewrite(run / "summary.json", _as_text(summary)):
            rewritten.append(run / "summary.json")
        taught = sorted([*run.glob("adapters/**/dialogues.jsonl"), *run.glob("adapters/*.log")])
        for path in taught:
            path.unlink()
        deleted = [path.relative_to(run).as_posix() for path in taught]
        history.purge(prefix)
        if log and (rewritten or deleted or not done_before):
            log.purged(requests, completions, deleted, metrics, summary_digest(summary) if summary else "")
        if log and summary:
            _rewrite(run / "summary.json", _as_text(summary | {HEAD: log.head}))
        names = [path.name for path in rewritten]
        return Purge(requests, completions, deleted, names, _left(run, prefix), log.head if log else "")


def _clean_summary(path: Path) -> dict[str, Any]:
    """What the summary holds, without label texts and without prefixes other than the one that is shipped.
    Empty where the run did not finish."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        kept, selection = ("", summary["prefix"]), summary["selection"]
        contestants = [{**c, "text": c["text"] if c["text"] in kept else GONE} for c in selection["contestants"]]
        return {**summary, "label_texts": [], "selection": {**selection, "contestants": contestants}}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputError("not a summary", where=str(path), fix="Delete it, and purge again") from exc


def _clean_metrics(path: Path, prefix: str) -> str:
    """The losses of training, without prefixes other than the one that is shipped. A line that is none, cut
    off in a crash, is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if (text := record["prefix"]) not in ("", prefix, GONE):
                record |= {"title": record["title"].replace(text, GONE), "prefix": GONE}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _rewrite(path: Path, text: str) -> bool:
    """Give the file this content, all or nothing. Returns whether it had another."""
    if path.read_bytes() == text.encode("utf-8"):
        return False
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _as_text(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=2, ensure_ascii=False) + "\n"


def _left(run: Path, prefix: str) -> list[str]:
    """What is there after a purge, and what it holds."""
    shipped = f"the prefix {prefix!r} inside" if prefix else "no prefix inside"
    known = {
        "model": f"the trained model, {shipped}",
        "summary.json": "label names, your description, gains and figures",
        "config.yaml": "the configuration with your description",
        "history.sqlite": "gains, counts, times; the card with your description",
        "metrics.jsonl": "losses of training",
        "adapters": "adapters of the assistant; trained on the texts, they may say some of their words",
        LOG: "the audit log: digests, versions, counts",
    }
    return [f"{name}: {what}" for name, what in known.items() if (run / name).exists()]
