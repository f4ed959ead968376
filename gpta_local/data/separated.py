"""Files of separated values and sheets: delimiter, quote marks, header, and what a sheet leaves at its end.

Commas, semicolons, bars and tabs separate; quote marks wrap fields. In files separated by tabs they are characters,
as in GLUE's, unless the file is clearly quoted. A field that swallows the rows after it is an error.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any, TextIO

from gpta_local.config import FormatConfig
from gpta_local.data.records import Record, Source, find_columns, tidy
from gpta_local.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
WRAPPED = re.compile(r'"(?:[^"]|"")*"')
"""A field in quote marks, marks inside it doubled."""
NO_HEADER = ". If the file has no header, set data.format.header: false; its columns are then column1, column2 …"
QUOTE_REMEDY = (
    "Double the quote marks inside a quoted field; if they are plain characters in this file, set data.format.quoting: "
    "none; if the field is meant, set it to wrapped"
)

Open = Callable[[str], TextIO]
"""Opens the file anew from its beginning; its lines end with this, as for `open(newline=...)`."""
Row = tuple[int, Sequence[Any]]
"""The line or row where it begins, and its fields."""


def read_separated(open_file: Open, path: str, comma: str, wanted: Sequence[str] | None, form: FormatConfig) -> Source:
    """Args:
    comma: what separates the fields unless the first line or the format says otherwise.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    notes = []
    with closing(open_file("")) as file:
        line = file.readline()
    end = "\r" if line.endswith("\r") else "\n"  # a carriage return inside a field ends no line
    first = line.lstrip("\ufeff").rstrip("\r\n")
    hint = first.strip('"')
    told = hint[4:] if hint[:4].lower() == "sep=" and len(hint) == 5 else None
    if told is not None:
        with closing(open_file(end)) as file:
            file.readline()
            first = file.readline().rstrip("\r\n")
    delimiter = form.delimiter or told or _delimiter(first, comma, wanted)
    if delimiter != comma and form.delimiter is None:
        by = "its line sep= says so" if told else "guessed from the first line"
        notes.append(f"the fields are separated by {DELIMITERS.get(delimiter, repr(delimiter))} ({by})")

    def lines() -> Iterator[str]:
        """The lines after one with sep=, each with its end."""
        with closing(open_file(end)) as file:
            if told is not None:
                file.readline()
            yield from file

    wrapped = form.quoting == "wrapped"
    if form.quoting == "auto":
        wrapped, marks = _wrapped(lines, delimiter, path) if delimiter == "\t" else (True, False)
        if marks:
            notes.append(f"quote marks {'wrap fields' if wrapped else 'are characters'} (guessed from the whole file)")
    offset = 1 if told is not None else 0
    spaced = wrapped and delimiter != "\t" and _spaced(lines, delimiter)
    if spaced:
        notes.append("spaces between what separates fields and a quote mark are left out (guessed from the whole file)")
    if wrapped and form.quoting == "auto":
        rows = _guarded(lines, delimiter, path, offset, spaced)
    else:
        rows = ((start, fields) for start, _, fields in _rows(lines(), delimiter, wrapped, path, offset, spaced))
    remedy = "Quote fields that hold commas or line breaks"
    if not wrapped:
        remedy = "Take what separates fields out of them; if quote marks wrap them, set data.format.quoting: wrapped"
    return table_of(rows, path, wanted, form.header, tuple(notes), ":", remedy)


def table_of(
    rows: Iterator[Row],
    path: str,
    wanted: Sequence[str] | None,
    header: bool,
    notes: tuple[str, ...] = (),
    line: str = " row ",
    remedy: str = "Name the column, or remove what is in it",
) -> Source:
    """Rows of fields → records. Passed over are columns without a name, if the last of them hold nothing, and rows of
    empty fields at the end.

    Args:
        line: what stands between the path and the number of a row.
        remedy: for a row that has not as many fields as the header.
    """
    start, first = next(((number, fields) for number, fields in rows if not all(map(_is_empty, fields))), (1, ()))
    if header:
        names = ["" if name is None else tidy(str(name)) for name in first]
    else:
        names = [f"column{number}" for number in range(1, len(first) + 1)]
        rows = chain([(start, first)], rows)
    full = len(names)
    while names and not names[-1]:
        names.pop()
    at = find_columns(wanted, names, f"{path}{line}{start}", NO_HEADER if header else "") if names else {}

    def records() -> Iterator[Record]:
        blank: list[int] = []  # rows of empty fields, passed over unless others follow
        repeatable = header and len(names) > 1
        for number, fields in rows:
            if not fields:
                continue
            if all(map(_is_empty, fields)):
                blank.append(number)
                continue
            where = f"{path}{line}{number}"
            yield from (Record(dict.fromkeys(at, ""), f"{path}{line}{before}") for before in blank)
            blank.clear()
            if len(fields) != len(names) and (
                len(fields) < len(names) or not all(map(_is_empty, fields[len(names) :]))
            ):
                found = "a value beyond" if len(fields) <= full > len(names) else "not"
                before = f". If line {start} is not the header, remove what stands before it" if len(names) == 1 else ""
                raise DataError(f"{found} the {len(names)} fields of the header", where=where, fix=remedy + before)
            if repeatable and fields[1:] == first[1:] and tidy(str(fields[0])) == names[0]:
                raise DataError("the header is there again", where=where, fix="Remove the line")
            yield Record({name: fields[position] for name, position in at.items()}, where)

    return Source(tuple(names), records(), notes)


