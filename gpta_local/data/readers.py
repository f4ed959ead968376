"""Files and folders → records. Knows formats, compression and encodings; the only module that opens private rows.

Does not know models or assistants, and nothing on the assistant's side imports it. Messages name
file and line, never a row's text.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gpta_local.config import ReadingConfig
from gpta_local.data.columnar import read_parquet, read_saved_folder, read_sheet
from gpta_local.data.records import Record, Source, Table, find_columns, tidy
from gpta_local.data.separated import read_separated
from gpta_local.errors import DataError

FORMATS = (
    "a .jsonl, .csv, .tsv or .parquet file, or .json or .xlsx, a folder of such files, or a folder saved by `datasets`"
)
STDIN = "-"
"""In place of a path: standard input, JSON lines or a table with a header."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before that of UTF-16, which is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SAVED_BY_DATASETS = {"state.json", "dataset_info.json", "dataset_dict.json"}
COMPRESSED = (".gz", ".zst")
GZIP = b"\x1f\x8b"
"""How each .gz file begins."""
OTHERWISE = {
    ".zip": "Unpack it, and give the file inside",
    ".xls": "Save it as .xlsx, or as CSV",
    ".ods": "Save it as .xlsx, or as CSV",
    ".feather": "Save it as .parquet",
    ".arrow": "Save it as .parquet, or give the folder that `datasets` saved",
    ".txt": "If its lines have fields, name it .csv or .tsv; if they begin with __label__, write label and text apart",
    ".pkl": "It may run code when it is read. Save it as .parquet",
}
"""By the ending of files that people bring, what to do with them."""


def read_records(path: str, columns: Sequence[str] | None = None, reading: ReadingConfig | None = None) -> Table:
    """All rows of a file or folder.

    Args:
        columns: those in use, which must be there; nothing else is kept. None: all of plain values.
        reading: what the configuration says of how files are written.

    Raises:
        DataError: if it is missing, empty or broken, or has not the columns; names file and line.
    """
    location, reading = Path(path), reading or ReadingConfig()
    if path != STDIN and not location.exists():
        raise DataError("no such file or folder", where=path, fix="Paths are relative to the configuration file")
    if path != STDIN and location.is_dir():
        return _read_folder(location, columns, reading)
    return _table(path, _source(location, columns, reading))


def open_records(path: str, reading: ReadingConfig | None = None) -> Source:
    """The rows of a file, of standard input or of a folder saved by `datasets`, all columns of plain values, one by
    one: what has been read is not held, but for .json and .xlsx."""
    location = Path(path)
    if path != STDIN and location.is_dir():
        return read_saved_folder(location, None, FORMATS)
    return _source(location, None, reading or ReadingConfig())


def stdin_format() -> str:
    """What standard input holds, by how it begins: JSON lines, or fields between commas or tabs. Nothing is taken off.

    Raises:
        DataError: there is none.
    """
    if sys.stdin is None:
        raise DataError("is closed", where="standard input")
    buffer = sys.stdin.buffer
    begin = buffer.peek() if isinstance(buffer, io.BufferedReader) else b""
    first, _, _ = begin.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if not first or first[:1] in b"{[":
        return ".jsonl"
    return ".tsv" if b"\t" in first else ".csv"


def files_of(paths: Sequence[str]) -> list[str]:
    """The files that these paths stand for: a folder for those in it that can be read, a pattern for what it matches.

    Raises:
        DataError: a path stands for none.
    """
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: str) -> list[str]:
    location = Path(path)
    if path == STDIN or location.is_file():
        return [path]
    if location.is_dir():
        inside = sorted(entry for entry in location.iterdir() if not entry.name.startswith((".", "_")))
        if any(entry.name in SAVED_BY_DATASETS for entry in inside):
            return [path]
        files = [str(entry) for entry in inside if entry.is_file() and _format_of(entry) in READERS]
        if not files:
            raise DataError("no file in this folder can be read", where=path, fix=f"Give {FORMATS}")
        return files
    if location.exists():  # a pipe or a device
        return [path]
    if not (found := sorted(glob.glob(path, recursive=True))):  # noqa: PTH207  also of absolute paths
        raise DataError("no such file or folder", where=path)
    return [file for one in found if one != path for file in _files_of(one)]


def _table(path: str, source: Source) -> Table:
    records = list(source.records)
    if not records:
        raise DataError("no rows", where=path)
    names = source.columns or tuple(dict.fromkeys(name for record in records for name in record.values))
    return Table(names, records, tuple(f"{path}: {note}" for note in source.notes))


