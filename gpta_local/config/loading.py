"""YAML files and overrides → checked configurations, and back.

Paths are relative to the folder of the configuration file. `--set a.b=c` overrides go in before the check, with the
value read as YAML.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from gpta_local.config.assistants import TEACHER, AssistantConfig, LocalAssistantConfig, ReplayAssistantConfig
from gpta_local.config.messages import explain
from gpta_local.config.section import Section
from gpta_local.config.sections import Config, DialogueGradientConfig, InputConfig
from gpta_local.errors import ConfigError
from gpta_local.system.library import is_name, teacher
from gpta_local.system.models import DEMO_BACKBONE

MOST_PROBLEMS = 10
"""Of a configuration, in one message."""
ASSISTANT_PATHS = {"adapter", "api_key_file", "run", "weights"}
"""Keys of the assistants' sections that are paths, whichever the backend."""

DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".gz", ".zst")

"""Of files of rows; a .json file can be a configuration."""
FROM_ROWS = "Make one from your rows: gpta-local init {} > config.yaml"

S = TypeVar("S", bound=Section)


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a configuration file; its paths come out absolute.

    Raises:
        ConfigError: with every problem found, each with its key.
    """
    content = read_yaml(path)
    for override in overrides:
        _override(content, override)
    return _configuration(content, path)


def load_config(config: Path | str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """As `load`, of a file or of its content, whose paths are then relative to the working directory.

    Args:
        overrides: dotted keys and their values, as in {"search.rounds": 2}.

    Raises:
        ConfigError: with every problem found, each with its key.
    """
    path = Path.cwd() / "run" if isinstance(config, Mapping) else Path(config)
    content = copy.deepcopy(dict(config)) if isinstance(config, Mapping) else read_yaml(path)
    for key, value in (overrides or {}).items():
        _put(content, key, value, "overrides")
    return _configuration(content, path)


def _configuration(content: dict[str, Any], path: Path) -> Config:
    if "assistant" in content and isinstance(content["assistant"], dict):
        content["assistant"].setdefault("backend", "local")
    return _resolve(check(Config, content, path), path)


def check(kind: type[S], content: dict[str, Any], path: Path) -> S:
    """The content of a YAML file as a section.

    Raises:
        ConfigError: with every problem found, each with its key.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as exc:
        problems = [explain(error, content, kind) for error in exc.errors()]
        if more := len(problems[MOST_PROBLEMS:]):
            problems[MOST_PROBLEMS:] = [f"and {more} more"]
        raise ConfigError("\n".join(problems), where=str(path)) from exc


def dialogue_gradient(overrides: Sequence[str]) -> DialogueGradientConfig:
    """The section `dialogue_gradient` from KEY=VALUE overrides alone.

    Raises:
        ConfigError: with every problem found.
    """
    content: dict[str, Any] = {}
    for override in overrides:
        _override(content, f"dialogue_gradient.{override}")
    try:
        return DialogueGradientConfig.model_validate(content.get("dialogue_gradient", {}))
    except ValidationError as exc:
        errors = [{**error, "loc": ("dialogue_gradient", *error["loc"])} for error in exc.errors()]
        raise ConfigError("\n".join(explain(error, content) for error in errors), where="--set") from exc


def reading(overrides: Sequence[str], given: Mapping[str, Any]) -> InputConfig:
    """How a file is written and its columns, from what is `given` and KEY=VALUE overrides of keys of `data`.

    Raises:
        ConfigError: with every problem found.
    """
    content: dict[str, Any] = {"data": dict(given)}
    for override in overrides:
        _override(content, override)
    if others := sorted(content.keys() - {"data"}):
        known = ", ".join(f"data.{name}" for name in InputConfig.model_fields)
        raise ConfigError(f"{others[0]!r} cannot be set here, only {known}", where="--set")
    try:
        return InputConfig.model_validate(content["data"])
    except ValidationError as exc:
        errors = [{**error, "loc": ("data", *error["loc"])} for error in exc.errors()]
        raise ConfigError("\n".join(explain(error, content) for error in errors), where="--set") from exc


