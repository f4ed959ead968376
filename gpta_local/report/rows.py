"""What a run keeps of the rows that it was measured on, and, on request alone, their texts.

The only module of reports that opens private rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpta_local.config import load
from gpta_local.data.examples import Example, read_texts, text_columns
from gpta_local.data.readers import read_records
from gpta_local.errors import InputError
from gpta_local.record import folder as run_folder
from gpta_local.record.folder import json_lines
from gpta_local.schema import MeasuredRow

MOST_MISTAKES = 20


def measured_rows(run: Path) -> list[MeasuredRow]:
    """What the product says of each row that it was measured on.

    Raises:
        InputError: the run keeps nothing of them.
    """
    path = run / run_folder.PREDICTIONS_FILE
    rows = list(json_lines(path, lambda line: MeasuredRow(**line)))
    if not rows:
        what = "the run keeps no predictions: there was nothing to measure it on, or an earlier gpta-local made it"
        raise InputError(what, where=str(path), fix="Run it again, with data.test")
    return rows


def mistakes(run: Path) -> list[dict[str, str]]:
    """The rows with a wrong label of which the product is most sure, with their texts, as far as they are still in the
    file.

    Raises:
        InputError: the run keeps no predictions.
        DataError, ConfigError: the file cannot be read.
    """
    config, split = load(run / run_folder.CONFIG_FILE), run_folder.summary(run)["evaluated_on"]
    wrong = [row for row in measured_rows(run) if row.predicted != row.label]
    wrong = sorted(wrong, key=lambda row: row.probability, reverse=True)[:MOST_MISTAKES]
    columns = text_columns(config.data)
    # validation rows may be carved from the training rows, and a cross-validation is on these
    path = config.data.test if split == "test" else config.data.validation or config.data.train
    assert path is not None  # there were rows to measure on
    table = read_records(path, columns, config.data)
    texts = {Example(found, 0).digest: " ⏎ ".join(found) for r in table.records for found in [read_texts(r, columns)]}
    return [_with_text(row, texts.get(row.row, "(not in the file any more)")) for row in wrong]


def _with_text(row: MeasuredRow, text: str) -> dict[str, Any]:
    return {"label": row.label, "predicted": row.predicted, "probability": f"{row.probability:.2f}", "text": text}