def _read_folder(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Table:
    """A folder saved by `datasets`, or one whose files are the shards of one table."""
    try:
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith((".", "_")))
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror or exc})", where=str(path)) from exc
    kinds = {_format_of(entry) for entry in inside}
    if any(entry.name in SAVED_BY_DATASETS for entry in inside) or len(kinds) != 1 or not kinds <= READERS.keys():
        return _table(str(path), read_saved_folder(path, columns, FORMATS))
    splits = {entry.name.split(".")[0].split("-")[0] for entry in inside}
    if len(splits & {"train", "validation", "valid", "dev", "test"}) > 1:
        raise DataError(
            "a folder of several splits",
            where=str(path),
            fix="Name one file, or put the files of each split into a folder of its own",
        )
    shards = [_table(str(entry), _source(entry, columns, reading)) for entry in inside]
    return Table(
        tuple(dict.fromkeys(name for shard in shards for name in shard.columns)),
        [record for shard in shards for record in shard.records],
        (*(note for shard in shards[:1] for note in shard.notes), f"{path}: {len(shards)} files read as one"),
    )


def _format_of(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _source(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    kind = stdin_format() if str(path) == STDIN else _format_of(path)
    if kind not in READERS:
        raise DataError(
            f"the format {kind!r} is not known", where=str(path), fix=OTHERWISE.get(kind, f"Give {FORMATS}")
        )
    try:
        source = READERS[kind](path, columns, reading)
    except (UnicodeError, EOFError, zlib.error, OSError) as exc:
        raise _unreadable(path, reading, exc) from exc
    return Source(source.columns, _watched(source.records, path, reading), source.notes)


def _watched(records: Iterator[Record], path: Path, reading: ReadingConfig) -> Iterator[Record]:
    """The records; what goes wrong in opening and decoding is told in our words."""
    try:
        yield from records
    except (UnicodeError, EOFError, zlib.error, OSError) as exc:
        raise _unreadable(path, reading, exc) from exc


def _unreadable(path: Path, reading: ReadingConfig, exc: Exception) -> DataError:
    if isinstance(exc, UnicodeError):
        return _undecodable(path, reading, exc)
    if isinstance(exc, OSError) and (exc.errno or path.suffix.lower() not in COMPRESSED):
        return DataError(f"cannot be read ({exc.strerror or exc})", where=str(path))
    if isinstance(exc, gzip.BadGzipFile) and path.open("rb").read(2) != GZIP:
        fix = f"It is not compressed, or not by gzip: name it {path.stem}, or compress it"
        return DataError("not a .gz file", where=str(path), fix=fix)
    return DataError(f"not a whole {path.suffix} file", where=str(path), fix="Copy or compress it again")


def _undecodable(path: Path, reading: ReadingConfig, exc: UnicodeError) -> DataError:
    """With the line of the first byte that does not fit: decoders name its place in a part of the file."""
    encoding = reading.encoding or "UTF-8"
    where, detail = str(path), ""
    if isinstance(exc, UnicodeDecodeError) and where != STDIN:
        with _bytes_of(path) as file:
            content = file.read()
        encoding = exc.encoding if exc.encoding.startswith(("utf-16", "utf-32")) else encoding
        try:
            content.decode(_encoding(path, reading))
        except UnicodeDecodeError as found:
            line = content.count(b"\n", 0, found.start) + 1
            where = f"{path}:{line}"
            detail = f" (byte {found.start})"
    remedy = "Convert the file to UTF-8, or say how it is written in data.encoding, such as cp1252"
    return DataError(f"not {encoding} text{detail}", where=where, fix=remedy)


def _bytes_of(path: Path) -> BinaryIO:
    if str(path) == STDIN:
        return sys.stdin.buffer
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)  # type: ignore[return-value]  # its type says less than it is
        case ".zst":
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _encoding(path: Path, reading: ReadingConfig) -> str:
    if reading.encoding is not None and codecs.lookup(reading.encoding).name != "utf-8":
        return reading.encoding
    if str(path) == STDIN:
        return "utf-8-sig"
    with _bytes_of(path) as file:
        begin = file.read(4)
    return next((name for mark, name in MARKS if begin.startswith(mark)), "utf-8")


def _text_of(path: Path, encoding: str, newline: str = "") -> TextIO:
    return io.TextIOWrapper(_bytes_of(path), encoding=encoding, newline=newline)


def _text_in(content: bytes, encoding: str, newline: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding, newline=newline)


def _encoding_notes(encoding: str) -> tuple[str, ...]:
    return (f"read as {encoding.upper()} (its byte order mark says so)",) if encoding in ("utf-16", "utf-32") else ()


def _read_jsonl(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    encoding = _encoding(path, reading)
    name = "standard input" if str(path) == STDIN else str(path)
    return Source((), _json_lines(_text_of(path, encoding), name, columns), _encoding_notes(encoding))


def _json_lines(lines: TextIO, path: str, columns: Sequence[str] | None) -> Iterator[Record]:
    with closing(lines) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix("\ufeff")
            values = _parsed(line, where, "Each line must be one JSON object")
            if not isinstance(values, dict):
                raise DataError(
                    f"a JSON {type(values).__name__}, not an object",
                    where=where,
                    fix='Each line must be like {"text": "...", "label": "..."}',
                )
            yield Record(_chosen(values, columns, where), where)


def _parsed(text: str, where: str, remedy: str, *, whole: bool = False) -> Any:
    """`whole`: the text is a file, and the line of what is broken is told."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        if isinstance(exc, json.JSONDecodeError):
            detail = f"{exc.msg} at column {exc.colno}"
            where = f"{where}:{exc.lineno}" if whole else where
        else:
            detail = "nested too deep" if isinstance(exc, RecursionError) else "a number is too long"
        raise DataError(f"broken JSON: {detail}", where=where, fix=remedy) from exc


def _chosen(values: dict[str, Any], columns: Sequence[str] | None, where: str) -> dict[str, Any]:
    if columns is None:
        return {tidy(name): value for name, value in values.items()}
    try:
        return {column: values[column] for column in columns}
    except KeyError:  # rare: a name in another Unicode form, or none
        names = list(values)
        at = find_columns(columns, names, where)
        return {column: values[names[position]] for column, position in at.items()}


LIST_REMEDY = "Give a list of objects, or one object on each line"


def _refuse_tables(content: str, where: str) -> None:
    """
    Raises:
        DataError: the content is one object that holds all rows.
    """
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):  # objects on lines, or broken
        return
    tables = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    columns = {len(value) for value in whole.values() if isinstance(value, dict | list)}
    if tables:
        what = f"an object whose key {tables[0]!r} holds the rows"
        raise DataError(what, where=where, fix="Save that list alone")
    if len(whole) > 1 and len(columns) == 1 and all(isinstance(value, dict | list) for value in whole.values()):
        fix = "Save it by rows, as pandas does with to_json(orient='records')"
        raise DataError("a table by columns, not by rows", where=where, fix=fix)


def _read_json(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    """A list of objects; or lines of one object each, which some call .json too."""
    encoding = _encoding(path, reading)
    with closing(_text_of(path, encoding)) as file:
        first = next((line for line in file if line.strip("\ufeff \t\r\n")), "")
    if first.lstrip("\ufeff \t").startswith("{"):
        with closing(_text_of(path, encoding)) as file:
            content = file.read().removeprefix("\ufeff")
        _refuse_tables(content, str(path))
        try:
            json.loads(first.lstrip("\ufeff"))
        except (ValueError, RecursionError):
            raise DataError("not a list of objects", where=str(path), fix=LIST_REMEDY) from None
        return _read_jsonl(path, columns, reading)
    with closing(_text_of(path, encoding)) as file:
        content = file.read().removeprefix("\ufeff")
    values = _parsed(content, str(path), "Give a list of objects", whole=True) if content.strip() else []
    if not isinstance(values, list):
        raise DataError(f"a JSON {type(values).__name__}, not a list of objects", where=str(path))

    def records() -> Iterator[Record]:
        for number, row in enumerate(values, start=1):
            where = f"{path} row {number}"
            if not isinstance(row, dict):
                raise DataError(f"a JSON {type(row).__name__}, not an object", where=where)
            yield Record(_chosen(row, columns, where), where)

    return Source((), records(), _encoding_notes(encoding))


def _read_separated(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    encoding = _encoding(path, reading)
    kind, name, open_file = _format_of(path), str(path), partial(_text_of, path, encoding)
    if str(path) == STDIN:  # it is read more than once
        kind, name = stdin_format(), "standard input"
        open_file = partial(_text_in, sys.stdin.buffer.read(), encoding)
    source = read_separated(open_file, name, "\t" if kind == ".tsv" else ",", columns, reading.format)
    return Source(source.columns, source.records, _encoding_notes(encoding) + source.notes)


def _read_parquet(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    if path.suffix.lower() not in COMPRESSED:
        return read_parquet(path, str(path), columns)
    with _bytes_of(path) as file:
        return read_parquet(io.BytesIO(file.read()), str(path), columns)


def _read_sheet(path: Path, columns: Sequence[str] | None, reading: ReadingConfig) -> Source:
    with _bytes_of(path) as file:
        return read_sheet(io.BytesIO(file.read()), str(path), columns, reading.format)


READERS: dict[str, Callable[[Path, Sequence[str] | None, ReadingConfig], Source]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".parquet": _read_parquet,
    ".xlsx": _read_sheet,
}
