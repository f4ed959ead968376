"""`gpta-local init`: a commented configuration written from a data file. Guesses columns and says how sure it is.

Shows the shape of columns and the names of labels, no text of a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from gpta_local.config import SCHEMA_FILE, FormatConfig, ReadingConfig
from gpta_local.data.examples import LONG_NAME, MOST_LABELS, names_of
from gpta_local.data.holdout import held_out, write_parts
from gpta_local.data.labels import as_name, is_missing, label_name
from gpta_local.data.readers import read_records
from gpta_local.data.records import LONGEST_NAME, Table, find_columns, tidy
from gpta_local.errors import DataError, OutputError
from gpta_local.system.models import DEMO_BACKBONE, EMBEDDED_ASSISTANT

LONGEST_LABEL = 200
"""Characters; a key of YAML has room for 1024."""
LABEL_COLUMNS = (
    *("label", "labels", "label_text", "label_name", "class", "classes", "class_label", "category", "target", "intent"),
    *("intent_class", "sentiment", "topic", "emotion", "stance", "gold", "gold_label", "y"),
)
TEXT_COLUMNS = (
    *("text", "texts", "sentence", "message", "review", "review_text", "utterance", "tweet", "content", "body"),
    *("comment", "query", "question", "transcription", "transcript", "document", "description", "input"),
)
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("question", "answer"),
)
ABOUT_THE_ROW = re.compile(
    r"(^|_)(ids?|idx|index|no|nr|number|annotator|user|author|by|lang|language|locale|split|fold|source|country"
    r"|date|time|timestamp|created|updated|year|month|url|link|file|filename|path|version|score|confidence)($|_)"
)
"""Names of columns that have few values and seldom hold the label."""
DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?( .*)?|\d\d?[./-]\d\d?[./-]\d{2,4}( .*)?|\d\d?:\d\d(:\d\d)?"
)
URL = re.compile(r"(https?://|www\.)\S+", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?[\d.,' ]*\d[\d.,]*([eE][+-]?\d+)?\s*[%€$£]?")
MOST = 0.9
"""The share of a column's values that have to look like dates, addresses or numbers."""

Kind = Literal["text", "words", "numbers", "dates", "addresses", "ids", "nothing", "other"]


@dataclass(frozen=True, slots=True)
class Column:
    """The shape of a column. `distinct`: different values; `missing`: the share of rows without one; `length`: mean and
    most characters. `words`: at least two in most values, or letters that are written without blanks."""

    name: str
    kind: Kind
    distinct: int
    missing: float
    length: tuple[float, int]

    def __str__(self) -> str:
        mean, most = self.length
        if self.kind in ("nothing", "other"):
            return "empty" if self.kind == "nothing" else "neither texts nor labels"
        size = f"{mean:.0f} characters ({most} at most)"
        return f"{self.kind}, {self.distinct} different, {self.missing:.0%} missing, {size}"


def divided(path: Path) -> dict[str, Path]:
    """Write the rows to train on and those that are set aside for the test into files beside `path`: by name.

    Raises:
        DataError: no text or label column can be found, or there are too few rows.
        OutputError: there is a file of test rows already.
    """
    if there := _sibling(path, "test"):
        raise OutputError("these look like its test rows already", where=there, fix="Leave --split out")
    table, _ = _read(path)
    columns = _columns(table)
    label, _ = _label_column(columns, len(table.records), str(path))
    texts, _ = _text_columns(columns, label, str(path))
    _labels(table, label, str(path))
    train, test = held_out(table.records, [column.name for column in texts], label.name, str(path))
    return write_parts(path, {"train": train, "test": test})


