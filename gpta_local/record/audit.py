"""The audit log of a run, `audit.jsonl`: an entry a line, appended and never changed, chained by SHA-256.

Knows when which entry is made. Their forms are in `entries`; whether a log is in order is the matter of
`verification`. The texts of requests and completions are in the history alone; entries hold their
digests, so that a purge deletes the texts and leaves the chain whole. Data files are read for their
digests, not for their rows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from gpta_local import __version__
from gpta_local.config import Config, EndpointConfig, LocalAssistantConfig
from gpta_local.errors import InputError, OutputError
from gpta_local.record import entries
from gpta_local.record.entries import GENESIS, LOG, FileDigest, Files, HistoryDigest, TextDigest, canonical, hex_digest
from gpta_local.record.folder import EXAMPLES_FILE, METRICS_FILE, PREDICTIONS_FILE
from gpta_local.record.history import History
from gpta_local.record.requests import as_json
from gpta_local.record.tables import NUMBERS, RESULTS
from gpta_local.schema import Checked, Completion, Request, Sampling
from gpta_local.system.adapters import ADAPTER_WEIGHTS, adapter_digest
from gpta_local.system.files import files_below, sha256
from gpta_local.system.library import assistant_folder
from gpta_local.system.manifests import LOADED
from gpta_local.system.models import backbone_folder

HEAD_KEY = "audit_head"
"""Key of the summary: the hash of the log's last entry."""
PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "trl", "peft", "accelerate"),
    *("datasets", "numpy", "openai"),
)
FIGURE_FILES = (METRICS_FILE, EXAMPLES_FILE, PREDICTIONS_FILE, "dialogue_gradient.png", "dialogue_gradient.svg")


class Audit:
    """Appends to a log; makes it where there is none. Every entry is on the disk when a method returns.

    Where the end of the log is torn, because the program or the machine stopped in the middle of a
    line, the chain goes on from the last whole entry, with an entry that says so.

    `requests`, `answered_requests`: the numbers of the requests of which the log tells that they were asked, and
    answered.

    Raises:
        OutputError: another process has the log open.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._adapter: Path | None = None
        self._adapter_digests: dict[Path, str] = {}
        self.requests: set[int] = set()
        self.answered_requests: set[int] = set()
        self._completions = 0
        self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._file.close()
            raise OutputError("another process is writing this log", where=str(path), fix="Wait for its end") from exc
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
            content += b"\n"
        lines = entries.split_lines(content)
        last = next((line for line in reversed(lines) if line.entry is not None), None)
        self.head, self._number, self.last_event = GENESIS, 0, ""
        self._known = [line.entry for line in lines if line.entry is not None]
        for entry in self._known:
            if isinstance(entry, entries.Asked):
                self.requests.add(entry.request)
            elif isinstance(entry, entries.Answered):
                self.answered_requests.add(entry.request)
                self._completions += len(entry.completions)
            elif isinstance(entry, entries.AdapterInUse):
                self._adapter = Path(entry.path) if entry.name else None
        if last is not None and last.entry is not None:
            self.head, self._number, self.last_event = last.entry.hash, last.entry.number, str(last.entry.event)
        if torn := lines[last.number if last else 0 :]:
            self._append("torn", lines=[entries.torn_line(line) for line in torn])

    def start(self, config: Config, unanswered: int = 0) -> list[str]:
        """Record what runs, on which data and model, and which assistant is asked; of a run that was stopped,
        that it goes on. Returns the packages that were of another version when it began.

        Args:
            unanswered: of a run that was stopped, the request that will be sent once more.

        Raises:
            InputError: a file is not the one that the run began with.
        """
        versions = {"gpta-local": __version__, "python": platform.python_version()}
        versions |= {package: metadata.version(package) for package in PACKAGES}
        files = file_digests(self._folder, [self._folder / "config.yaml"])
        sources = {(fields["event"], fields.get("split")): fields for fields in _sources(config)}
        begun = next((entry for entry in self._known if isinstance(entry, entries.Started)), None)
        if begun is None:
            settings = config.model_dump(mode="json", exclude={"card"})
            if extra := settings["assistant"].get("extra_body"):
                settings["assistant"]["extra_body"] = sorted(extra)
            self._append("started", versions=versions, config=settings, files=files)
        else:
            _refuse_changes(str(self._folder), begun.files, files)
            for entry in self._known:
                if isinstance(entry, entries.Data | entries.Backbone | entries.AssistantOpened):
                    fields = sources.pop((entry.event, getattr(entry, "split", None)))
                    _refuse_changes(fields.get("path") or fields["model"], entry.files, fields["files"])
            self._append("resumed", versions=versions, unanswered=unanswered)
        for fields in sources.values():
            self._append(**fields)
        self._known.clear()
        return [name for name, version in versions.items() if begun and begun.versions.get(name) != version]

    def asked(
        self, number: int, round_number: int, request: Request, n: int, sampling: Sampling, adapter: Path | None
    ) -> None:
        """Record a request that is about to be sent, and the adapter if it is another than before.

        Args:
            number: of the request in the history.
        """
        if adapter != self._adapter:
            self._adapter = adapter
            digest = self._digest_of(adapter) if adapter else ""
            name, path = (adapter.name, str(adapter)) if adapter else ("", "")
            self._append("adapter", name=name, path=path, sha256=digest)
        self.requests.add(number)
        self._append(
            "request",
            request=number,
            round=round_number,
            kind=request.kind,
            adapter=adapter.name if adapter else "",
            completions=n,
            sampling=asdict(sampling),
            text=text_digest(as_json(request)),
        )

    def checked(self, sent: Checked) -> None:
        """Record what was sent before there was a log."""
        ask = sent.ask
        self._append(
            "check",
            kind=ask.request.kind,
            asked=ask.n,
            sampling=asdict(ask.sampling),
            text=text_digest(as_json(ask.request)),
            completions=_digests(sent.completions),
        )

    def answered(self, request: int, completions: Sequence[Completion], cached: bool | None = None) -> None:
        """
        Args:
            cached: whether they were kept from an earlier asking; None: not known.
        """
        self.answered_requests.add(request)
        self._completions += len(completions)
        self._append("completions", request=request, cached=cached, completions=_digests(completions))

    def wrote(self, folder: Path) -> None:
        """Record all files of a folder of the run: the model, or an adapter."""
        files = file_digests(self._folder, files_below(folder))
        name = folder.relative_to(self._folder).as_posix()
        if weights := files.get(f"{name}/{ADAPTER_WEIGHTS}"):
            self._adapter_digests[folder] = weights.sha256
        self._append("written", folder=name, files=files)

    def finish(self, summary: Mapping[str, Any], history: HistoryDigest) -> str:
        """Record the end of the run, and close the log. Returns the hash of its last entry, without
        which nobody can see that the end was cut off or everything written anew."""
        files = file_digests(self._folder, [path for name in FIGURE_FILES if (path := self._folder / name).is_file()])
        self._append(
            "finished",
            requests=len(self.requests),
            completions=self._completions,
            files=files,
            summary=summary_digest(summary),
            history=history,
        )
        self.close()
        return self.head

    def purged(
        self,
        requests: int,
        completions: int,
        deleted: Sequence[str],
        rewritten: Iterable[Path],
        summary: str,
        history: HistoryDigest,
    ) -> None:
        """Record that the texts are gone, and what was deleted and written anew with them."""
        self._append(
            "purged",
            requests=requests,
            completions=completions,
            deleted=deleted,
            files=file_digests(self._folder, rewritten),
            summary=summary,
            history=history,
        )

    def close(self) -> None:
        self._file.close()

    def _digest_of(self, adapter: Path) -> str:
        if adapter not in self._adapter_digests:
            self._adapter_digests[adapter] = adapter_digest(adapter)
        return self._adapter_digests[adapter]

    def _append(self, event: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {"event": event, "number": self._number + 1, "time": time, "previous": self.head}
        entry = about | to_jsonable_python(fields)
        entry["hash"] = hex_digest(canonical(entry))
        line = canonical(entry) + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder / LOG))
        os.fsync(self._file.fileno())
        self.head, self._number, self.last_event = entry["hash"], self._number + 1, event


def text_digest(text: str) -> TextDigest:
    return TextDigest(sha256=hex_digest(text.encode("utf-8", "surrogatepass")), characters=len(text))


def _digests(completions: Iterable[Completion]) -> list[dict[str, Any]]:
    return [
        {**text_digest(c.text).model_dump(), "model": c.model, "finish_reason": c.finish_reason}
        | ({"endpoint": c.endpoint} if c.endpoint else {})
        for c in completions
    ]


def summary_digest(summary: Mapping[str, Any]) -> str:
    """Of what summary.json holds, but for the hash of the log's end, which is known only afterwards."""
    return hex_digest(canonical({key: value for key, value in summary.items() if key != HEAD_KEY}))