def dump(config: Config) -> str:
    """The resolved configuration as YAML. It holds no secret: keys are only named."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _PlainLoader(yaml.SafeLoader):
    """A key given twice is an error instead of a silent overwrite. So is an alias: it can make a value that
    holds itself, or one of a billion parts out of a few lines."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked. Raises a ConfigError if there is none."""
    if path.name.lower().endswith(DATA_ENDINGS) and path.exists():
        raise ConfigError("a data file, not a configuration", where=str(path), fix=FROM_ROWS.format(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError("no such configuration file", where=str(path)) from exc
    except IsADirectoryError as exc:
        raise ConfigError("a folder, not a configuration file", where=str(path), fix=FROM_ROWS.format("DATA")) from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot be read as UTF-8 text ({exc})", where=str(path)) from exc
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {getattr(exc, 'problem', None) or exc}", where=where) from exc
    if not isinstance(content, dict):
        raise ConfigError("not a mapping of keys to values", where=str(path), fix="Start from `gpta-local init DATA`")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"{override!r} is not of the form a.b=c", where="--set")
    try:
        parsed = yaml.load(value, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the value of {key.strip()[:80]!r} is not valid YAML", where="--set") from exc
    _put(content, key.strip(), parsed, "--set")


def _put(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    section, (*parts, last) = content, key.split(".")
    for part in parts:
        if section.get(part) is None:  # also a section that is switched off
            section[part] = {}
        inner = section[part]
        if not isinstance(inner, dict):
            raise ConfigError(f"{part!r} in {key!r} is a value, not a section", where=where)
        section = inner
    section[last] = value


def _resolve(config: Config, path: Path) -> Config:
    """Make paths absolute and fill in what follows from the file's name and the task."""
    base = path.resolve().parent

    def absolute(value: str | None) -> str | None:
        try:
            return None if value is None else str((base / Path(value).expanduser()).resolve())
        except (RuntimeError, ValueError, OSError) as exc:
            raise ConfigError(f"{value!r} cannot be a path ({exc})", where=str(path)) from exc

    data = config.data.model_copy(
        update={
            "train": absolute(config.data.train),
            "validation": absolute(config.data.validation),
            "test": absolute(config.data.test),
            "text_pair": config.data.text_pair or ("text_pair" if config.task == "text-pair-classification" else None),
        }
    )
    card = config.card.model_copy(update={"name": config.card.name or path.stem})
    assistant = _with_teacher(config.assistant, path)
    keys = ASSISTANT_PATHS & type(assistant).model_fields.keys()
    assistant = assistant.model_copy(update={key: absolute(getattr(assistant, key)) for key in keys})
    if isinstance(assistant, LocalAssistantConfig) and not is_name(assistant.model):
        assistant = assistant.model_copy(update={"model": absolute(assistant.model)})
    downstream = config.downstream
    if downstream.backbone != DEMO_BACKBONE:
        downstream = downstream.model_copy(update={"backbone": absolute(downstream.backbone)})
    search = config.search
    if data.train is None:  # nothing that prefixes or the assistant's label texts could be measured on
        search = search.model_copy(update={"rounds": 0, "label_text_samples": 0})
    found = {"data": data, "card": card, "assistant": assistant, "downstream": downstream, "search": search}
    return config.model_copy(update=found)


def _with_teacher(assistant: AssistantConfig, path: Path) -> AssistantConfig:
    """With the path of the adapter that comes with this package, where that is asked for; without one, where a local
    model has none.

    Raises:
        ConfigError: a served model has none.
    """
    if getattr(assistant, "adapter", None) != TEACHER:
        return assistant
    assert not isinstance(assistant, ReplayAssistantConfig)
    local = isinstance(assistant, LocalAssistantConfig)
    found = None if local and not is_name(assistant.model) else teacher(assistant.model)  # a folder can hold others
    if found is None and not local:
        raise ConfigError(
            f"no adapter comes with this package for {assistant.model!r}",
            where=f"{path}: assistant.adapter",
            fix="Give the folder of one, or leave the key out",
        )
    return assistant.model_copy(update={"adapter": found and str(found)})
