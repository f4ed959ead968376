"""What a finished run keeps → `report.html` and `report.md`, the same twice. Knows sections and words; needs no model
and, but for `with_rows`, no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gpta_local.record.folder import EXAMPLES_FILE, PREDICTIONS_FILE, REPORT_FILE, ROWS_REPORT_FILE
from gpta_local.report import charts
from gpta_local.report.page import Block, as_fragment, as_markdown, as_page, as_table, plain
from gpta_local.report.pictures import Picture
from gpta_local.report.record import RunRecord, read_record
from gpta_local.report.rows import mistakes
from gpta_local.report.summary import arms_shown, confusions, headline, verdict
from gpta_local.schema import ExampleText
from gpta_local.system.files import owner_only, write_whole

NONE = "–"
MOST_CLASSES = 25
"""Labels up to which what is taken for what is drawn."""
MOST_CONFUSED = 10
MOST_PREFIXES = 10
SHOWN_TEXTS = 2
"""Example texts of a label that are kept, and as many that are not."""
LONGEST_TEXT = 160
"""Characters of a text of the assistant that are shown."""


@owner_only()
def write_report(run: Path, *, with_rows: bool = False) -> Path:
    """Write the report of a finished run into its folder; return the page.

    Args:
        with_rows: also show the mistakes of which the model is most sure, in a page of another name.

    Raises:
        InputError: there is no finished run, or (`with_rows`) it keeps no predictions.
        DataError, ConfigError: (`with_rows`) its test rows cannot be read.
    """
    record = read_record(run)
    title = record.summary["card"]["name"]
    blocks = [*_blocks(record, f"Report: {title}", mistakes(run) if with_rows else None)]
    page = run / (ROWS_REPORT_FILE if with_rows else REPORT_FILE)
    write_whole(page.with_suffix(".md"), as_markdown(blocks))
    write_whole(page, as_page(blocks, f"Report: {title}"))
    return page


def _blocks(record: RunRecord, title: str, wrong: list[dict[str, str]] | None) -> Iterator[Block]:
    summary = record.summary
    yield f"# {plain(title)}"
    yield plain(headline(summary))
    if wrong is not None:
        yield f"This page is private: it shows rows of the data. The report without them is {REPORT_FILE}."
    yield from _compared(summary)
    if measured := summary.get("product"):
        yield from _classes(summary, measured)
        if wrong is not None:
            yield from _mistakes(wrong)
        yield from _sureness(summary["evaluated_on"], measured["calibration"])
    yield from _learning(record)
    yield from _assistant(record)
    yield from _data(record)
    yield from _provenance(record)


def beginning(summary: Mapping[str, Any]) -> str:
    """The first lines and the first table of the report as HTML, for a notebook."""
    tables = (block for block in _compared(summary) if isinstance(block, str) and "|" in block)
    return as_fragment([plain(headline(summary)), *islice(tables, 1)])


# ── what was found ──────────────────────────────────────────────────────────────────────────────


def _compared(summary: Mapping[str, Any]) -> Iterator[Block]:
    yield "## What was compared"
    for line in verdict(summary):
        yield plain(line)
    if arms := arms_shown(summary):
        differences = [None, *summary["differences"].values()]
        yield as_table(
            f"The model and its controls on the same {summary['evaluated_on']} rows; the first is the one that this "
            "run ships. A difference is that of its accuracy less the control's, in points; intervals are of 95 %, "
            "over the rows: another training set would change more.",
            ("model", "accuracy, %", "interval", "macro-F1, %", "difference", "its interval"),
            [
                (name, _percent(arm["accuracy"]), _range(*arm["interval"]), _percent(arm["macro_f1"]), *_points(of))
                for (name, arm), of in zip(arms.items(), differences, strict=True)
            ],
        )
        said = "; ".join(f"{name} {_percent(arm['accuracy'])} %" for name, arm in arms.items())
        yield Picture("Accuracy of each model.", "accuracies", charts.accuracies(arms), f"{said}.")
    selection = summary["selection"]
    if len(selection["contestants"]) > 1:
        yield as_table(
            f"The choice of the prefix, on {selection['rows']} rows: the loss without a prefix less that with it, in "
            "nats, with its standard error.",
            ("prefix", "gain", "standard error", "rows", "chosen"),
            [
                (
                    of["text"] or ("(no prefix), model of the search" if number else selection["against"]),
                    f"{of['gain']:+.3f}",
                    _number(of["standard_error"], 3),
                    str(of["rows"]),
                    "yes" if number == selection["chosen"] else "no",
                )
                for number, of in enumerate(selection["contestants"])
            ],
        )


def _classes(summary: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[Block]:
    classes, counts = measured["classes"], measured["confusion"]
    yield "## Class by class"
    yield as_table(
        f"Precision: how many of the {summary['evaluated_on']} rows that get the label have it. Recall: how many of "
        "those that have it get it. F1: their harmonic mean. In %.",
        ("label", "rows", "precision", "recall", "F1"),
        [
            (name, str(of["rows"]), *(_percent(of[key]) for key in ("precision", "recall", "f1")))
            for name, of in classes.items()
        ],
    )
    confused = confusions(counts)
    rows = [(name, other, str(n), _percent(n / classes[name]["rows"])) for n, name, other in confused[:MOST_CONFUSED]]
    if rows:
        yield "## What is taken for what"
        if len(classes) <= MOST_CLASSES:
            yield Picture(
                "Rows by their label and the label that the model gives them. The darker a cell, the larger its "
                "share of the label's rows; on the diagonal the model is right.",
                "confusion",
                charts.confusion(counts),
                f"Most often {rows[0][0]} is taken for {rows[0][1]}, {rows[0][2]} times.",
            )
        of = f"the {len(rows)} of {len(confused)} with the most rows" if len(confused) > len(rows) else "all there are"
        yield as_table(f"Confusions, {of}.", ("is", "taken for", "rows", "% of the label's rows"), rows, words=(1,))


def _mistakes(wrong: Sequence[Mapping[str, str]]) -> Iterator[Block]:
    yield "## Mistakes that the model is most sure of"
    yield as_table(
        "Rows of the data, with their label, the label that the model gives them, and how probable it finds that.",
        ("label", "taken for", "probability", "text"),
        [(of["label"], of["predicted"], of["probability"], _short(of["text"], 2 * LONGEST_TEXT)) for of in wrong],
        words=(1, 3),
    )


def _sureness(evaluated_on: str, calibration: Mapping[str, Any]) -> Iterator[Block]:
    before, after, temperature = (calibration[key] for key in ("before", "after", "temperature"))
    yield "## How sure it is"
    error = (
        "The expected calibration error, the mean distance between how sure the model is and how often it is right, "
        f"is {_percent(before['error'])} points"
    )
    if after:
        same = " The temperature was fitted on the rows that it is measured on here: too good."
        yield (
            f"{error} as trained and {_percent(after['error'])} calibrated. The logits are divided by a temperature "
            f"of {temperature:.2f}, fitted on {calibration['rows']:,} rows ({calibration['fitted_on']}); `gpta-local "
            f"predict` does so.{same if calibration['fitted_on'] == evaluated_on else ''}"
        )
    else:
        yield f"{error}. The probabilities are not calibrated: there are no validation rows to fit a temperature on."
    yield Picture(
        f"How often the model is right on the {evaluated_on} rows, by how sure it is. Below the diagonal it is too "
        "sure.",
        "reliability",
        charts.reliability(before["bins"], after and after["bins"]),
        "The figures are in the table below.",
    )
    shown = {"as trained": before, **({"calibrated": after} if after else {})}
    yield as_table(
        "Rows by the probability of the label that the model gives them, in ten bins; empty ones are left out.",
        ("probabilities", "rows", "mean probability, %", "right, %"),
        [
            (name, str(of["rows"]), _percent(of["probability"]), _percent(of["accuracy"]))
            for name, sureness in shown.items()
            for of in sureness["bins"]
        ],
    )


def _learning(record: RunRecord) -> Iterator[Block]:
    arms = {name: arm for name, arm in arms_shown(record.summary).items() if record.losses.get(arm.get("training", ""))}
    if not arms:
        return
    yield "## How it learnt"
    split = record.summary["evaluated_on"]
    courses = {name: record.losses[arm["training"]] for name, arm in arms.items()}
    watched = {name: record.watched[arm["training"]] for name, arm in arms.items() if record.watched[arm["training"]]}
    drawn = {arm["training"]: name for name, arm in reversed(arms.items())}  # of one training under two names the first
    shown = {name: course for name, course in courses.items() if name in drawn.values()}
    yield Picture(
        f"The loss of the training steps, on the rows of each step; on some of the {split} rows, which were watched "
        "meanwhile; and on all of them in the end.",
        "losses",
        charts.losses(shown, watched, {name: arm["loss"] for name, arm in arms.items()}),
        "The figures are in the tables below.",
    )
    yield as_table(
        f"Losses in nats. A loss on {split} rows far above that on training rows: the model knows its rows by heart.",
        ("model", "steps", "first steps", "last steps", "training rows, at the end", f"{split} rows"),
        [
            (
                name,
                str(len(courses[name])),
                _number(_mean(courses[name][: _tenth(courses[name])]), 3),
                _number(_mean(courses[name][-_tenth(courses[name]) :]), 3),
                _number(arm["on_training_rows"] and arm["on_training_rows"]["loss"], 3),
                _number(arm["loss"], 3),
            )
            for name, arm in arms.items()
        ],
    )
    if watched:
        yield as_table(
            f"The loss on the {split} rows that were watched, after so many steps. Nothing was chosen by it. A model "
            "that was then averaged with another ends elsewhere.",
            ("model", "steps: loss"),
            [(name, ", ".join(f"{step}: {loss:.3f}" for step, loss in course)) for name, course in watched.items()],
            words=(1,),
        )


# ── where it comes from ─────────────────────────────────────────────────────────────────────────


def _assistant(record: RunRecord) -> Iterator[Block]:
    summary = record.summary
    yield "## What the assistant gave"
    yield (
        f"The assistant, {plain(record.assistant)}, was given the description, the label names and meanings and the "
        "ranks of its own proposals; no row."
    )
    yield as_table(
        "What it was asked, and what that cost in tokens.",
        ("asked for", "requests", "completions", "tokens read", "tokens written"),
        [
            (kind, str(of.requests), str(of.completions), _count(of.read), _count(of.written))
            for kind, of in record.asked.items()
        ],
    )
    if record.purged:
        yield f"What it said was purged on {record.purged}."
        return
    yield from _label_texts(summary)
    yield from _example_texts(record)
    if record.prefixes:
        yield as_table(
            f"Prefixes: what each gains on training rows, in nats, with its standard error. {len(record.prefixes)} "
            f"were scored; here are the best {min(MOST_PREFIXES, len(record.prefixes))}.",
            ("prefix", "gain", "standard error", "rows"),
            [
                (s.text, f"{s.gain:+.3f}", _number(s.standard_error, 3), str(s.rows))
                for s in record.prefixes[:MOST_PREFIXES]
            ],
        )
    if summary["templates"]:
        yield f"Put before the label texts: {plain('; '.join(summary['templates']))}."


def _label_texts(summary: Mapping[str, Any]) -> Iterator[Block]:
    labels, sets = summary["card"]["labels"], summary["label_texts"]
    if not sets:
        return
    own = 2 if any(label["meaning"] for label in labels) else 1  # names, and meanings
    joined = f"and from {len(sets) - own} sets of the assistant" if sets[own:] else "alone"
    yield as_table(
        f"Label texts: the training starts from the card's own {joined}.",
        ("label", "of the card", "of the assistant"),
        [
            (name, *(" · ".join(texts[name] for texts in part) or NONE for part in (sets[:own], sets[own:])))
            for name in (label["name"] for label in labels)
        ],
        words=(1, 2),
    )


def _example_texts(record: RunRecord) -> Iterator[Block]:
    told, texts = record.summary["example_texts"], record.example_texts
    if not texts:
        return
    gain = ""
    if told["gain"] is not None:
        gain = f" On validation rows that gains {told['gain']:+.3f} ± {_number(told['standard_error'], 3)} nats."
    use = "The model is trained on these." if told["used"] else "The model is not trained on them."
    if len(askings := told.get("askings", ())) > 1:
        yield plain(_askings(askings))
    yield as_table(
        f"Example texts: {told['usable']} usable; a model of the rows labels {told['kept']} as was asked for.{gain} "
        f"{use} Some of each label, with the probability of that label; all are in {EXAMPLES_FILE}.",
        ("label", "text", "probability", "kept"),
        [
            (text.label, _short(text.text), _number(text.probability, 2), "yes" if text.kept else "no")
            for text in _some(texts)
        ],
        words=(1,),
    )


def _askings(askings: Sequence[Mapping[str, Any]]) -> str:
    """What the steps of the dialogue gradient did, in a sentence."""
    told = [
        f"{of['kept']} of {of['asked']} ({of['usable']} usable)"
        + (f" by adapter {of['adapter']}, {of['verdict']}" if of["verdict"] else "")
        for of in askings
    ]
    return (
        "The assistant was taught what was kept, and asked for as many again. Texts with their label, by a model of "
        f"rows and the first texts: {'; '.join(told)}."
    )


def _some(texts: Sequence[ExampleText]) -> Iterator[ExampleText]:
    """Of each label a few that are kept, and a few that are not."""
    for label in dict.fromkeys(text.label for text in texts):
        for kept in (True, False):
            yield from [text for text in texts if text.label == label and bool(text.kept) == kept][:SHOWN_TEXTS]


def _data(record: RunRecord) -> Iterator[Block]:
    data = record.summary.get("data")
    if not data:
        return
    yield "## The data"
    yield plain(record.summary["card"]["description"])
    splits = data["splits"]
    yield as_table(
        "Rows. Repeated: the same text as an earlier row of these; in training: the same text as a training row.",
        ("rows", "number", "words, median", "words, most", "repeated", "in training"),
        [
            (
                name,
                f"{of['rows']:,}",
                f"{of['words']['median']:g}",
                f"{of['words']['longest']:,}",
                str(of["repeated"]),
                NONE if name == "training" else str(of["in_training"]),
            )
            for name, of in splits.items()
        ],
    )
    first = next(iter(splits))
    yield as_table(
        "Rows of each label.",
        ("label", *splits),
        [(label, *(f"{of['labels'][label]:,}" for of in splits.values())) for label in splits[first]["labels"]],
    )
    tokens = data["tokens"]
    yield (
        f"Of the {first} rows {_percent(tokens['cut'])} % are longer than {tokens['most']} tokens and are cut; the "
        f"backbone does not know {_percent(tokens['unknown'])} % of their tokens."
    )
    for warning in data["warnings"]:
        yield plain(f"Warning: {record.without_paths(warning)}.")


def _provenance(record: RunRecord) -> Iterator[Block]:
    yield "## How it was made"
    yield as_table("Versions and times.", ("what", "which"), record.environment, words=(1,))
    if record.settings:
        yield as_table(
            "Settings other than the defaults.",
            ("key", "value"),
            [(f"`{k}`", v) for k, v in record.settings],
            words=(1,),
        )
    if head := record.summary.get("audit_head"):
        yield (
            f"The head of the audit log is `{head}`: `gpta-local audit verify RUN --head HEAD` checks the run against "
            "it."
        )
    if record.summary.get("product"):
        yield (
            f"What the model says of each row that it was measured on is in {PREDICTIONS_FILE}, without the row's text."
        )


# ── figures in words ────────────────────────────────────────────────────────────────────────────


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def _points(difference: Mapping[str, Any] | None) -> tuple[str, str]:
    if difference is None:
        return NONE, NONE
    value, low, high = (f"{100 * difference[end]:+.1f}" for end in ("value", "low", "high"))
    return value, f"{low} to {high}"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tenth(values: Sequence[float]) -> int:
    return max(1, len(values) // 10)


def _short(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
