"""`predict` and `evaluate`: a product and a data file → labels or figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from gpta_local.config import ReadingConfig, reading
from gpta_local.data.readers import read_records
from gpta_local.downstream.product import (
    Product,
    open_product,
)
from gpta_local.errors import DataError, InputError, OutputError
from gpta_local.metrics import by_class, macro_f1, wilson_interval
from gpta_local.system.files import owner_only


def open_inputs(run: Path, data: Path, overrides: Sequence[str] = ()) -> tuple[Product, list[tuple[str, ...]]]:
    """The product, and the texts of each row of the data; `overrides` say how it is written."""
    from gpta_local.data.examples import read_texts

    product = open_product(run)
    columns = _columns(product)
    table = read_records(str(data), columns, _reading(product, overrides))
    for note in table.notes:
        click.echo(note, err=True)
    return product, [read_texts(record, columns) for record in table.records]


def predictions(product: Product, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A JSON line for each row: its label and the probability of each label."""
    for prediction in product.predict(rows):
        yield json.dumps(asdict(prediction), ensure_ascii=False)


def write_lines(lines: Iterable[str], output: Path | None) -> None:
    """To standard output or a device, or to a file of its owner's alone that is there only when it is whole."""
    if output is None:
        for line in lines:
            click.echo(line)
        return
    if output.is_dir():
        raise OutputError("a directory is there", where=str(output), fix="Name a file")
    if output.exists() and not output.is_file():  # /dev/null: another file must not take its place
        with output.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        return
    partial = output.with_name(output.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # an existing file would keep its mode
        with owner_only(), partial.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        partial.replace(output)
    except BaseException as exc:
        partial.unlink(missing_ok=True)
        if not isinstance(exc, OSError):
            raise
        raise OutputError(f"cannot be written ({exc.strerror or exc})", where=str(output)) from exc


def evaluate(run: Path, data: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Rows, accuracy with its 95 % interval, macro-F1, and rows, precision and recall of each label, on a data file
    or on the test rows of the run's configuration."""
    from gpta_local.data.examples import read_examples

    product = open_product(run)
    label = product.record["columns"]["label"]
    path, how = (str(data), _reading(product, overrides)) if data else _test_of(run)
    table = read_records(path, [*_columns(product), label], how)
    examples = read_examples(table.records, _columns(product), label, product.labels)
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


def _columns(product: Product) -> list[str]:
    columns = product.record["columns"]
    return [columns["text"]] if columns["text_pair"] is None else [columns["text"], columns["text_pair"]]


def _reading(product: Product, overrides: Sequence[str]) -> ReadingConfig:
    """The format is that of the training rows, unless something else is said; the encoding can be another."""
    return reading(overrides, {"format": product.record.get("format", {})})


def _test_of(run: Path) -> tuple[str, ReadingConfig]:
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
