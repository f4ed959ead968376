"""One file of rows → two files beside it: rows to train on, and rows set aside for the test.

The files hold rows: they are their owner's alone. What is there is never overwritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from gpta_local.data.examples import Example
from gpta_local.data.labels import is_missing, label_key, label_name
from gpta_local.data.readers import COMPRESSED
from gpta_local.data.records import Record
from gpta_local.data.splits import carve
from gpta_local.data.writing import LINES, SEPARATED, row_writer
from gpta_local.errors import DataError, OutputError
from gpta_local.system.files import owner_only

SHARE = 0.25
"""Of the texts of each label that are set aside."""
SEED = 0


def held_out(
    records: Sequence[Record], columns: Sequence[str], label: str, where: str
) -> tuple[list[Record], list[Record]]:
    """The rows to train on and those that are set aside: of each label a share, the same at each call. Rows of the
    same text are on one side. Rows without a label are on none.

    Raises:
        DataError: there are too few.
    """
    labelled = [record for record in records if not is_missing(record.values.get(label))]
    names = [label_key(label_name(record, label)) for record in labelled]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    texts = [tuple(str(record.values.get(column)) for column in columns) for record in labelled]
    unique = [Example(row, numbers[name]) for row, name in dict(zip(texts, names, strict=True)).items()]
    _, carved = carve(unique, SHARE, SEED)
    if not carved or min(Counter(example.label for example in unique).values()) < 2:
        fix = "Leave --split out: the run then ends with a cross-validation"
        raise DataError("a label has fewer than two different texts: none can be set aside", where=where, fix=fix)
    aside = {example.texts for example in carved}
    sides = [row in aside for row in texts]
    return (
        [record for record, out in zip(labelled, sides, strict=True) if not out],
        [record for record, out in zip(labelled, sides, strict=True) if out],
    )


def write_parts(path: Path, parts: dict[str, Sequence[Record]]) -> dict[str, Path]:
    """Write NAME-train and NAME-test beside the file, in its format if that is CSV or TSV, else as JSON lines.

    Raises:
        OutputError: one of them is there already, or cannot be written.
    """
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    kind = plain.suffix.lower() if plain.suffix.lower() in SEPARATED else LINES[0]
    files = {name: plain.with_name(f"{plain.stem}-{name}{kind}") for name in parts}
    if there := [file for file in files.values() if file.exists()]:
        raise OutputError("this file is there already", where=str(there[0]), fix="Move it away, or leave --split out")
    with ExitStack() as undo, owner_only():
        try:
            for name, file in files.items():
                with file.open("x", encoding="utf-8", errors="replace") as opened:
                    undo.callback(file.unlink)
                    write = row_writer(opened, kind)
                    for record in parts[name]:
                        write(record.values)
        except OSError as exc:
            raise OutputError(f"cannot be written ({exc.strerror or exc})", where=str(file)) from exc
        undo.pop_all()
    return files
