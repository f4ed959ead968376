"""Suite → jobs, and the results file. Knows which arms come from one training and which need another's
outcome; trains nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpta_local.benchmark.suite import GPTA, OWN_CONTROL, Shots, Suite, shots_name
from gpta_local.config import Config
from gpta_local.errors import DataError, OutputError
from gpta_local.system.files import files_below, owner_only

Record = Mapping[str, Any]
"""A line of the results file."""

SAME_RUN = {
    GPTA: (GPTA, "label_texts", "plain"),
    "plain_with_prefix": ("plain_with_prefix", "plain_with_best_prefix"),
}
"""Arms that one run brings: its product and its own controls. Nothing is trained twice."""
AFTER_GPTA = ("best_prefix", "fixed_prefix", "random_prefix", "example_texts_only", "example_texts_only_unfiltered")
"""Arms that begin with the label texts or example texts that `gpta` found."""
ROWS_ONLY: dict[str, Any] = dict.fromkeys(("task", "data", "downstream", "seed"), True) | {"search": {"regime"}}
SEES: dict[str, dict[str, Any]] = {
    "logistic_regression": ROWS_ONLY,
    "setfit": ROWS_ONLY,
    "setfit_label_words": ROWS_ONLY | {"card": {"labels"}},
    "zero_shot": ROWS_ONLY | {"card": True, "assistant": True},
}
"""What of a configuration arms depend on that do not come of our own training. The regime decides whether validation
rows are set aside."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: an arm on a sample of a set. `kind`: arm: the end of a training; curve: its course;
    transfer: with the prefix and templates of the set `source`."""

    kind: Literal["arm", "curve", "transfer"]
    set: str
    shots: Shots
    sample: int
    arm: str
    source: str = ""

    def __str__(self) -> str:
        what = {"arm": self.arm, "curve": f"curve of {self.arm}", "transfer": f"prefix of {self.source}"}[self.kind]
        return f"{self.set}, {shots_name(self.shots)}, sample {self.sample}: {what}"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What one process does in one go. `trials`: those that it finishes. `needs`: finished ones whose records it is
    given. `digest`: of all that its outcome depends on, software left out."""

    trials: tuple[Trial, ...]
    config: Config
    needs: tuple[Trial, ...]
    settings: Mapping[str, Any]
    digest: str

    def __str__(self) -> str:
        return str(self.trials[0])


def plan(suite: Suite) -> list[Job]:
    """All jobs of a suite, each after those that it needs; sample after sample, so that what is there when it is
    stopped is balanced.

    Raises:
        DataError: a file of rows is not there.
    """
    jobs: dict[Trial, Job] = {}
    digests: dict[str, str] = {}

    def add(trial: Trial) -> None:
        if trial in jobs:
            return
        job = _job(suite, trial, digests)
        for needed in job.needs:
            add(needed)
        jobs.update(dict.fromkeys(job.trials, job))

    for trial in sorted(_wanted(suite), key=lambda t: t.sample):
        add(trial)
    return list(dict.fromkeys(jobs.values()))


def _wanted(suite: Suite) -> Iterator[Trial]:
    file = suite.file
    for table in file.tables.values():
        for sample in range(table.samples):
            for shots in table.shots:
                for name in table.sets or file.sets:
                    yield from (Trial("arm", name, shots, sample, arm) for arm in table.arms)
    if curves := file.curves:
        for sample in range(curves.samples):
            for name in curves.sets or file.sets:
                yield from (Trial("curve", name, curves.shots, sample, arm) for arm in ("plain", GPTA))
    if transfer := file.transfer:
        for sample in range(transfer.samples):
            for name in transfer.sets or file.sets:
                for source in transfer.sets or file.sets:
                    yield transferred(name, source, transfer.shots, sample)


def transferred(name: str, source: str, shots: Shots, sample: int) -> Trial:
    """A cell of the transfer matrix; on the diagonal a set's own best prefix."""
    if name == source:
        return Trial("arm", name, shots, sample, "best_prefix")
    return Trial("transfer", name, shots, sample, "best_prefix", source)


