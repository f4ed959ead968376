"""Packages that only an extra brings."""

from __future__ import annotations

import importlib
from typing import Any

from gpta_local.errors import InputError


def extra_module(name: str, extra: str) -> Any:
    """A module of a package that `pip install "gpta-local[EXTRA]"` brings.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        package = name.partition(".")[0]
        raise InputError(f"needs {package}, which is not installed", fix=f'pip install "gpta-local[{extra}]"') from exc
