"""Results → a page and a Markdown file. Knows tables and words; measures nothing, and reads no row.

The page holds its pictures and its style: it asks for nothing else.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpta_local.benchmark import figures
from gpta_local.benchmark.statistics import (
    Comparison,
    PerSet,
    Records,
    accuracy,
    finished,
    gap,
    judge,
    macro_f1,
    mean_difference,
    points,
    seconds,
    values,
)
from gpta_local.benchmark.suite import CONTROLS, GPTA, Part, Suite, SuiteFile, shots_name
from gpta_local.benchmark.trials import WITH_LABEL_TEXTS, Record, Trial, transferred, warnings
from gpta_local.system.files import owner_only

NONE = "–"
BORROW = ("label_texts", *WITH_LABEL_TEXTS)
"""Arms that take label texts or prefixes out of a run of `gpta`: what they cost by themselves says nothing."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; min-width: 9rem; position: sticky; left: 0; background: #fff; }
tbody th { font-weight: normal; }
thead th { border-bottom: 2px solid #888; }
.wide { white-space: normal; text-align: left; min-width: 18rem; }
caption, figcaption { text-align: left; color: #444; padding: .3rem 0; caption-side: top; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(66rem, 100vw - 4rem); }
figure { margin: 1rem 0 1.5rem; overflow-x: auto; } svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
"""


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """`wide`: the number of a column that holds sentences."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """`name`: of its file beside the Markdown."""

    caption: str
    name: str
    svg: str


Block = Heading | Paragraph | Table | Picture


@owner_only()
def write(suite: Suite, records: Records, folder: Path) -> list[str]:
    """Write `report.html` and `report.md` with its pictures; return what there is to say of them, line by line."""
    blocks = list(_blocks(suite, records))
    (folder / "report.html").write_text(_html(blocks, suite.path.stem), encoding="utf-8")
    for block in blocks:
        if isinstance(block, Picture):
            (folder / f"{block.name}.svg").write_text(block.svg, encoding="utf-8")
    (folder / "report.md").write_text(_markdown(blocks), encoding="utf-8")
    goals = [str(judge(goal, suite.file, records)) for goal in suite.file.goals]
    return [*_summary(suite.file, records), *goals, f"report: {folder / 'report.html'}"]


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


def _blocks(suite: Suite, records: Records) -> Iterator[Block]:
    file = suite.file
    yield Heading(f"Benchmark: {suite.path.stem}", 1)
    yield Paragraph(
        "An arm is a way to train a model; all arms have the same backbone, rows and seeds. Shots are training rows "
        "per class. A sample is one draw of them, with the seed of search and training. The test rows are only "
        "measured: nothing is chosen on them. Figures are points of accuracy unless they say otherwise."
    )
    yield Paragraph(
        "Intervals are 95 % percentile bootstrap intervals over the samples, paired between arms. They say nothing of "
        "other sets or other test rows, and are narrow where samples are few: of normal differences, the mean over six "
        "sets lies in them in 93 % of cases with ten samples, 90 % with five, 86 % with three, 77 % with two; that of "
        "a single set in 90, 83, 75 and 50 %."
    )
    if file.goals:
        yield Heading("Goals")
        verdicts = [judge(goal, file, records) for goal in file.goals]
        words = {True: "yes", False: "no", None: "not all measured"}
        yield Table(
            "Means over the sets of a table; in brackets the 95 % interval, where there is one. Least or most on: the "
            "set where that figure is least or most.",
            ("goal", "reached?", "measured"),
            [(v.goal, words[v.reached], v.measured or NONE) for v in verdicts],
            wide=2,
        )
    yield Heading("Arms and sets")
    yield from _arms_and_sets(suite, records)
    for number, (title, arms, compared) in enumerate(_comparisons(file, records)):
        yield Heading(title[0].upper() + title[1:])
        yield from _comparison(arms, compared, f"differences-{number}")
    yield from _prefixes(file, records)
    if file.curves:
        yield from _curves(file, records)
    if file.transfer:
        yield from _transfer(file, records, file.transfer)
    yield Heading("How it was measured")
    yield from _provenance(records)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _arms_and_sets(suite: Suite, records: Records) -> Iterator[Block]:
    file = suite.file
    arms = {name for table in file.tables.values() for name in table.arms}
    rows = [(arm, CONTROLS[arm]) for arm in CONTROLS if arm in arms]
    rows.append((GPTA, "`gpta-local train` with the configuration of the set"))
    rows += [(name, f"the same with {_settings(overrides)}") for name, overrides in file.variants.items()]
    yield Table("The arms.", ("arm", "what it is"), rows, wide=1)
    yield Paragraph(
        "Label texts are phrases for each label, from which the head starts: its name, its meaning if the card of the "
        "configuration gives one, and what the assistant adds. Templates are prefixes before them."
    )
    configs = {name: suite.config(name, GPTA, None, 0) for name in file.sets}
    test_rows = {trial.set: str(record["rows"]) for trial, record in records.items() if "accuracy" in record}
    yield Table(
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
        yield Paragraph("Nothing measured yet.")
        return
    n = f"n = {most}" + f" of {compared.samples}" * (most < compared.samples) + " samples a set"
    yield Table(
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
        yield Table(
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


def _cost(arms: Sequence[str], compared: Comparison) -> Iterator[Table]:
    def tokens(record: Record) -> float:
        counts = [record.get(name) for name in ("prompt_tokens", "completion_tokens")]
        return np.nan if "completions" in record and None in counts else float(sum(c or 0 for c in counts))

    processor, timed = next(iter(compared.by_processor(arms).items()))
    columns = {
        "whole, s": (timed, seconds("total"), 1),
        "search, s": (timed, seconds("search"), 1),
        "last fine-tuning, s": (timed, seconds("training"), 1),
        "measuring, s": (timed, seconds("evaluation"), 1),
        "completions": (compared, lambda record: float(record.get("completions", 0)), 0),
        "tokens": (compared, tokens, 0),
        "training accuracy": (compared, lambda record: accuracy(record["train"]), 1),
        "gap to test": (compared, gap, 1),
    }
    searching = ("whole, s", "search, s", "completions", "tokens")
    online = (
        " With all rows the controls count, for the product is chosen from them too; one that is the model of the "
        "search has its last fine-tuning there."
    ) * (not compared.shots)
    yield Table(
        "Cost of one trial, mean over sets and samples. The whole is what a user waits for: search, choice and all "
        f"fine-tunings; reading rows, loading models, controls and measuring are left out.{online} The search is that "
        "of prefixes, without the label texts before it. Seconds are of the trials on the processor that has most of "
        f"them: {processor}. A dash: the arm takes label texts or prefixes out of the run of gpta, or a set is not "
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
    yield Table(
        f"Seconds of the whole by set, on {processor}.",
        ("arm", *compared.sets),
        [(arm, *map(_number, timed.means(arm, seconds("total")))) for arm in arms if arm not in BORROW],
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
        used = Counter(text for text in texts if text)
        if used:
            rows.append((*key, f"{used.total()} of {len(texts)}", "; ".join(text for text, _ in used.most_common(3))))
    if rows:
        yield Heading("Prefixes")
        caption = "Samples in which a prefix was put in front of the inputs, and up to three of them."
        yield Table(caption, ("arm", "set", "shots", "used", "such as"), rows, wide=4)


# ── curves and transfer ─────────────────────────────────────────────────────────────────────────


def _curves(file: SuiteFile, records: Records) -> Iterator[Block]:
    entry = file.curves
    assert entry is not None  # asked before
    courses: dict[str, dict[str, figures.Course]] = {}
    rows = []
    for name in entry.sets or file.sets:
        for arm in ("plain", GPTA):
            trials = [Trial("curve", name, entry.shots, sample, arm) for sample in range(entry.samples)]
            found = [records[trial] for trial in trials if "error" not in records.get(trial, {"error": ""})]
            if found:
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
    yield Heading("Curves")
    yield Picture(caption, "curves", figures.curve_plot(courses, "curves"))
    yield Table(
        "The end of the curves: accuracy on training and test rows, their gap; and the best test accuracy on the way.",
        ("set", "arm", "n", "training", "test", "gap", "best test", "at epoch"),
        rows,
    )


def _course(found: Sequence[Record]) -> figures.Course:
    def mean(split: str) -> NDArray[np.float64]:
        of = np.array([[100 * p[split]["accuracy"] for p in record["points"]] for record in found], dtype=np.float64)
        return np.asarray(of.mean(axis=0))

    epochs = np.array([p["epoch"] for p in found[0]["points"]])
    return figures.Course(epochs, mean("train"), mean("test"))


def _transfer(file: SuiteFile, records: Records, entry: Part) -> Iterator[Block]:
    names = entry.sets or list(file.sets)
    cells: dict[tuple[str, str], dict[int, float]] = {}
    texts = set[tuple[str, str]]()
    for name in names:
        base = finished(records, name, entry.shots, "label_texts", entry.samples)
        row: dict[str, dict[int, Record]] = {}
        for source in names:
            trials = {s: transferred(name, source, entry.shots, s) for s in base}
            found = {s: records[t] for s, t in trials.items() if "error" not in records.get(t, {"error": ""})}
            if found:
                row[source] = found
                if any(record.get("with_label_texts") for record in found.values()):
                    texts.add((name, source))
        if common := sorted(set.intersection(*map(set, row.values()))) if row else []:
            for source, found in row.items():
                cells[name, source] = {s: accuracy(found[s]) - accuracy(base[s]) for s in common}
    if not cells:
        return
    yield Heading("Transfer")
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

    def kin(name: str, source: str) -> bool:
        return domains[name] is not None and domains[name] == domains[source]

    groups = {
        "a set's own": [cell for cell in cells if cell[0] == cell[1]],
        "of the same domain": [cell for cell in cells if cell[0] != cell[1] and kin(*cell)],
        "of another": [cell for cell in cells if cell[0] != cell[1] and not kin(*cell)],
    }
    rows = []
    for group, members in groups.items():
        if per_set := _by_receiving_set({cell: cells[cell] for cell in members}):
            rows.append((group, str(len(members)), points(mean_difference(per_set))))
    yield Table(
        "Mean over the cells of a group, with its interval over samples. Cells of one row are measured against the "
        "same training, so they are averaged first. Those of one column share what was found, which the interval "
        "leaves out: it is narrower than it should be.",
        ("prefix and templates", "cells", "difference"),
        rows,
    )
    if texts:
        told = ", ".join(f"{source} → {name}" for name, source in sorted(texts))
        yield Paragraph(f"With them went the label texts, where both sets have the same labels: {told}.")


def _by_receiving_set(cells: Mapping[tuple[str, str], Mapping[int, float]]) -> PerSet:
    """The mean over the sources of each receiving set, by sample, of the samples that all its cells have."""
    rows: dict[str, list[Mapping[int, float]]] = {}
    for (name, _), of in cells.items():
        rows.setdefault(name, []).append(of)
    common = {name: sorted(set.intersection(*map(set, of))) for name, of in rows.items()}
    return {
        name: np.array([np.mean([of[s] for of in rows[name]]) for s in common[name]]) for name in rows if common[name]
    }


# ── the rest ────────────────────────────────────────────────────────────────────────────────────


def _provenance(records: Records) -> Iterator[Block]:
    done = [record for record in records.values() if "error" not in record]
    used = Counter(
        ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"; {record['processes']} at a time"
        for record in done
    )
    if done:
        first, last = min(r["finished"] for r in done), max(r["finished"] for r in done)
        yield Paragraph(f"{len(done)} trials, each one thread, finished from {first} to {last}.")
        yield Paragraph(
            "With `training.precision` at `auto`, all arms but SetFit compute in bfloat16 where the processor "
            "multiplies in it, also when they are measured: on such a machine part of the difference in seconds is "
            "that. Where a configuration with all rows names no validation rows, a tenth of the training rows is set "
            "aside, and no arm is trained on it."
        )
        caption = "Versions, and how many trials were measured with them."
        yield Table(caption, ("versions", "trials"), [(v, str(count)) for v, count in used.most_common()])
    warned = Counter(warning for trial, record in records.items() for warning in warnings(trial, record))
    if warned:
        rows = [(warning, str(count)) for warning, count in sorted(warned.items())]
        yield Table("Warnings, and of how many trials.", ("warning", "trials"), rows)
    failed = [str(trial) for trial, record in records.items() if "error" in record]
    if failed:
        yield Paragraph(f"{len(failed)} trials failed and are missing above: {'; '.join(failed[:20])}.")


def _settings(overrides: dict[str, object]) -> str:
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in overrides.items()) or "nothing changed"


def _number(value: float, digits: int = 1) -> str:
    return NONE if np.isnan(value) else f"{value:.{digits}f}"


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def _html(blocks: Sequence[Block], title: str) -> str:
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>Benchmark: {escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "".join(map(_element, blocks))
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}</body>\n</html>\n'


def _element(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>\n"
    if isinstance(block, Paragraph):
        return f"<p>{_inline(block.text)}</p>\n"
    if isinstance(block, Picture):
        svg = block.svg.replace("<svg", f'<svg role="img" aria-label="{escape(block.caption)}"', 1)
        return f"<figure>\n<figcaption>{_inline(block.caption)}</figcaption>\n{svg}\n</figure>\n"
    kinds = [' class="wide"' if place == block.wide else "" for place in range(len(block.header))]
    head = "".join(f'<th scope="col"{k}>{_inline(cell)}</th>' for k, cell in zip(kinds, block.header, strict=True))
    body = ""
    for first, *others in block.rows:
        cells = "".join(f"<td{kind}>{_inline(cell)}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        body += f'<tr><th scope="row">{_inline(first)}</th>{cells}</tr>\n'
    return (
        f'<div class="scroll"><table>\n<caption><span>{_inline(block.caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _inline(text: str) -> str:
    """Escaped, with `code` as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _markdown(blocks: Sequence[Block]) -> str:
    def text(block: Block) -> str:
        if isinstance(block, Heading):
            return f"{'#' * block.level} {block.text}"
        if isinstance(block, Paragraph):
            return block.text
        if isinstance(block, Picture):
            return f"![{block.caption}]({block.name}.svg)"
        lines = [block.header, ["---"] * len(block.header), *block.rows]
        escaped = [[" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
        return "\n".join([block.caption, "", *(f"| {' | '.join(line)} |" for line in escaped)])

    return "\n\n".join(map(text, blocks)) + "\n"