def _job(suite: Suite, trial: Trial, digests: dict[str, str]) -> Job:
    file, cell = suite.file, (trial.set, trial.shots, trial.sample)
    arms: tuple[str, ...] = (trial.arm,)
    needs: list[Trial] = []
    settings: dict[str, Any] = {"test_rows": file.test_rows}
    if trial.kind == "curve":
        assert file.curves is not None  # it comes from there
        settings |= {"points": file.curves.points, "test_rows": file.curves.test_rows}
    if trial.kind == "arm":
        arms = next((arms for arms in SAME_RUN.values() if trial.arm in arms), arms)
        if (variant := trial.arm.removesuffix(OWN_CONTROL)) in file.variants:
            arms = (variant, f"{variant}{OWN_CONTROL}")
        if trial.arm == "fixed_prefix":
            settings["fixed_prefix"] = file.sets[trial.set].fixed_prefix
    if trial.kind == "transfer" or trial.arm in AFTER_GPTA or (trial.kind == "curve" and trial.arm == GPTA):
        needs = [Trial("arm", *cell, GPTA)]
    if trial.kind == "transfer":
        needs.append(Trial("arm", trial.source, *cell[1:], GPTA))
    config = suite.config(trial.set, trial.arm, *cell[1:])
    others = [suite.config(need.set, GPTA, *cell[1:]) for need in needs]
    seen = SEES.get(trial.arm)
    parts = [arms, settings, *(_content(c, digests, seen) for c in (config, *others))]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Job(
        tuple(Trial(trial.kind, *cell, arm, trial.source) for arm in arms), config, tuple(needs), settings, digest
    )


def _content(config: Config, digests: dict[str, str], seen: dict[str, Any] | None) -> dict[str, Any]:
    """The configuration, or what is seen of it, with the digests of its files of rows in place of their paths."""
    content = config.model_dump(mode="json", include=seen)
    for key in ("card_control", "folds"):  # which change no figure of a trial
        content.get("finish", {}).pop(key, None)
    for split in ("train", "validation", "test"):
        if path := content["data"][split]:
            if path not in digests:
                digests[path] = _digest(Path(path))
            content["data"][split] = digests[path]
    # a digest of a mapping does not hold its order, which is that in which shots are drawn
    return {**content, "order of labels": list(config.card.labels or ())}


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    try:
        for file in files_below(path) if path.is_dir() else [path]:
            whole.update(file.read_bytes())
    except OSError as exc:
        fix = "Paths are relative to the configuration file"
        raise DataError(f"cannot be read ({exc.strerror or exc})", where=str(path), fix=fix) from exc
    return whole.hexdigest()


def warnings(trial: Trial, record: Record) -> list[str]:
    """What a run warned of, and which connections were refused."""
    refused = [f"a connection was refused: {refusal}" for refusal in record.get("refused", [])]
    return [f"{trial.set}: {warning}" for warning in [*record.get("warnings", []), *refused]]


class Results:
    """The file of finished and failed trials, a JSON object a line, only ever appended to. Of several lines for one
    trial the last one counts. A last line that was not written to its end is dropped.

    Raises:
        OutputError: the file cannot be read or written, or another line than the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, dict[Trial, dict[str, Any]]()
        content = path.read_bytes() if path.exists() else b""
        self._size, self._whole = len(content), content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError) as exc:
                fix = "Remove the line; its trial is done again"
                raise OutputError("not a line of results", where=f"{path}:{number}", fix=fix) from exc

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Hold the file against another benchmark, and make it ready for `add`."""
        with owner_only(), self.path.open("ab") as self._file:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                fix = "Wait for it, or choose another --output"
                raise OutputError("another benchmark is writing here", where=str(self.path), fix=fix) from exc
            if os.fstat(self._file.fileno()).st_size != self._size:
                fix = "Give the same command again"
                raise OutputError("another benchmark was writing here meanwhile", where=str(self.path), fix=fix)
            self._file.truncate(self._whole)
            yield

    def add(self, trial: Trial, figures: Record) -> None:
        """Append a line; it is on the disk when this returns."""
        record = {**asdict(trial), **figures}
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._take(record)

    def finished(self, job: Job) -> bool:
        return all("error" not in self.records.get(trial, {"error": ""}) for trial in job.trials)

    def of(self, jobs: Sequence[Job]) -> dict[Trial, dict[str, Any]]:
        """The records that there are of the trials of jobs."""
        trials = dict.fromkeys(trial for job in jobs for trial in job.trials)
        return {trial: self.records[trial] for trial in trials if trial in self.records}

    def changed(self, job: Job) -> bool:
        """Whether what is there was measured under other settings or on other rows."""
        return self.finished(job) and any(self.records[trial]["digest"] != job.digest for trial in job.trials)

    def forget(self, job: Job) -> None:
        for trial in job.trials:
            self.records.pop(trial, None)

    def _take(self, record: dict[str, Any]) -> None:
        trial = Trial(*(record[name] for name in ("kind", "set", "shots", "sample", "arm", "source")))
        record["digest"], hash(trial)  # a line without them is none of ours
        self.records[trial] = record
