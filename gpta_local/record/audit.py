"""The audit log of a run, `audit.jsonl`: an entry a line, appended and never changed, chained by SHA-256.

Knows how entries are made, chained and read back. The texts of requests and completions are in the
history alone; entries hold their digests, so that a purge deletes the texts and leaves the chain
whole. Data files are read for their digests, not for their rows. Whether a log is in order is the
matter of `audit_verification`.

A line is a JSON object in ASCII, keys sorted, without blanks. Its `hash` is the SHA-256 of the same
object without that key; its `previous` is the `hash` of the entry before, 64 zeros in the first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, TypeAdapter, ValidationError

from gpta_local import __version__
from gpta_local.config import Config, EndpointConfig, LocalAssistantConfig
from gpta_local.errors import InputError, OutputError
from gpta_local.record.history import NUMBERS, RESULTS, History, as_json
from gpta_local.schema import Completion, Request, Sampling
from gpta_local.system.adapters import WEIGHTS, adapter_digest
from gpta_local.system.files import LOADED, files_below, sha256
from gpta_local.system.models import assistant_folder, backbone_folder

LOG = "audit.jsonl"
GENESIS = "0" * 64
HEAD = "audit_head"
"""Key of the summary: the hash of the log's last entry."""
PACKAGES = (
    *("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "trl", "peft", "accelerate"),
    *("datasets", "numpy", "openai"),
)
FIGURES = ("metrics.jsonl", "dialogue_gradient.png", "dialogue_gradient.svg")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileDigest(Part):
    sha256: str
    bytes: int


class TextDigest(Part):
    """Of the text in UTF-8."""

    sha256: str
    characters: int


class CompletionDigest(TextDigest):
    model: str
    finish_reason: str


class HistoryDigest(Part):
    figures: str
    results: str
    """Of the texts that were read out of completions; a purge changes them."""


class TornLine(Part):
    line: int
    sha256: str


Files = dict[str, FileDigest]
"""By path: relative to the run, the data folder or the model folder."""


class Entry(Part):
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
    """What came back, in order: in the history the completions of `request` by their numbers."""

    event: Literal["completions"]
    request: int
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
        lines = split_lines(content)
        last = next((line for line in reversed(lines) if line.entry is not None), None)
        self.head, self._number, self.last_event = GENESIS, 0, ""
        self._known = [line.entry for line in lines if line.entry is not None]
        for entry in self._known:
            if isinstance(entry, Asked):
                self.requests.add(entry.request)
            elif isinstance(entry, Answered):
                self.answered_requests.add(entry.request)
                self._completions += len(entry.completions)
            elif isinstance(entry, AdapterInUse):
                self._adapter = Path(entry.path) if entry.name else None
        if last is not None and last.entry is not None:
            self.head, self._number, self.last_event = last.entry.hash, last.entry.number, str(last.entry.event)
        if torn := lines[last.number if last else 0 :]:
            self._append("torn", lines=[torn_line(line).model_dump() for line in torn])

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
        begun = next((entry for entry in self._known if isinstance(entry, Started)), None)
        if begun is None:
            settings = config.model_dump(mode="json", exclude={"card"})
            if extra := settings["assistant"].get("extra_body"):
                settings["assistant"]["extra_body"] = sorted(extra)
            self._append("started", versions=versions, config=settings, files=files)
        else:
            _refuse_changes(str(self._folder), begun.files, files)
            for entry in self._known:
                if isinstance(entry, Data | Backbone | AssistantOpened):
                    fields = sources.pop((entry.event, entry.split if isinstance(entry, Data) else None))
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
            text=text_digest(as_json(request)).model_dump(),
        )

    def answered(self, request: int, completions: Sequence[Completion]) -> None:
        self.answered_requests.add(request)
        self._completions += len(completions)
        digests = [
            {**text_digest(c.text).model_dump(), "model": c.model, "finish_reason": c.finish_reason}
            for c in completions
        ]
        self._append("completions", request=request, completions=digests)

    def wrote(self, folder: Path) -> None:
        """Record all files of a folder of the run: the model, or an adapter."""
        files = file_digests(self._folder, files_below(folder))
        name = folder.relative_to(self._folder).as_posix()
        if weights := files.get(f"{name}/{WEIGHTS}"):
            self._adapter_digests[folder] = weights["sha256"]
        self._append("written", folder=name, files=files)

    def finish(self, summary: Mapping[str, Any], history: HistoryDigest) -> str:
        """Record the end of the run, and close the log. Returns the hash of its last entry, without
        which nobody can see that the end was cut off or everything written anew."""
        files = file_digests(self._folder, [path for name in FIGURES if (path := self._folder / name).is_file()])
        counts = {"requests": len(self.requests), "completions": self._completions}
        digests = {"summary": summary_digest(summary), "history": history.model_dump()}
        self._append("finished", **counts, files=files, **digests)
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
        counts = {"requests": requests, "completions": completions}
        files = file_digests(self._folder, rewritten)
        digests = {"summary": summary, "history": history.model_dump()}
        self._append("purged", **counts, deleted=list(deleted), files=files, **digests)

    def close(self) -> None:
        self._file.close()

    def _digest_of(self, adapter: Path) -> str:
        if adapter not in self._adapter_digests:
            self._adapter_digests[adapter] = adapter_digest(adapter)
        return self._adapter_digests[adapter]

    def _append(self, event: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"event": event, "number": self._number + 1, "time": time, "previous": self.head, **fields}
        entry["hash"] = hex_digest(canonical(entry))
        line = canonical(entry) + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder / LOG))
        os.fsync(self._file.fileno())
        self.head, self._number, self.last_event = entry["hash"], self._number + 1, event


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


