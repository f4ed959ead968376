"""The JSON Schema of a configuration, for editors. What keys are for stands behind them in `sections`."""

from __future__ import annotations

from typing import Any

from gpta_local import __version__
from gpta_local.config.sections import Config

SCHEMA_FILE = "gpta-local.schema.json"
"""As configurations that `gpta-local init` writes name it."""


def json_schema() -> dict[str, Any]:
    """Of draft 2020-12. It holds types and limits; what a validator of several keys forbids, the loader alone knows."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": f"gpta-local {__version__}: a configuration of `gpta-local train`",
    }
