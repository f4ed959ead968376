"""`predict` and `evaluate`: a product and a data file → labels or figures."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from gpta_local.config import DataConfig, InputConfig, ReadingConfig, reading
from gpta_local.data.examples import read_examples
from gpta_local.data.readers import STDIN, files_of, open_records, read_records, stdin_format
from gpta_local.data.records import Record, find_columns
from gpta_local.data.writing import LINES, SEPARATED, written_format
from gpta_local.downstream.outputs import opened
from gpta_local.downstream.predicting import Labeller, Wanted
from gpta_local.downstream.product import Product, open_product
from gpta_local.errors import DataError, InputError
from gpta_local.metrics import by_class, macro_f1, wilson_interval
from gpta_local.system.manifests import MANIFEST

CLEARED = "\r\x1b[K"
"""Takes the line of a terminal away."""
INPUT_FILE = "input_file"
"""The column that names the file of a row, where there are several."""


def predict(
    run: Path,
    inputs: Sequence[str],
    output: Path | None,
    wanted: Wanted,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
) -> None:
    """Label the rows of files, and write them with all their columns. What is told of them goes to standard error.

    Args:
        inputs: files, folders, patterns, or - for standard input.
        output: None or - for standard output; its ending says the format, otherwise it is that of the first input.
        overrides: how the files are written, and their columns.
        resume: go on with the output of a command that was stopped.
    """
    product = open_product(run)
    how = reading_of(product, overrides)
    files = files_of(inputs)
    output, kind = output_like(files, output)
    if resume and (output is None or STDIN in files):
        fix = "Give files and --output FILE, or leave it out"
        raise InputError("standard input and output cannot be gone on with", where="--resume", fix=fix)
    labeller = Labeller(product, columns_of(product, how), wanted, flat=kind in SEPARATED)
    show = output is not None and sys.stderr.isatty()
    with opened(output, kind, key_of(product, files, (wanted, *overrides)), resume=resume) as rows:
        begun, started = rows.begun, time.monotonic()
        labeller.count, labeller.blank, labeller.first_blank = begun.rows, begun.blank, begun.first_blank
        if begun.rows:
            click.echo(f"{begun.rows} rows are there already", err=True)
        records = islice(records_of(files, labeller.columns, how), begun.rows, None)
        try:
            for written, row in enumerate(labeller.rows(records), start=begun.rows + 1):
                rows.write(row)
                if written == labeller.count:
                    rows.save(labeller.count, labeller.blank, labeller.first_blank)
                    if show:
                        speed = (written - begun.rows) / (time.monotonic() - started)
                        click.echo(f"\r{written} rows, {speed:.0f} a second", nl=False, err=True)
        except KeyboardInterrupt:
            if rows.saved:
                click.echo(f"{rows.saved} rows are kept: the same command with --resume goes on", err=True)
            raise
    if output is not None:
        click.echo(f"{CLEARED if show else ''}{labeller.count} rows: {output}", err=True)
    if labeller.blank:
        blank = "1 row has" if labeller.blank == 1 else f"{labeller.blank} rows have"
        click.echo(f"warning: {blank} no text, the first {labeller.first_blank}: no label is given", err=True)


def output_like(files: Sequence[str], output: Path | None) -> tuple[Path | None, str]:
    """Where rows are written, None for standard output, and in which format: as its ending says, or the first input."""
    output = None if output is None or str(output) == STDIN else output
    first = stdin_format() if files[0] == STDIN else Path(files[0]).suffix.lower()
    like_input = first if first in SEPARATED else LINES[0]
    return output, like_input if output is None else written_format(output, like_input)


def records_of(files: Sequence[str], columns: Sequence[str], how: ReadingConfig) -> Iterator[Record]:
    """The rows of all files, with the file's name in front where there are several.

    Raises:
        DataError: a file has no rows, or no column of texts.
    """
    for path in files:
        source, where = open_records(path, how), "standard input" if path == STDIN else path
        for note in source.notes:
            click.echo(f"{where}: {note}", err=True)
        if source.columns:
            find_columns(columns, source.columns, where)
        record = None
        for number, record in enumerate(source.records):
            if not number:
                find_columns(columns, list(record.values), record.where)
            yield Record({INPUT_FILE: path, **record.values}, record.where) if len(files) > 1 else record
        if record is None:
            raise DataError("no rows", where=where)


def key_of(product: Product, files: Sequence[str], options: Sequence[object]) -> str:
    """Tells what rows are labelled, by which model and how."""
    manifest = product.folder / MANIFEST
    there = [Path(file).stat() for file in files if Path(file).is_file()]
    states = [*files, *((state.st_size, state.st_mtime_ns) for state in there)]
    said = (manifest.read_text(encoding="utf-8") if manifest.is_file() else product.record, states, *options)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def evaluate(run: Path, data: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Rows, accuracy with its 95 % interval, macro-F1, and rows, precision and recall of each label, on a data file
    or on the test rows of the run's configuration."""
    product = open_product(run)
    path, how = (str(data), reading_of(product, overrides)) if data else _test_of(run)
    columns, label = columns_of(product, how), how.label or product.record["columns"]["label"]
    table = read_records(path, [*columns, label], how)
    examples = read_examples(table.records, columns, label, product.labels)
    logits = np.concatenate(list(product.logits([example.texts for example in examples])))
    predicted, targets = logits.argmax(axis=1).tolist(), [example.label for example in examples]
    interval = wilson_interval(sum(p == t for p, t in zip(predicted, targets, strict=True)), len(targets))
    classes = len(product.labels)
    return {
        "rows": len(targets),
        "accuracy": interval.value,
        "interval": [interval.low, interval.high],
        "macro_f1": macro_f1(predicted, targets, classes),
        "labels": {
            name: asdict(of) for name, of in zip(product.labels, by_class(predicted, targets, classes), strict=True)
        },
    }


def as_table(figures: Mapping[str, Any]) -> str:
    """What `evaluate` found, for a terminal."""
    width, (low, high) = max(map(len, figures["labels"])), figures["interval"]
    lines = [
        f"{figures['rows']} rows: accuracy {figures['accuracy']:.3f}, macro-F1 {figures['macro_f1']:.3f}"
        f" (95 % interval of the accuracy {low:.3f} – {high:.3f})",
        f"{'label':<{width}}  rows  precision  recall",
    ]
    for name, row in figures["labels"].items():
        lines.append(f"{name:<{width}}  {row['rows']:4d}  {row['precision']:9.3f}  {row['recall']:6.3f}")
    return "\n".join(lines)


def columns_of(product: Product, how: InputConfig | DataConfig) -> list[str]:
    """The columns of texts, by the names that they have in the file."""
    columns = product.record["columns"]
    pair = columns["text_pair"]
    return [how.text or columns["text"], *([] if pair is None else [how.text_pair or pair])]


def reading_of(product: Product, overrides: Sequence[str]) -> InputConfig:
    """The format is that of the training rows, unless something else is said; the encoding can be another."""
    return reading(overrides, {"format": product.record.get("format", {})})


def _test_of(run: Path) -> tuple[str, DataConfig]:
    from gpta_local.config import load

    if not (run / "config.yaml").is_file():
        raise InputError(
            "this folder has no configuration that names test rows",
            where=str(run),
            fix="Give a data file: gpta-local evaluate RUN DATA",
        )
    data = load(run / "config.yaml").data
    if data.test is None:
        raise DataError(
            "the run's configuration names no test rows",
            where=str(run / "config.yaml"),
            fix="Give a data file: gpta-local evaluate RUN DATA",
        )
    return data.test, data
