"""Deletes from a run what was said to the assistant and by it, and leaves what the run found.

Knows which files of a run hold such texts. What stays: the model with its prefix, figures, adapters,
the user's own words in the configuration, and the audit log, which holds digests. There are no rows
in a run to delete.

The order makes a purge that was interrupted one that can be run again: files first, the history,
which says that it is purged, then the log.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpta_local.errors import InputError
from gpta_local.record.audit import HEAD_KEY, Audit, history_digest, summary_digest
from gpta_local.record.cache import default_folder, forget
from gpta_local.record.entries import LOG, Finished, Written, read_log
from gpta_local.record.folder import (
    ADAPTERS_FOLDER,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    DRAFT,
    EXAMPLES_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    REPORTS,
    SUMMARY_FILE,
    as_text,
)
from gpta_local.record.history import GONE_MESSAGES, open_existing
from gpta_local.system.files import owner_only, write_whole

GONE = "(purged)"
DIALOGUES_FILE = "dialogues.jsonl"
"""What an adapter was taught, in its folder."""


@dataclass(frozen=True, slots=True)
class Purge:
    """What was deleted, by name, and what is left.

    `head`: the hash of the last entry of the audit log; empty where the run has none. `before`: when the
    texts were purged, if nothing was left to delete; otherwise empty.
    """

    requests: int
    completions: int
    deleted: list[str]
    rewritten: list[str]
    left: list[str]
    head: str
    before: str


@owner_only()
def purge(run: Path) -> Purge:
    """Delete the texts of requests and completions, and what holds their words.

    Raises:
        InputError: this is no run, or its summary is broken.
        OutputError: the run is still going on.
    """
    with ExitStack() as stack:
        history = stack.enter_context(closing(open_existing(run)))
        log = stack.enter_context(closing(Audit(run / LOG))) if (run / LOG).is_file() else None
        summary = _clean_summary(run / SUMMARY_FILE)
        prefix = str(summary.get("prefix", ""))
        forget(default_folder(), [messages for *_, messages in history.requests() if messages != GONE_MESSAGES])
        requests, completions = len(history.requests()), sum(map(len, history.texts().values()))
        before = history.purged() if log is None or log.last_event == "purged" else ""

        metrics = [path for path in (run / METRICS_FILE,) if path.is_file()]
        rewritten = [path for path in metrics if _rewrite(path, _clean_metrics(path, prefix))]
        if summary and _rewrite(run / SUMMARY_FILE, as_text(summary)):
            rewritten.append(run / SUMMARY_FILE)
        patterns = (f"{ADAPTERS_FOLDER}/**/{DIALOGUES_FILE}", f"{ADAPTERS_FOLDER}/*.log", DRAFT, EXAMPLES_FILE, REPORTS)
        said = sorted(path for pattern in patterns for path in run.glob(pattern))
        for path in said:
            path.unlink()
        names = {path.relative_to(run).as_posix() for path in said}
        if log and not before:
            names |= _told_of(run)
        history.purge(prefix)
        if rewritten or names:
            before = ""
        if log and not before:
            digests = (summary_digest(summary) if summary else "", history_digest(history))
            log.purged(requests, completions, sorted(names), metrics, *digests)
        if log and summary:
            _rewrite(run / SUMMARY_FILE, as_text(summary | {HEAD_KEY: log.head}))
        written = [path.name for path in rewritten]
        left, head = _left(run, prefix), log.head if log else ""
        return Purge(requests, completions, sorted(names), written, left, head, before)


def _told_of(run: Path) -> set[str]:
    """The dialogues and example texts of which the log tells; a purge that was interrupted may have deleted them."""
    written = [line.entry for line in read_log(run) if isinstance(line.entry, Written | Finished)]
    return {name for entry in written for name in entry.files if Path(name).name in (DIALOGUES_FILE, EXAMPLES_FILE)}


def _clean_summary(path: Path) -> dict[str, Any]:
    """What the summary holds, without label texts, templates, prefixes other than the one that is shipped, and
    words of a server that failed. Empty where the run did not finish."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        kept, selection = ("", summary["prefix"]), summary["selection"]
        contestants = [{**c, "text": c["text"] if c["text"] in kept else GONE} for c in selection["contestants"]]
        gone = {"label_texts": [], "templates": [], "selection": {**selection, "contestants": contestants}}
        ended_by = summary.get("ended_by")  # "reason: what the server said"; or a budget, or nothing
        return {**summary, **gone, "ended_by": ended_by and ended_by.partition(": ")[0]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _rewrite(path: Path, text: str) -> bool:
    """Give the file this content, all or nothing. Returns whether it had another."""
    if path.read_bytes() == text.encode("utf-8"):
        return False
    write_whole(path, text)
    return True


def _left(run: Path, prefix: str) -> list[str]:
    """What is there after a purge, and what it holds."""
    shipped = f"the prefix {prefix!r} inside" if prefix else "no prefix inside"
    known = {
        MODEL_FOLDER: f"the trained model, {shipped}",
        SUMMARY_FILE: "label names, your description, gains and figures",
        CONFIG_FILE: "the configuration with your description",
        HISTORY_FILE: "gains, counts, times; the card with your description",
        METRICS_FILE: "losses of training",
        PREDICTIONS_FILE: "labels of the rows that the model was measured on; digests of these rows",
        ADAPTERS_FOLDER: "adapters of the assistant; trained on the texts, they may say some of their words",
        CHECKPOINTS_FOLDER: "weights of the training that was stopped",
        LOG: "the audit log: digests, versions, counts",
    }
    return [f"{name}: {what}" for name, what in known.items() if (run / name).exists()]
