"""gpta-local: a better small text model out of a large one that never sees your data.

    from gpta_local import train

    result = train("config.yaml", {"seed": 1})
    print(result.accuracy, result.verdict)
    print(result.predict(["When may I come for my blood test?"]))

Names are imported when they are first used: `import gpta_local` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpta_local.config import Config, load_config
    from gpta_local.errors import (
        AssistantError,
        ConfigError,
        DataError,
        GptaError,
        InputError,
        ModelError,
        OutputError,
        PrivacyError,
        StorageError,
        TrainingError,
    )
    from gpta_local.observer import Observer
    from gpta_local.run.api import Result, evaluate, predict, train

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Config", "load_config"), "gpta_local.config"),
    **dict.fromkeys(
        (
            "AssistantError",
            "ConfigError",
            "DataError",
            "GptaError",
            "InputError",
            "ModelError",
            "OutputError",
            "PrivacyError",
            "StorageError",
            "TrainingError",
        ),
        "gpta_local.errors",
    ),
    "Observer": "gpta_local.observer",
    **dict.fromkeys(("Result", "evaluate", "predict", "train"), "gpta_local.run.api"),
}

__all__ = [
    "AssistantError",
    "Config",
    "ConfigError",
    "DataError",
    "GptaError",
    "InputError",
    "ModelError",
    "Observer",
    "OutputError",
    "PrivacyError",
    "Result",
    "StorageError",
    "TrainingError",
    "evaluate",
    "load_config",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
