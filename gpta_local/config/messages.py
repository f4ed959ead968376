"""Errors of the check → lines that a user understands: the key, what is wrong with it, how to mend it."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from gpta_local.config.assistants import (
    SECRET_NAME,
    LocalAssistantConfig,
    OpenAIAssistantConfig,
    ReplayAssistantConfig,
    VLLMAssistantConfig,
    secret_in,
)
from gpta_local.config.section import Section
from gpta_local.config.sections import Config

BACKENDS: dict[str, type[Section]] = {
    "local": LocalAssistantConfig,
    "openai": OpenAIAssistantConfig,
    "vllm": VLLMAssistantConfig,
    "replay": ReplayAssistantConfig,
}


def explain(error: Any, content: dict[str, Any], kind: type[Section] = Config) -> str:
    """One line for one pydantic error of a `kind`: key, what is wrong, how to mend it."""
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["assistant"] and len(location) > 1 and location[1] in BACKENDS:
        del location[1]  # the discriminator that pydantic puts into the path
    if location[:2] == ["card", "labels"]:
        del location[2:3]  # another
    key = f"a key of {'.'.join(location[:-2])}" if location[-1:] == ["[key]"] else ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], content, kind)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        if SECRET_NAME.search(location[-1]):
            return f"unknown key {key!r}; a key never goes into a configuration: see assistant.api_key_file"
        return f"unknown key {key!r}" + (
            f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        )
    if error["type"] == "missing":
        return f"the key {key!r} is missing"
    if error["type"] == "union_tag_invalid":
        return f"{key}.backend must be one of {', '.join(BACKENDS)}"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    message = str(error["msg"]).removeprefix("Input ").removeprefix("String ")
    given = error.get("input")
    if location[-1:] in (["api_key_env"], ["api_key_file"]) or secret_in(given):
        return f"{key} {message}, not what is given"
    shown = "a section" if isinstance(given, dict) else re.sub(r"//[^/@]*@", "//***@", f"{given!r}")[:80]
    hint = " (put it in quotes)" if error["type"] == "string_type" and isinstance(given, bool | int | float) else ""
    return f"{key} {message}, not {shown}{hint}"


def _known_keys(location: list[str], content: dict[str, Any], kind: type[Section]) -> list[str]:
    if kind is Config and location[:1] == ["assistant"]:
        return list(BACKENDS[content["assistant"]["backend"]].model_fields)
    section = kind
    for part in location:
        if part in section.model_fields:  # otherwise the name or number of a section among others
            annotation = section.model_fields[part].annotation
            section = next((inner for inner in (annotation, *get_args(annotation)) if _is_section(inner)), section)
    return list(section.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