def starter_config(path: Path, test: Path | None = None) -> str:
    """A configuration for the data at `path`, with siblings named validation and test if there.
    Paths stay as given, so the configuration belongs into the folder that the user is in.

    Args:
        test: rows that were set aside.

    Raises:
        DataError: if the file cannot be read, or no text or label column can be found.
    """
    table, header = _read(path)
    columns = _columns(table)
    label, label_doubt = _label_column(columns, len(table.records), str(path))
    texts, text_doubt = _text_columns(columns, label, str(path))
    names, unlabelled = _labels(table, label, str(path))
    siblings = {split: _sibling(path, split) for split in ("validation", "test")}
    if test:
        siblings["test"] = str(test)
    pair = len(texts) == 2
    shots = "# shots: 8             # rows per class to train with; all rows if not given"

    def line(key: str, value: str | None, comment: str) -> str:
        start = f"  {key}: {_quoted(value)}" if value else f"  # {key}: {path.stem}-{key}{path.suffix}"
        return f"{start:<40} # {comment}"

    return "\n".join(
        [
            "# Made by `gpta-local init`. Fill in card.description, then: gpta-local train THIS_FILE",
            f"# For an editor that completes and checks keys: gpta-local schema > {SCHEMA_FILE}",
            f"# yaml-language-server: $schema={SCHEMA_FILE}",
            *(f"# {_comment(note)}" for note in table.notes),
            f"task: text{'-pair' if pair else ''}-classification",
            "",
            "data:                                    # paths are relative to this file",
            line("train", str(path), f"{len(table.records)} rows"),
            line("validation", siblings["validation"], "rows to choose the prefix on"),
            line("test", siblings["test"], "rows for the one evaluation at the end"),
            line("text", texts[0].name, text_doubt),
            *([line("text_pair", texts[1].name, text_doubt)] if pair else []),
            line("label", label.name, label_doubt),
            *(
                []
                if header
                else ["  format: {header: false}                # guessed: the first line looks like a row"]
            ),
            f"  {shots}",
            "  # The columns, by their shape:",
            *(f"  #   {_comment(column.name) or '(no name)'}: {column}" for column in columns),
            *(f"  # {line}" for line in unlabelled),
            "",
            "card:                                    # all that the assistant is told; it sees no row",
            f"  name: {_quoted(path.parent.resolve().name or path.stem)}",
            "  # What is one input? Who wrote it, where? What does the label say? Two or three sentences",
            "  # in your own words, without any private text.",
            '  description: ""',
            "  labels:                                # a few words behind each: they help most of all",
            *(f'    {_quoted(name)}: ""' for name in names),
            "",
            "assistant:                               # in this process; docs/assistants.md has others",
            "  backend: local",
            f"  model: {_quoted(EMBEDDED_ASSISTANT)}",
            "",
            "downstream:",
            f"  backbone: {DEMO_BACKBONE}             # or the path of a model folder",
            "",
            "seed: 0",
            "",
        ]
    )


def _read(path: Path) -> tuple[Table, bool]:
    """The rows, and whether the first line has the names of the columns: it has none if a word there is no usual name
    and stands below in its column again, as labels do."""
    table = read_records(str(path))
    usual = {*LABEL_COLUMNS, *TEXT_COLUMNS, *(name for pair in PAIRS for name in pair)}
    if usual & {tidy(name).casefold() for name in table.columns}:
        return table, True
    by_shape = any(
        len(name.split()) < LONG_NAME and any(record.values.get(name) == name for record in table.records)
        for name in table.columns
    )
    if not by_shape:
        return table, True
    return read_records(str(path), reading=ReadingConfig(format=FormatConfig(header=False))), False


def _columns(table: Table) -> list[Column]:
    return [_column(table, name) for name in table.columns]


