"""Values of the label column → names of classes. A missing value is told, never a class."""

from __future__ import annotations

import math
from collections.abc import Container
from decimal import Decimal
from functools import lru_cache
from typing import Any

from gpta_local.data.records import Record, missing_column, tidy
from gpta_local.errors import DataError

MISSING = frozenset({"nan", "NaN", "NAN", "<NA>", "NaT", "#N/A", "NULL", "\\N"})
"""How programs write that there is no value; a class of this name must be listed in card.labels."""


def label_name(record: Record, column: str, listed: Container[str] = ()) -> str:
    """The label of a row: a word, a number or a list of one of them.

    Args:
        listed: keys of labels that are known to be classes, whatever they look like.

    Raises:
        DataError: if it is missing, or can be no label.
    """
    if column not in record.values:
        raise missing_column(column, record.values, record.where)
    value = record.values[column]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    name = as_name(value)
    if name and (name not in MISSING or label_key(name) in listed):
        return name
    if isinstance(value, list) and value:
        raise DataError(
            f"{column!r} is a list of {len(value)} labels",
            where=record.where,
            fix="Rows with several labels are for multi-label classification, which is not there: keep one of each",
        )
    if isinstance(value, str) and not _is_unicode(value):
        raise DataError(f"{column!r} is not valid Unicode (half of a surrogate pair)", where=record.where)
    kind = type(value).__name__
    detail = f" (as for {name})" if name else " (as for null)" if value is None or value != value else ""
    detail = f" (it is {kind})" if isinstance(value, dict | bytes | list) and value else detail
    listing = ". If it is a class, list it in card.labels" if name else ""
    raise DataError(
        f"{column!r} is empty or not a label{detail}",
        where=record.where,
        fix=f"Remove the row or fill it in{listing}",
    )


def as_name(value: Any) -> str:
    """A label as a name: in NFC, white space as one blank, whole numbers without a point; "" for what is none."""
    if isinstance(value, str):
        return _tidy(value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            return ""
        return str(int(value)) if value == int(value) else str(value)
    return ""


def is_missing(value: Any) -> bool:
    """Whether there is no label; what can be none (a list of several) is not missing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return (
        value is None or value == [] or (isinstance(value, str | float | Decimal) and as_name(value) in {"", *MISSING})
    )


@lru_cache(maxsize=4096)
def label_key(name: str) -> str:
    """The same for all spellings of one label: 1 and 1.0, true and TRUE."""
    name = tidy(name)
    whole, point, decimals = name.partition(".")
    if point and whole.lstrip("+-").isdecimal() and decimals and not decimals.strip("0"):
        return "0" if whole == "-0" else whole
    return name.casefold() if name.casefold() in ("true", "false") else name


@lru_cache(maxsize=4096)
def _tidy(name: str) -> str:
    return tidy(name) if _is_unicode(name) else ""


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
