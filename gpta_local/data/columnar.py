"""Tables with types: parquet files, folders saved by `datasets`, sheets.

Only columns in use are converted, so sound, images, nested values and times that Python has no type for do no harm.
Names of classes that the file carries (ClassLabel of `datasets`) take the place of their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gpta_local.config import FormatConfig
from gpta_local.data.records import Record, Source, find_columns
from gpta_local.data.separated import table_of
from gpta_local.errors import DataError

BATCH_ROWS = 10_000
LONGEST_BYTES = 10_000
"""Of a value on average, in a column of bytes that are looked at as text."""


def read_parquet(file: Path | BinaryIO, path: str, wanted: Sequence[str] | None) -> Source:
    """Raises a DataError if it is not whole."""
    import pyarrow
    import pyarrow.parquet

    def refusal(exc: Exception) -> Exception:
        if isinstance(exc, OSError) and exc.errno:  # the system's; arrow's own has no number
            return exc
        return DataError("not a readable parquet file", where=path)

    try:
        parquet = pyarrow.parquet.ParquetFile(file)
        schema = parquet.schema_arrow
    except (pyarrow.ArrowException, ValueError, OSError) as exc:
        raise refusal(exc) from exc
    plain = [*_plain(schema), *_short_bytes(parquet.metadata, schema)]
    at = find_columns(plain if wanted is None else wanted, schema.names, path)

    def batches() -> Iterator[Any]:
        try:
            yield from parquet.iter_batches(BATCH_ROWS, columns=[schema.names[position] for position in at.values()])
        except (pyarrow.ArrowException, ValueError, OSError) as exc:
            raise refusal(exc) from exc

    classes = _class_names(_features(schema))
    return Source(tuple(schema.names), _records(batches(), at, schema.names, classes, path))


def read_saved_folder(path: Path, wanted: Sequence[str] | None, formats: str) -> Source:
    """The rows themselves: the format that was saved with them (torch, numpy, some columns) is a view."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as exc:  # datasets and arrow raise many kinds for a folder that is not theirs
        raise DataError("not a folder saved by `datasets`", where=str(path), fix=f"Give {formats}") from exc
    if isinstance(saved, datasets.DatasetDict):
        raise DataError(
            "a folder of several splits",
            where=str(path),
            fix=f"Name one of them, as in {path / next(iter(saved), 'train')}",
        )
    names = saved.column_names
    at = find_columns(_plain(saved.data.schema) if wanted is None else wanted, names, str(path))
    rows = saved.with_format("arrow").select_columns([names[position] for position in at.values()])
    tables = rows.iter(BATCH_ROWS) if len(rows) else iter(())
    return Source(tuple(names), _records(tables, at, names, _class_names(saved.features.to_dict()), str(path)))


def read_sheet(file: BinaryIO, path: str, wanted: Sequence[str] | None, form: FormatConfig) -> Source:
    """The first sheet of a workbook, values of formulas as they were saved."""
    try:
        import openpyxl
    except ImportError as exc:
        raise DataError("needs openpyxl", where=path, fix='pip install "gpta-local[xlsx]", or save it as CSV') from exc
    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        first, *others = book.worksheets
        first.reset_dimensions()
        found = list(first.iter_rows(values_only=True))
    except Exception as exc:  # openpyxl, zipfile and the parser of XML raise many kinds for what is no workbook
        raise DataError("not a readable .xlsx file", where=path, fix="Save it again, or as CSV") from exc
    width = max(map(len, found), default=0)  # rows end with their last value
    rows = ((number, (*row, *[None] * (width - len(row)))) for number, row in enumerate(found, start=1))
    notes = (f"the first of its {1 + len(others)} sheets is read",) if others else ()
    return table_of(rows, path, wanted, form.header, notes)


def _plain(schema: Any) -> list[str]:
    """The columns whose values can be texts or labels, each name once."""
    from pyarrow import types

    def plain(kind: Any) -> bool:
        if types.is_dictionary(kind):
            return plain(kind.value_type)
        if types.is_list(kind) or types.is_large_list(kind):
            return plain(kind.value_type)
        return bool(
            types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_string_view(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_decimal(kind)
            or types.is_boolean(kind)
            or types.is_null(kind)
        )

    return [field.name for field in schema if plain(field.type) and schema.names.count(field.name) == 1]


def _short_bytes(metadata: Any, schema: Any) -> list[str]:
    """The columns of bytes that may be texts: some programs write these without saying so. Pictures are longer."""
    from pyarrow import types

    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            name = column.path_in_schema
            sizes[name] = sizes.get(name, 0) + column.total_uncompressed_size
    binary = (field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type))
    return [name for name in binary if sizes.get(name, 0) <= LONGEST_BYTES * max(1, metadata.num_rows)]


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` wrote of the columns into the schema, as its own files have it; {} where it did not."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of classes by column; also of columns that hold lists of them."""
    found = {}
    for column, feature in features.items():
        while isinstance(feature, list) and feature:
            feature = feature[0]
        while isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
            feature = feature["feature"]
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            found[column] = [str(name) for name in feature["names"]]
    return found


def _records(
    batches: Iterator[Any], at: Mapping[str, int], names: Sequence[str], classes: Mapping[str, list[str]], path: str
) -> Iterator[Record]:
    """Rows of arrow tables. Raises a DataError at a value that cannot be converted."""
    number = 0
    for batch in batches:
        columns = {}
        for column, position in at.items():
            try:
                values = batch.column(names[position]).to_pylist()
            except (ValueError, OverflowError, KeyError) as exc:
                where = f"{path} row {number + 1}"
                raise DataError(f"{column!r} holds values that are neither text nor labels", where=where) from exc
            if any(isinstance(value, bytes) for value in values):
                values = _decoded(values)
            class_names = classes.get(names[position])
            columns[column] = [_named(value, class_names) for value in values] if class_names else values
        for row in zip(*columns.values(), strict=True):
            number += 1
            yield Record(dict(zip(columns, row, strict=True)), f"{path} row {number}")


def _decoded(values: list[Any]) -> list[Any]:
    """Bytes as the text that they are in UTF-8; as they are, where one is none."""
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        return values


def _named(value: Any, names: Sequence[str]) -> Any:
    """The class that a number stands for; None for -1 and other numbers without a name: a row without a label."""
    if isinstance(value, list):
        return [_named(inner, names) for inner in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value