def _column(table: Table, name: str) -> Column:
    if name not in table.records[0].values and not any(name in record.values for record in table.records):
        return Column(name, "other", 0, 0.0, (0.0, 0))
    values = [record.values.get(name) for record in table.records]
    there = [value for value in values if not is_missing(value)]
    if not there:
        return Column(name, "nothing", 0, 1.0, (0.0, 0))
    plain = [_unwrapped(value) for value in there]
    written = [value if isinstance(value, str) else as_name(value) for value in plain]
    if not all(isinstance(value, str | int | float) or as_name(value) for value in plain):
        return Column(name, "other", 0, 1 - len(there) / len(values), (0.0, 0))
    lengths = [len(value) for value in written]
    length = (sum(lengths) / len(lengths), max(lengths))
    kind = "numbers" if not any(isinstance(value, str) for value in plain) else _kind_of(written)
    return Column(name, kind, len(set(written)), 1 - len(there) / len(values), length)


def _unwrapped(value: Any) -> Any:
    """The one value of a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _kind_of(values: Sequence[str]) -> Kind:
    stripped = [value.strip() for value in values]
    kinds: tuple[tuple[Kind, re.Pattern[str]], ...] = (("dates", DATE), ("addresses", URL), ("numbers", NUMBER))
    for kind, pattern in kinds:
        if sum(pattern.fullmatch(value) is not None for value in stripped) >= MOST * len(stripped):
            return kind
    if sum(" " in value or len(value.split()) > 1 or not value.isascii() for value in stripped) * 2 >= len(stripped):
        return "text"
    return "ids" if len(set(stripped)) >= MOST * len(stripped) and len(stripped) > 2 else "words"


def _label_column(columns: Sequence[Column], rows: int, where: str) -> tuple[Column, str]:
    """The column of the label, and how sure that is."""
    by_name = {tidy(column.name).casefold(): column for column in reversed(columns)}
    named = [by_name[name] for name in LABEL_COLUMNS if name in by_name and by_name[name].kind != "nothing"]
    if named:
        numbers_beside_words = [c for c in named if c.kind == "words"] if named[0].kind == "numbers" else []
        chosen = (numbers_beside_words or named)[0]
        others = [column.name for column in named if column is not chosen]
        return chosen, "by its name" + (f"; or is it {_listed(others)}?" if others else "")
    usable = [c for c in columns if c.kind in ("words", "text", "numbers", "ids") and _few(c, rows)]
    if not usable:
        raise DataError("no column looks like a label", where=where, fix=_choices(columns, "label"))

    marks = [c.name for c in usable if c.kind == "numbers" and (c.distinct, c.length[1]) == (2, 1)]
    marks = [name for name in marks if not ABOUT_THE_ROW.search(tidy(name).casefold())]
    if len(marks) > 1 and not any(c.kind in ("words", "text") for c in usable):
        raise DataError(
            f"{_listed(marks)} have two digits each, as where each label has a column of its own",
            where=where,
            fix="Write the name of each row's label into one column (several labels for one row are not there); if one "
            "of these is the label, rename it to `label`",
        )

    def doubt(column: Column) -> tuple[bool, bool, bool, int]:
        about = ABOUT_THE_ROW.search(tidy(column.name).casefold()) is not None
        return about, column.kind == "numbers", column.kind == "text", column.distinct

    chosen = min(usable, key=doubt)
    others = [column.name for column in usable if column is not chosen]
    return chosen, "a guess, as few values are different" + (f"; or is it {_listed(others)}?" if others else "")


def _few(column: Column, rows: int) -> bool:
    """Whether there are as few different values as of labels."""
    most = min(MOST_LABELS, max(2, rows // 3))
    return 2 <= column.distinct <= most and column.length[0] <= LONGEST_NAME and column.length[1] <= LONGEST_LABEL


def _text_columns(columns: Sequence[Column], label: Column, where: str) -> tuple[list[Column], str]:
    """The column of the text, or the two of a pair, and how sure that is."""
    usable = [c for c in columns if c is not label and c.kind in ("text", "words", "ids")]
    by_name = {tidy(column.name).casefold(): column for column in reversed(usable)}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            return [by_name[name] for name in pair], "by its name"
    named = [by_name[name] for name in TEXT_COLUMNS if name in by_name]
    texts = [column for column in usable if column.kind == "text"]
    if named and (named[0].kind == "text" or not texts):
        return named[:1], "by its name"
    if not usable:
        raise DataError("no column holds text", where=where, fix=_choices(columns, "text"))
    chosen = max(texts or usable, key=lambda column: column.length[0])
    others = [column.name for column in texts if column is not chosen]
    sure = "the longest texts" if texts else "a guess: no column has more than single words"
    return [chosen], sure + (f"; or is it {_listed(others)}?" if others else "")


def _labels(table: Table, label: Column, where: str) -> tuple[list[str], list[str]]:
    """The names of the labels, and a sentence where rows have none."""
    at = find_columns([label.name], [label.name], where)
    values = [(record, record.values.get(label.name)) for record in table.records] if at else []
    if label.kind == "other" or any(len(as_name(_unwrapped(value))) > LONGEST_LABEL for _, value in values):
        raise DataError(
            f"the column {label.name!r} holds lists of several, or long texts, no labels",
            where=where,
            fix="One label for each row is needed: a word, a number, or a list of one",
        )
    labelled = [record for record, value in values if not is_missing(value)]
    names = names_of([label_name(record, label.name) for record in labelled])
    if len(names) > MOST_LABELS or len(names) > max(2, len(labelled) // 2):
        why = "each label has one row" if len(names) == len(labelled) else "labels have too few rows"
        raise DataError(
            f"the column {label.name!r} has {len(names)} different values in {len(labelled)} rows: it holds no labels, "
            f"or {why if len(names) <= MOST_LABELS else 'too many'}",
            where=where,
            fix="Two rows or more for each label are needed; otherwise write the configuration by hand and list the "
            "labels in card.labels",
        )
    if any(len(name.split()) >= LONG_NAME for name in names):
        raise DataError(
            f"a label in the column {label.name!r} has {LONG_NAME} words or more: it holds no labels, or long ones",
            where=where,
            fix="If they are labels, write the configuration by hand and list them in card.labels",
        )
    if len(names) < 2:
        raise DataError(
            f"only one class, {names[0]!r}, in the column {label.name!r}" if names else "no class",
            where=where,
            fix="A classifier needs at least two",
        )
    without = [record.where for record, value in values if is_missing(value)]
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold(), []).append(name)
    alike = [f"{_listed(same)} differ by capitals alone: is that one label?" for same in folded.values() if same[1:]]
    if not without:
        return names, alike
    count = f"{len(without)} row{' has' if len(without) == 1 else 's have'} no label, the first at {without[0]}"
    return names, [*alike, f"{_comment(count)}: remove or fill in, or `train` refuses them"]


def _listed(names: Sequence[str]) -> str:
    return _comment(", ".join(names[:5]))


def _choices(columns: Sequence[Column], key: str) -> str:
    shapes = "; ".join(f"{_comment(column.name)} ({column})" for column in columns)
    nested = any(column.kind == "other" for column in columns)
    apart = "; nested values are not read: write each into a column of its own" if nested else ""
    return f"The columns are: {shapes[:600]}. Rename the right one to `{key}`{apart}"


def _comment(text: str) -> str:
    """As it can stand in a comment of one line."""
    return "".join(character if character.isprintable() else " " for character in tidy(text))


def _sibling(path: Path, split: str) -> str | None:
    for name in (split, {"validation": "dev", "test": "test"}[split]):
        for candidate in (path.with_name(name + path.suffix), path.with_name(path.name.replace("train", name))):
            if candidate != path and candidate.exists():
                return str(candidate)
    return None


def _quoted(value: str | None) -> str:
    """The value as a YAML scalar of one line that reads back as this very string ("no" and "1" in quotes)."""
    style = None if value is None or value.isprintable() else '"'
    text = yaml.safe_dump(value, width=10**6, allow_unicode=True, default_style=style)
    return text.removesuffix("\n").removesuffix("\n...").strip()
