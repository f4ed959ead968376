"""Results → a Markdown file, and the same as a page. Knows tables and words; measures nothing, and reads no row.

The page holds its pictures and its style: it asks for nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gpta_local.benchmark import figures
from gpta_local.benchmark.statistics import (
    Comparison,
    GoalVerdict,
    PerSet,
    Records,
    accuracy,
    by_receiving_set,
    finished,
    gap,
    judge,
    macro_f1,
    mean_difference,
    own_seconds,
    points,
    seconds,
    values,
)
from gpta_local.benchmark.suite import CONTROLS, GPTA, CurveEntry, Part, Suite, SuiteFile, shots_name
from gpta_local.benchmark.trials import AFTER_GPTA, Record, Trial, transferred, warnings
from gpta_local.report.page import Block, as_page, as_table
from gpta_local.report.pictures import Picture
from gpta_local.system.files import owner_only

NONE = "–"
BORROW = ("label_texts", *AFTER_GPTA)
"""Arms that take what they begin with out of a run of `gpta`: what they cost by themselves says nothing."""


@owner_only()
def write(suite: Suite, records: Records, folder: Path) -> list[str]:
    """Write `report.html` and `report.md` with its pictures; return what there is to say of them, line by line."""
    done = finished(records)
    verdicts = [judge(goal, suite.file, done) for goal in suite.file.goals]
    blocks, lines = [*_blocks(suite, done, verdicts), *_provenance(done, records)], []
    for block in blocks:
        if isinstance(block, Picture):
            (folder / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
            lines.append(f"![{block.caption}]({block.name}.svg)\n")
        else:
            lines.append(f"{block}\n")
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "report.html").write_text(as_page(blocks, f"Benchmark: {suite.path.stem}"), encoding="utf-8")
    return [*_summary(suite.file, done), *map(str, verdicts), f"report: {folder / 'report.html'}"]


def _summary(file: SuiteFile, records: Records) -> Iterator[str]:
    for title, table, compared in _comparisons(file, records):
        reference = GPTA if GPTA in table else table[0]
        for arm in table:
            per_set = compared.differences(reference, arm)
            if arm != reference and per_set:
                of = f" ({len(per_set)} of {len(compared.sets)} sets)" if len(per_set) < len(compared.sets) else ""
                yield f"{title}: {reference} against {arm}: {points(mean_difference(per_set))} points{of}"


def _comparisons(file: SuiteFile, records: Records) -> Iterator[tuple[str, list[str], Comparison]]:
    for name, table in file.tables.items():
        for shots in table.shots:
            sets = table.sets or list(file.sets)
            yield f"{name}, {shots_name(shots)}", table.arms, Comparison(records, sets, shots, table.samples)


def _blocks(suite: Suite, done: Records, verdicts: Sequence[GoalVerdict]) -> Iterator[Block]:
    file = suite.file
    yield f"# Benchmark: {suite.path.stem}"
    yield (
        "An arm is a way to train a model; all arms have the same backbone, rows and seeds. Shots are training rows "
        "per class. A sample is one draw of them, with the seed of search and training. The test rows are only "
        "measured: nothing is chosen on them. Figures are points of accuracy unless they say otherwise."
    )
    yield (
        "Intervals are 95 % percentile bootstrap intervals over the samples, paired between arms. They say nothing of "
        "other sets or other test rows, and are narrow where samples are few: of normal differences, the mean over six "
        "sets lies in them in 93 % of cases with ten samples, 90 % with five, 86 % with three, 77 % with two; that of "
        "a single set in 90, 83, 75 and 50 %."
    )
    if verdicts:
        yield "## Goals"
        words = {True: "yes", False: "no", None: "not all measured"}
        yield as_table(
            "Means over the sets of a table; in brackets the 95 % interval, where there is one. Least or most on: the "
            "set where that figure is least or most.",
            ("goal", "reached?", "measured"),
            [(v.goal, words[v.reached], v.measured or NONE) for v in verdicts],
            words=(2,),
        )
    yield "## Arms and sets"
    yield from _arms_and_sets(suite, done)
    for number, (title, arms, compared) in enumerate(_comparisons(file, done)):
        yield f"## {title[0].upper()}{title[1:]}"
        yield from _comparison(arms, compared, f"differences-{number}")
    yield from _example_texts(file, done)
    yield from _prefixes(file, done)
    if file.curves:
        yield from _curves(file, file.curves, done)
    if file.transfer:
        yield from _transfer(file, file.transfer, done)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _arms_and_sets(suite: Suite, records: Records) -> Iterator[Block]:
    file = suite.file
    arms = {name for table in file.tables.values() for name in table.arms}
    rows = [(arm, CONTROLS[arm]) for arm in CONTROLS if arm in arms]
    rows.append((GPTA, "`gpta-local train` with the configuration of the set"))
    rows += [(name, f"the same with {_settings(overrides)}") for name, overrides in file.variants.items()]
    yield as_table("The arms.", ("arm", "what it is"), rows, words=(1,))
    yield (
        "Label texts are phrases for each label, from which the head starts: its name, its meaning if the card of the "
        "configuration gives one, and what the assistant adds. Templates are prefixes before them."
    )
    configs = {name: suite.config(name, GPTA, None, 0) for name in file.sets}
    test_rows = {trial.set: str(record["rows"]) for trial, record in records.items() if "accuracy" in record}
    yield as_table(
        "The sets.",
        ("set", "test rows", "domain", "backbone", "assistant"),
        [
            (
                name,
                test_rows.get(name, NONE),
                file.sets[name].domain or NONE,
                Path(config.downstream.backbone).name,
                Path(config.assistant.model).name if config.assistant.backend != "replay" else "a recorded run",
            )
            for name, config in configs.items()
        ],
    )


def _comparison(arms: Sequence[str], compared: Comparison, name: str) -> Iterator[Block]:
    sets, reference = compared.sets, GPTA if GPTA in arms else arms[0]
    most = max(len(compared.of(name, arm)) for name in sets for arm in arms)
    if not most:
        yield "Nothing measured yet."
        return
    n = f"n = {most}" + f" of {compared.samples}" * (most < compared.samples) + " samples a set"
    yield as_table(
        f"Test accuracy, mean ± standard deviation over samples ({n}; fewer where it says so), and the mean over the "
        f"sets. Last: mean of {reference} less the arm.",
        ("arm", *sets, "mean", "macro-F1", f"{reference} less the arm"),
        [
            (
                arm,
                *(_spread(compared, name, arm, most) for name in sets),
                _number(compared.mean(arm, accuracy)),
                _number(compared.mean(arm, macro_f1)),
                _mean_of(compared.differences(reference, arm), sets) if arm != reference else "",
            )
            for arm in arms
        ],
    )
    others = {arm: d for arm in arms if arm != reference and (d := compared.differences(reference, arm))}
    if others:
        intervals = {arm: mean_difference(per_set) for arm, per_set in others.items()}
        picture = figures.difference_plot(intervals, f"accuracy of {reference} less that of the arm, points", name)
        yield Picture(f"{reference} less each other arm, mean over the sets with its interval.", name, picture)
        yield as_table(
            f"Accuracy of {reference} less that of the arm by set, with its interval; n: samples a set that both have.",
            (f"{reference} less", "n", *sets),
            [
                (
                    arm,
                    _range(map(len, per_set.values())),
                    *(points(mean_difference({s: per_set[s]})) if s in per_set else NONE for s in sets),
                )
                for arm, per_set in others.items()
            ],
        )
    yield from _cost(arms, compared)


def _spread(compared: Comparison, name: str, arm: str, most: int) -> str:
    found = compared.of(name, arm)
    if not found:
        return NONE
    of = values(found, accuracy)
    spread = f" ± {of.std(ddof=1):.1f}" if len(of) > 1 else ""
    return f"{of.mean():.1f}{spread}" + (f" (n = {len(of)})" if len(of) < most else "")


def _range(counts: Iterable[int]) -> str:
    known = list(counts)
    least, most = min(known), max(known)
    return f"{least}" if least == most else f"{least} to {most}"


def _mean_of(per_set: PerSet, sets: Sequence[str]) -> str:
    if not per_set:
        return NONE
    return points(mean_difference(per_set)) + (f", {len(per_set)} sets" if len(per_set) < len(sets) else "")


def _cost(arms: Sequence[str], compared: Comparison) -> Iterator[str]:
    def tokens(record: Record) -> float:
        counts = [record.get(name) for name in ("prompt_tokens", "completion_tokens")]
        return np.nan if "completions" in record and None in counts else float(sum(c or 0 for c in counts))

    processor, timed = next(iter(compared.by_processor(arms).items()))
    columns = {
        "whole, s": (timed, seconds("total"), 1),
        "without the assistant, s": (timed, own_seconds, 1),
        "search, s": (timed, seconds("search"), 1),
        "last fine-tuning, s": (timed, seconds("training"), 1),
        "measuring, s": (timed, seconds("evaluation"), 1),
        "completions": (compared, lambda record: float(record.get("completions", 0)), 0),
        "tokens": (compared, tokens, 0),
        "training accuracy": (compared, lambda record: accuracy(record["train"]), 1),
        "gap to test": (compared, gap, 1),
    }
    searching = ("whole, s", "without the assistant, s", "search, s", "completions", "tokens")
    online = (
        " With all rows the controls count, for the product is chosen from them too; one that is the model of the "
        "search has its last fine-tuning there."
    ) * (not compared.shots)
    yield as_table(
        "Cost of one trial, mean over sets and samples. The whole is what a user waits for: search, choice and all "
        f"fine-tunings; reading rows, loading models, controls and measuring are left out.{online} What the assistant "
        "was asked for in an earlier trial comes from its cache. The search is that "
        "of prefixes, without the texts before it. Seconds are of the trials on the processor that has most of "
        f"them: {processor}. A dash: the arm takes what it begins with out of the run of gpta, or a set is not "
        "measured there. Last: accuracy on training rows, and how far that is above the test rows.",
        ("arm", *columns),
        [
            (
                arm,
                *(
                    NONE if title in searching and arm in BORROW else _number(of.mean(arm, f), digits)
                    for title, (of, f, digits) in columns.items()
                ),
            )
            for arm in arms
        ],
    )
    yield as_table(
        f"Seconds of the whole by set, on {processor}.",
        ("arm", *compared.sets),
        [(arm, *map(_number, timed.means(arm, seconds("total")))) for arm in arms if arm not in BORROW],
    )


def _example_texts(file: SuiteFile, records: Records) -> Iterator[Block]:
    rows: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for _, arms, compared in _comparisons(file, records):
        for arm in arms:
            for name in compared.sets:
                told = [t for r in compared.of(name, arm).values() if (t := r.get("example_texts")) and t["usable"]]
                if told:
                    usable, kept, left_out = (
                        float(np.mean([t[what] for t in told])) for what in ("usable", "kept", "left_out")
                    )
                    used = f"{sum(t['used'] for t in told)} of {len(told)}"
                    key = (arm, name, shots_name(compared.shots))
                    rows[key] = (_number(left_out), _number(usable), f"{100 * kept / usable:.0f} %", used)
    if rows:
        yield "## Example texts"
        yield as_table(
            "Means over samples. Left out: usable texts that share six words in a row with a test row; public sets may "
            "be in a model's memory. Usable: without those. Kept: those that a model of the rows puts under the label "
            "that they were asked for. Used: samples in which the product is trained on them.",
            ("arm", "set", "shots", "left out", "usable", "kept", "used"),
            [(*key, *of) for key, of in rows.items()],
        )


def _prefixes(file: SuiteFile, records: Records) -> Iterator[Block]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for _, arms, compared in _comparisons(file, records):
        for arm in arms:
            for name in compared.sets:
                texts = [record["prefix"] for record in compared.of(name, arm).values()]
                key = (arm, name, shots_name(compared.shots))
                found[key] = max(texts, found.get(key, []), key=len)  # the samples of one table begin another's
    rows = []
    for key, texts in found.items():
        if used := Counter(filter(None, texts)):
            rows.append((*key, f"{used.total()} of {len(texts)}", "; ".join(text for text, _ in used.most_common(3))))
    if rows:
        yield "## Prefixes"
        caption = "Samples in which a prefix was put in front of the inputs, and up to three of them."
        yield as_table(caption, ("arm", "set", "shots", "used", "such as"), rows, words=(4,))


# ── curves and transfer ─────────────────────────────────────────────────────────────────────────


def _curves(file: SuiteFile, entry: CurveEntry, records: Records) -> Iterator[Block]:
    courses: dict[str, dict[str, figures.Course]] = {}
    rows = []
    for name in entry.sets or file.sets:
        for arm in ("plain", GPTA):
            trials = [Trial("curve", name, entry.shots, sample, arm) for sample in range(entry.samples)]
            if found := [records[trial] for trial in trials if trial in records]:
                course = _course(found)
                courses.setdefault(name, {})[arm] = course
                best = int(course.test.argmax())
                figures_of = (course.train[-1], course.test[-1], course.train[-1] - course.test[-1], course.test[best])
                rows.append((name, arm, str(len(found)), *map(_number, figures_of), f"{course.epochs[best]:.1f}"))
    if not courses:
        return
    rows_of = "all test rows" if entry.test_rows is None else f"{entry.test_rows} test rows at most"
    caption = (
        f"Accuracy while training, {shots_name(entry.shots)}, mean over up to {entry.samples} samples; {rows_of}. "
        "Dashed: training rows; solid: test rows. The test rows are only measured."
    )
    yield "## Curves"
    yield Picture(caption, "curves", figures.curve_plot(courses, "curves"))
    yield as_table(
        "The end of the curves: accuracy on training and test rows, their gap; and the best test accuracy on the way.",
        ("set", "arm", "n", "training", "test", "gap", "best test", "at epoch"),
        rows,
    )


def _course(found: Sequence[Record]) -> figures.Course:
    epochs = np.array([point["epoch"] for point in found[0]["points"]])
    train, test = (
        np.mean([[100 * point[split]["accuracy"] for point in record["points"]] for record in found], axis=0)
        for split in ("train", "test")
    )
    return figures.Course(epochs, train, test)


def _transfer(file: SuiteFile, entry: Part, records: Records) -> Iterator[Block]:
    names = entry.sets or list(file.sets)
    cells: dict[tuple[str, str], dict[int, float]] = {}
    texts = set[tuple[str, str]]()
    for name in names:
        base = Comparison(records, names, entry.shots, entry.samples).of(name, "label_texts")
        row = {
            source: {s: records[t] for s in base if (t := transferred(name, source, entry.shots, s)) in records}
            for source in names
        }
        row = {source: found for source, found in row.items() if found}
        common = sorted(set(base).intersection(*row.values()))
        for source, found in row.items():
            if common:
                cells[name, source] = {s: accuracy(found[s]) - accuracy(base[s]) for s in common}
            if any(record.get("with_label_texts") for record in found.values()):
                texts.add((name, source))
    if not cells:
        return
    yield "## Transfer"
    means = {cell: float(np.mean(list(of.values()))) for cell, of in cells.items()}
    matrix = np.array([[means.get((name, source), np.nan) for source in names] for name in names])
    yield Picture(
        "Accuracy with the best prefix in front and the templates that were found on one set (columns), used on "
        "another (rows), less that with the set's own label texts and no prefix; "
        f"{shots_name(entry.shots)}, n = {_range(map(len, cells.values()))} of {entry.samples} samples. On the "
        "diagonal each set's own.",
        "transfer",
        figures.matrix_plot(matrix, names, "transfer"),
    )
    domains = {name: file.sets[name].domain for name in names}

    def group(name: str, source: str) -> str:
        if name == source:
            return "a set's own"
        return "of the same domain" if domains[name] and domains[name] == domains[source] else "of another"

    rows = []
    for kind in ("a set's own", "of the same domain", "of another"):
        members = {cell: of for cell, of in cells.items() if group(*cell) == kind}
        if per_set := by_receiving_set(members):
            rows.append((kind, str(len(members)), points(mean_difference(per_set))))
    yield as_table(
        "Mean over the cells of a group, with its interval over samples. Cells of one row are measured against the "
        "same training, so they are averaged first. Those of one column share what was found, which the interval "
        "leaves out: it is narrower than it should be.",
        ("prefix and templates", "cells", "difference"),
        rows,
    )
    if texts:
        told = ", ".join(f"{source} → {name}" for name, source in sorted(texts))
        yield f"With them went the label texts, where both sets have the same labels: {told}."


# ── the rest ────────────────────────────────────────────────────────────────────────────────────


def _provenance(done: Records, records: Records) -> Iterator[Block]:
    yield "## How it was measured"
    used = Counter(
        ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"; {record['processes']} at a time"
        for record in done.values()
    )
    if done:
        times = [record["finished"] for record in done.values()]
        yield f"{len(done)} trials, each one thread, finished from {min(times)} to {max(times)}."
        yield (
            "With `training.precision` at `auto`, all arms but SetFit compute in bfloat16 where the processor "
            "multiplies in it, also when they are measured: on such a machine part of the difference in seconds is "
            "that. Where a configuration with all rows names no validation rows, a tenth of the training rows is set "
            "aside, and no arm is trained on it."
        )
        caption = "Versions, and how many trials were measured with them."
        yield as_table(caption, ("versions", "trials"), [(v, str(count)) for v, count in used.most_common()])
    warned = Counter(warning for trial, record in records.items() for warning in warnings(trial, record))
    if warned:
        rows = [(warning, str(count)) for warning, count in sorted(warned.items())]
        yield as_table("Warnings, and of how many trials.", ("warning", "trials"), rows)
    failed = [str(trial) for trial, record in records.items() if "error" in record]
    if failed:
        yield f"{len(failed)} trials failed and are missing above: {'; '.join(failed[:20])}."


def _settings(overrides: dict[str, object]) -> str:
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in overrides.items()) or "nothing changed"


def _number(value: float, digits: int = 1) -> str:
    return NONE if np.isnan(value) else f"{value:.{digits}f}"