def _is_empty(field: Any) -> bool:
    return field is None or (isinstance(field, str) and not field.strip())


def _delimiter(first: str, comma: str, wanted: Sequence[str] | None) -> str:
    """What separates the fields of a header: if it is not the comma of the format, then what is there most often.
    What is inside quote marks does not count; a .tsv file is always separated by tabs."""
    if comma == "\t":
        return comma
    bare = WRAPPED.sub("", first)
    columns = {tidy(column) for column in wanted or ()}
    for delimiter in DELIMITERS:
        if columns and columns <= {tidy(name.strip('"')) for name in first.split(delimiter)} and delimiter in bare:
            return delimiter
    counts = {delimiter: bare.count(delimiter) for delimiter in DELIMITERS}
    return comma if counts[comma] else max(counts, key=lambda delimiter: (counts[delimiter], delimiter == comma))


def _rows(
    lines: Iterable[str], delimiter: str, wrapped: bool, path: str, offset: int, spaced: bool = False
) -> Iterator[tuple[int, int, list[str]]]:
    """Each row with the lines where it begins and ends.

    Args:
        spaced: fields do not begin with spaces, but with what follows them.

    Raises:
        DataError: at the first line of what is not well-formed.
    """
    reader = (
        csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=spaced)
        if wrapped
        else csv.reader(lines, strict=True, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    )
    while True:
        start = offset + reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            last = offset + reader.line_num
            until = f" (begun here, read up to line {last})" if last > start else ""
            if str(exc).startswith("new-line character"):
                what = "broken CSV: a carriage return inside a field without quote marks"
                raise DataError(what, where=f"{path}:{start}", fix="Quote the field or take it out") from exc
            raise DataError(f"broken CSV: {exc}{until}", where=f"{path}:{start}", fix=QUOTE_REMEDY) from exc
        yield start, offset + reader.line_num, fields


def _spaced(lines: Callable[[], Iterator[str]], delimiter: str) -> bool:
    """Whether spaces stand before a mark that wraps a field, as in `a, "b, c"`: read as they are, the mark would be a
    character. At the end of a field the mark is followed by what separates, and inside it is doubled."""
    begins = re.compile(rf'{re.escape(delimiter)} +"(?!["\r\n]|\Z|{re.escape(delimiter)})')
    return any(begins.search(line) for line in lines())


def _wrapped(lines: Callable[[], Iterator[str]], delimiter: str, path: str) -> tuple[bool, bool]:
    """Whether quote marks wrap fields, and whether there are any.

    They do where no mark stands bare and a field needs its own (marks inside are doubled) or the header has some; and
    where the rows have as many fields as the header only if marks wrap.

    Raises:
        DataError: the file can be read in either way, with other rows.
    """
    width = written = 0
    fits, bare, needed, in_header, marks = True, False, False, False, False
    for line in lines():
        text = line.rstrip("\r\n")
        header = not width and bool(text)
        written += bool(text)
        width = width or (text.count(delimiter) + 1 if text else 0)
        fits &= not text or text.count(delimiter) + 1 == width
        if '"' not in text:
            continue
        marks = True
        for field in text.split(delimiter):
            if '"' in field:
                good = WRAPPED.fullmatch(field) is not None
                bare |= not good
                needed |= good and '""' in field[1:-1]
                in_header |= good and header
    if not marks or (fits and not bare):
        return marks and (needed or in_header), marks
    try:
        counts = [len(fields) for _, fields in _guarded(lines, delimiter, path, 0) if fields]
    except DataError:
        return False, marks
    wraps = set(counts) == {width}
    if wraps and fits and not in_header and len(counts) != written:
        raise DataError(
            f"it cannot be told whether quote marks wrap fields: then there are {len(counts)} rows, else {written}",
            where=path,
            fix="Set data.format.quoting: wrapped if they do, or none if they are plain characters",
        )
    return wraps and (in_header or not fits), marks


def _guarded(
    lines: Callable[[], Iterator[str]], delimiter: str, path: str, offset: int, spaced: bool = False
) -> Iterator[Row]:
    """The rows of a file whose quote marks wrap fields.

    Raises:
        DataError: after the last row, if a field of several lines holds what is a row by itself: a line of as many
            fields as the header that has in another column a value that rows have there.
    """
    suspects: dict[tuple[int, str], int] = {}
    width = 0
    for start, end, fields in _rows(lines(), delimiter, True, path, offset, spaced):
        width = width or len(fields)
        if end > start:
            for key in _rows_inside(fields, delimiter, width):
                suspects.setdefault(key, start)
        yield start, fields
    if not suspects:
        return
    found = [
        suspects[column, field.strip()]
        for _, _, fields in _rows(lines(), delimiter, True, path, offset, spaced)
        for column, field in enumerate(fields)
        if (column, field.strip()) in suspects
    ]
    if found:
        raise DataError("a quoted field goes over lines that are rows", where=f"{path}:{min(found)}", fix=QUOTE_REMEDY)


def _rows_inside(fields: Sequence[str], delimiter: str, width: int) -> Iterator[tuple[int, str]]:
    """Column and value of what could be fields of rows that a field of several lines has swallowed."""
    for column, field in enumerate(fields):
        first, *inner = field.replace("\r\n", "\n").split("\n")
        for begin, line in [(column, first), *((0, line) for line in inner)] if inner else []:
            values = line.split(delimiter)
            if begin + len(values) == width:
                for other, value in enumerate(values, start=begin):
                    if other != column and value.strip():
                        yield other, value.strip()