def history_digest(history: History) -> HistoryDigest:
    figures, results = (hex_digest(ascii(history.rows(queries)).encode()) for queries in (NUMBERS, RESULTS))
    return HistoryDigest(figures=figures, results=results)


def file_digest(path: Path) -> FileDigest:
    return FileDigest(sha256=sha256(path), bytes=path.stat().st_size)


def file_digests(base: Path, paths: Iterable[Path]) -> Files:
    """By paths relative to `base`."""
    return {path.relative_to(base).as_posix(): file_digest(path) for path in paths}


def _sources(config: Config) -> Iterator[dict[str, Any]]:
    """The fields of the entries on what a run reads: data, backbone, assistant."""
    for split in ("train", "validation", "test"):
        if path := getattr(config.data, split):
            yield {"event": "data", "split": split, "path": path, "files": _data_digests(Path(path))}
    backbone = backbone_folder(config.downstream.backbone)
    yield {"event": "backbone", "path": str(backbone), "files": _model_digests(backbone)}
    yield {"event": "assistant", **_assistant(config)}


def _refuse_changes(place: str, before: Files, now: Files) -> None:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            what = f"{name!r} is not the file that the run began with"
            raise InputError(what, where=place, fix="Put that one back, or begin a new run")


def _data_digests(path: Path) -> Files:
    """Of a file, or of every file of a folder that `datasets` saved."""
    return file_digests(path, files_below(path)) if path.is_dir() else file_digests(path.parent, [path])


def _model_digests(folder: Path) -> Files:
    """Of the files that a model is loaded from."""
    return file_digests(folder, (path for path in files_below(folder) if path.suffix in LOADED))


def _assistant(config: Config) -> dict[str, Any]:
    assistant = config.assistant
    if isinstance(assistant, EndpointConfig):
        model, endpoint = assistant.model, ", ".join(assistant.base_urls)
        files = _model_digests(Path(assistant.weights)) if assistant.weights else {}
    elif isinstance(assistant, LocalAssistantConfig):
        folder = assistant_folder(assistant.model)
        model, endpoint, files = str(folder), "", _model_digests(folder)
    else:
        run = Path(assistant.run)
        model, endpoint, files = str(run), "", file_digests(run, [run / "history.sqlite"])
    return {"backend": assistant.backend, "model": model, "endpoint": endpoint, "files": files}
