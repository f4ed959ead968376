"""Results → means, paired differences with intervals, verdicts on goals. Knows records and numpy; no models or files.

A sample of shots is the unit: arms are compared on the same samples, and intervals come from drawing the samples of
each set anew (bootstrap, Efron 1979). The sets are those of the suite and are not drawn: nothing is said of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpta_local.benchmark.suite import GoalEntry, Shots, SuiteFile, shots_name
from gpta_local.benchmark.trials import Record, Trial
from gpta_local.metrics import Interval

DRAWS = 5000
Records = Mapping[Trial, Record]
Figure = Callable[[Record], float]
PerSet = dict[str, NDArray[np.float64]]
"""Paired differences by set, one per sample that both arms have."""


def accuracy(record: Record) -> float:
    """In points."""
    return 100 * float(record["accuracy"])


def macro_f1(record: Record) -> float:
    """In points."""
    return 100 * float(record["macro_f1"])


def gap(record: Record) -> float:
    """Training less test accuracy, in points."""
    return 100 * (float(record["train"]["accuracy"]) - float(record["accuracy"]))


def seconds(part: str) -> Figure:
    return lambda record: float(record["seconds"].get(part, 0.0))


def own_seconds(record: Record) -> float:
    """Of the whole without the time that the assistant took."""
    return seconds("total")(record) - seconds("assistant")(record)


def processor(record: Record) -> str:
    """That a trial was measured on, with its cores."""
    return str(record["versions"].get("processor", "a processor that was not recorded"))


def finished(records: Records) -> Records:
    """The records without those of failed trials."""
    return {trial: record for trial, record in records.items() if "error" not in record}


def values(found: Mapping[int, Record], figure: Figure) -> NDArray[np.float64]:
    return np.array([figure(record) for record in found.values()], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The finished trials of a table at one number of shots."""

    records: Records
    sets: Sequence[str]
    shots: Shots
    samples: int

    def of(self, name: str, arm: str) -> dict[int, Record]:
        """The records of an arm on a set, by sample."""
        trials = [Trial("arm", name, self.shots, sample, arm) for sample in range(self.samples)]
        return {trial.sample: self.records[trial] for trial in trials if trial in self.records}

    def pairs(self, ours: str, theirs: str) -> dict[str, tuple[dict[int, Record], dict[int, Record]]]:
        """The records of two arms on the samples that both have, of each set where there are some."""
        found: dict[str, tuple[dict[int, Record], dict[int, Record]]] = {}
        for name in self.sets:
            first, second = self.of(name, ours), self.of(name, theirs)
            if both := sorted(first.keys() & second.keys()):
                found[name] = {s: first[s] for s in both}, {s: second[s] for s in both}
        return found

    def differences(self, ours: str, theirs: str, figure: Figure = accuracy) -> PerSet:
        """Ours less theirs on each set where both have a sample in common."""
        pairs = self.pairs(ours, theirs)
        return {name: values(first, figure) - values(second, figure) for name, (first, second) in pairs.items()}

    def complete(self, *arms: str) -> bool:
        """Whether every sample of these arms is there on every set."""
        return all(len(self.of(name, arm)) == self.samples for name in self.sets for arm in arms)

    def by_processor(self, arms: Sequence[str]) -> dict[str, Comparison]:
        """The same with the trials of each processor alone, that of most trials of these arms first. Seconds compare
        within one."""
        used = Counter(processor(r) for arm in arms for name in self.sets for r in self.of(name, arm).values())
        return {
            one: replace(self, records={trial: r for trial, r in self.records.items() if processor(r) == one})
            for one, _ in used.most_common()
        }

    def means(self, arm: str, figure: Figure) -> NDArray[np.float64]:
        """By set, over samples; not a number for a set without any."""
        found = [self.of(name, arm) for name in self.sets]
        return np.array([values(of, figure).mean() if of else np.nan for of in found], dtype=np.float64)

    def mean(self, arm: str, figure: Figure) -> float:
        """Over the sets, of the means over samples; not a number if a set has none."""
        return float(self.means(arm, figure).mean())


def mean_difference(per_set: PerSet, seed: int = 0) -> Interval:
    """Mean over the sets of the mean over samples, with the 95 % interval of a bootstrap that draws the samples of each
    set anew. A set with a single sample leaves the interval open."""
    value = float(np.mean([d.mean() for d in per_set.values()]))
    if min(len(d) for d in per_set.values()) < 2:
        return Interval(value, -np.inf, np.inf)
    rng = np.random.default_rng(seed)
    draws = [d[rng.integers(len(d), size=(DRAWS, len(d)))].mean(axis=1) for d in per_set.values()]
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return Interval(value, float(low), float(high))


def by_receiving_set(cells: Mapping[tuple[str, str], Mapping[int, float]]) -> PerSet:
    """The mean over the sources of each receiving set, by sample, of the samples that all its cells have."""
    rows: dict[str, list[Mapping[int, float]]] = {}
    for (name, _), of in cells.items():
        rows.setdefault(name, []).append(of)
    common = {name: sorted(set.intersection(*map(set, of))) for name, of in rows.items()}
    return {
        name: np.array([np.mean([of[s] for of in rows[name]]) for s in common[name]]) for name in rows if common[name]
    }