def text_digest(text: str) -> TextDigest:
    return TextDigest(sha256=hex_digest(text.encode("utf-8", "surrogatepass")), characters=len(text))


def summary_digest(summary: Mapping[str, Any]) -> str:
    """Of what summary.json holds, but for the hash of the log's end, which is known only afterwards."""
    return hex_digest(canonical({key: value for key, value in summary.items() if key != HEAD}))


def history_digest(history: History) -> HistoryDigest:
    figures, results = (hex_digest(ascii(history.rows(queries)).encode()) for queries in (NUMBERS, RESULTS))
    return HistoryDigest(figures=figures, results=results)


def file_digest(path: Path) -> FileDigest:
    return FileDigest(sha256=sha256(path), bytes=path.stat().st_size)


def file_digests(base: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Digests as an entry holds them, by paths relative to `base`."""
    return {path.relative_to(base).as_posix(): file_digest(path).model_dump() for path in paths}


def _sources(config: Config) -> Iterator[dict[str, Any]]:
    """The fields of the entries on what a run reads: data, backbone, assistant."""
    for split in ("train", "validation", "test"):
        if path := getattr(config.data, split):
            yield {"event": "data", "split": split, "path": path, "files": _data_digests(Path(path))}
    backbone = backbone_folder(config.downstream.backbone)
    yield {"event": "backbone", "path": str(backbone), "files": _model_digests(backbone)}
    yield {"event": "assistant", **_assistant(config)}


def _refuse_changes(place: str, before: Files, now: Mapping[str, Mapping[str, Any]]) -> None:
    old = {name: digest.model_dump() for name, digest in before.items()}
    for name in sorted({*old, *now}):
        if old.get(name) != now.get(name):
            what = f"{name!r} is not the file that the run began with"
            raise InputError(what, where=place, fix="Put that one back, or begin a new run")


def _data_digests(path: Path) -> dict[str, dict[str, Any]]:
    """Of a file, or of every file of a folder that `datasets` saved."""
    return file_digests(path, files_below(path)) if path.is_dir() else file_digests(path.parent, [path])


def _model_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Of the files that a model is loaded from."""
    return file_digests(folder, (path for path in files_below(folder) if path.suffix in LOADED))


def _assistant(config: Config) -> dict[str, Any]:
    assistant = config.assistant
    if isinstance(assistant, EndpointConfig):
        model, endpoint = assistant.model, assistant.base_url
        files = _model_digests(Path(assistant.weights)) if assistant.weights else {}
    elif isinstance(assistant, LocalAssistantConfig):
        folder = assistant_folder(assistant.model)
        model, endpoint, files = str(folder), "", _model_digests(folder)
    else:
        run = Path(assistant.run)
        model, endpoint, files = str(run), "", file_digests(run, [run / "history.sqlite"])
    return {"backend": assistant.backend, "model": model, "endpoint": endpoint, "files": files}