@dataclass(frozen=True, slots=True)
class GoalVerdict:
    """A goal, what was measured, and whether it is reached; None until all its trials are finished."""

    goal: str
    measured: str
    reached: bool | None

    def __str__(self) -> str:
        word = {True: "reached", False: "not reached", None: "not all measured"}[self.reached]
        return f"{self.goal}: {word}" + (f": {self.measured}" if self.measured else "")


def judge(goal: GoalEntry, file: SuiteFile, records: Records) -> GoalVerdict:
    """
    Args:
        records: of finished trials.
    """
    table = file.tables[goal.table]
    compared = Comparison(records, table.sets or list(file.sets), goal.shots, table.samples)
    judges = {"accuracy": _accuracy, "gap": _gap, "not_worse": _not_worse}
    wanted, measured, reached = judges.get(goal.measure, _ratio)(goal, compared)
    arms = [goal.ours] if goal.measure == "not_worse" else [goal.ours, goal.theirs]
    where = f"{goal.ours} against {goal.theirs}, {goal.table}, {shots_name(goal.shots)}"
    complete = bool(measured) and compared.complete(*arms)
    return GoalVerdict(f"{where}: {wanted}", measured, bool(reached) if complete else None)


Judged = tuple[str, str, bool]
"""What is wanted, what was measured ("" for nothing), whether that is enough."""


def _accuracy(goal: GoalEntry, compared: Comparison) -> Judged:
    wanted = f"at least {goal.at_least:+g} points" + ", interval above 0" * goal.interval_above_zero
    wanted += f", no set below {goal.worst_set:+g}" if goal.worst_set is not None else ""
    per_set = compared.differences(goal.ours, goal.theirs)
    if not per_set:
        return wanted, "", False
    interval = mean_difference(per_set)
    worst = min(per_set, key=lambda name: per_set[name].mean())
    least = float(per_set[worst].mean())
    reached = interval.value >= (goal.at_least or 0.0) and (interval.low > 0 or not goal.interval_above_zero)
    reached = reached and (goal.worst_set is None or least >= goal.worst_set)
    return wanted, f"{points(interval)}; least on {worst}, {least:+.1f}", reached


def _gap(goal: GoalEntry, compared: Comparison) -> Judged:
    wanted = f"smaller gap of training to test accuracy on at least {goal.at_least:g} sets"
    per_set = compared.differences(goal.ours, goal.theirs, gap)
    if not per_set:
        return wanted, "", False
    smaller = sum(d.mean() < 0 for d in per_set.values())
    there = replace(compared, sets=list(per_set))
    fitted = [there.mean(arm, lambda record: accuracy(record["train"])) for arm in (goal.ours, goal.theirs)]
    measured = f"{smaller} of {len(per_set)} sets, {points(mean_difference(per_set))} points"
    measured += f"; training accuracy {fitted[0]:.1f} against {fitted[1]:.1f}"
    return wanted, measured, smaller >= (goal.at_least or 0)


def _ratio(goal: GoalEntry, compared: Comparison) -> Judged:
    what, figure = {
        "seconds": ("seconds of the whole", seconds("total")),
        "own_seconds": ("seconds without the assistant's", own_seconds),
        "fine_tuning": ("seconds of the last fine-tuning", seconds("training")),
    }[goal.measure]
    told, ratios, worst = [], [], []
    for name, alone in compared.by_processor((goal.ours, goal.theirs)).items():
        pairs = alone.pairs(goal.ours, goal.theirs)
        if len(pairs) < len(compared.sets):
            continue
        ours = np.array([values(first, figure).mean() for first, _ in pairs.values()])
        theirs = np.array([values(second, seconds("total")).mean() for _, second in pairs.values()])
        ratios.append(float(ours.mean() / theirs.mean()))
        worst.append(float((ours / theirs).max()))
        most, paired = int((ours / theirs).argmax()), sum(len(first) for first, _ in pairs.values())
        told.append(
            f"{ours.mean():.1f} s against {theirs.mean():.1f} s, {ratios[-1]:.2f}; most on {compared.sets[most]}, "
            f"{ours[most] / theirs[most]:.2f} ({paired} pairs of trials, {name})"
        )
    wanted = f"{what} at most {goal.at_most:g} of their whole"
    wanted += f", on no set above {goal.worst_set:g}" if goal.worst_set is not None else ""
    reached = max(ratios, default=np.inf) <= (goal.at_most or 0.0)
    reached = reached and (goal.worst_set is None or max(worst) <= goal.worst_set)
    return wanted, "; ".join(told), reached


def _not_worse(goal: GoalEntry, compared: Comparison) -> Judged:
    """By the intervals over test rows that a run gives of itself. Of several samples the mean of their ends: they share
    the test rows, so that no more is certain."""
    found = {name: compared.of(name, goal.ours).values() for name in compared.sets}
    ends = {
        name: Interval(*np.mean([record["against_plain"] for record in of], axis=0) * 100)
        for name, of in found.items()
        if of
    }
    told = "; ".join(f"{name} {points(interval)}" for name, interval in ends.items())
    reached = all(interval.high >= 0 for interval in ends.values())
    return "on no set worse by more than its interval over test rows", told, reached


def points(interval: Interval) -> str:
    """ "+3.1 (+1.0 to +5.2)"; without ends where a single sample gives none."""
    if not np.isfinite(interval.low):
        return f"{interval.value:+.1f}"
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"
