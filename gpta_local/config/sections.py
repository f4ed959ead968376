"""The configuration: YAML → checked, frozen models. Knows keys, types and limits.

Does not know what the values do, and opens no file but the YAML. Unknown keys are errors. Paths
are relative to the folder of the configuration file. `--set a.b=c` overrides go in before the
check, with the value read as YAML.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from gpta_local.errors import ConfigError
from gpta_local.system.network import is_this_machine, normal_host

EMBEDDED_ASSISTANT = "nano-assistant"
DEMO_BACKBONE = "all-MiniLM-L6-v2"
SECRET_NAME = re.compile(
    r"(?i)(api|access|private|secret)[_-]?key|secret|passw(or)?d|authori[sz]ation|bearer|credential"
    r"|(api|access|auth|refresh|session|hf)[_-]?token$"
)
OWN_FIELDS = {"messages", "model", "n", "stream"}
"""Fields of a request that are made here, scanned and recorded: nothing may replace them."""
SECRET_VALUE = re.compile(r"(Bearer |sk-|hf_|ghp_|glpat-|eyJ)\S{8}")
"""As keys of well-known services begin."""


SHOWN_PROBLEMS = 10
"""Of a configuration, in one message."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


S = TypeVar("S", bound=Section)


class DataConfig(Section):
    """Where the rows are. Formats: .jsonl, .csv, .tsv, .parquet, or a folder saved by `datasets`."""

    train: str
    validation: str | None = None
    """Rows to choose the prefix on. None: a tenth is carved from 500 training rows or more, and wherever the search
    is online; otherwise prefixes are chosen by cross-validation on the training rows."""
    test: str | None = None
    """Rows for the one evaluation at the end. Nothing is chosen on them."""
    text: str = "text"
    text_pair: str | None = None
    """Column of the second text; for `text-pair-classification` "text_pair" if not given."""
    label: str = "label"
    shots: int | None = Field(default=None, ge=1)
    """Training rows per class, sampled with `seed`. None: all rows."""


Labels = Annotated[
    Annotated[list[str], Tag("list")] | Annotated[dict[str, str], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "list"),
]


class CardConfig(Section):
    """All that the assistant is told. Write no private text here: it leaves for the assistant."""

    name: str | None = None
    """None: the name of the configuration file."""
    description: str = Field(min_length=10)
    labels: Labels | None = None
    """Label names in order, or names with a meaning each. None: the names in the training rows."""


class SamplingConfig(Section):
    temperature: float = Field(default=1.0, ge=0, le=5)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=8, le=32768)
    """Room for one completion, in the assistant's tokens. None: 48 for a prefix, 32 and 24 per label
    for label texts. Models that think before they answer need more, such as 2048."""


class LocalAssistantConfig(SamplingConfig):
    """A causal LM with a chat template, run in this process by transformers."""

    backend: Literal["local"] = "local"
    model: str = EMBEDDED_ASSISTANT
    """A model folder, or "nano-assistant" for the embedded one."""
    adapter: str | None = None
    """A LoRA adapter to begin with, such as `gpta-local assistant tune` makes."""
    device: str = "auto"


class EndpointConfig(SamplingConfig):
    model: str
    base_url: str = Field(pattern=r"^https?://")
    """Up to and including the version, as in http://127.0.0.1:8000/v1"""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    api_key_file: str | None = None
    """A file that holds the key and that only its owner can read. Neither of the two: no key is sent."""
    timeout: float = Field(default=120.0, gt=0, le=86400)
    """Seconds for the whole answer to one request."""
    max_retries: int = Field(default=10, ge=0, le=20)
    """Further tries of a request after a fault that passes; ten take about a minute of pauses."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests in flight at once."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of each request, such as top_k or chat_template_kwargs; null leaves a field out."""
    weights: str | None = None
    """Folder of the served model's weights on this machine: the dialogue gradient trains adapters on it.
    None: what a vLLM server says it serves."""

    @model_validator(mode="after")
    def _secrets_are_named_not_written(self) -> EndpointConfig:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("assistant.api_key_env and assistant.api_key_file are both given: keep one")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            raise ValueError(
                "assistant.api_key_env is not the name of an environment variable. The key itself does "
                "not belong here: put it into a file and name that in assistant.api_key_file"
            )
        if taken := sorted(OWN_FIELDS & set(self.extra_body)):
            raise ValueError(
                f"assistant.extra_body: {taken[0]!r} is set by gpta-local and cannot be replaced; leave it out"
            )
        if name := _secret_in(self.extra_body):
            raise ValueError(
                f"assistant.extra_body: {name!r} looks like a secret, and a run keeps its configuration. "
                "A key belongs into the file that assistant.api_key_file names"
            )
        return self


class OpenAIAssistantConfig(EndpointConfig):
    """Any OpenAI-compatible chat endpoint."""

    backend: Literal["openai"]


class VLLMAssistantConfig(EndpointConfig):
    """A vLLM server."""

    backend: Literal["vllm"]
    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://")
    adapter: str | None = None
    """A LoRA adapter to begin with, such as `gpta-local assistant tune` makes."""


class ReplayAssistantConfig(SamplingConfig):
    """The recorded completions of an earlier run, in order."""

    backend: Literal["replay"]
    run: str
    """The run directory that holds the record."""


AssistantConfig = Annotated[
    LocalAssistantConfig | OpenAIAssistantConfig | VLLMAssistantConfig | ReplayAssistantConfig,
    Field(discriminator="backend"),
]


class DownstreamConfig(Section):
    """The model that is trained and shipped."""

    backbone: str = DEMO_BACKBONE
    """A sentence-transformers folder, a plain encoder checkpoint folder, or "all-MiniLM-L6-v2"
    for the one that the extra `demo` installs."""
    max_length: int | None = Field(default=None, ge=16)
    """Input tokens, prefix and special tokens included. None: the backbone's own limit."""
    label_text_scale: float = Field(default=10.0, gt=0)
    """The head starts as this factor × the embedding of each label's texts."""


class SearchConfig(Section):
    rounds: int = Field(default=4, ge=1, le=1000)
    proposals: int = Field(default=8, ge=1, le=4096)
    """Prefixes asked of the assistant per round."""
    label_text_samples: int = Field(default=8, ge=0, le=256)
    """Completions asked for the label texts. 0: the head starts from the card's own label names and
    meanings."""
    max_prefix_tokens: int = Field(default=16, ge=1)
    """Longer prefixes are dropped; in the backbone's tokens."""
    history_shown: int = Field(default=8, ge=0)
    """Scored prefixes that the assistant sees: half of them the best, half drawn from the rest."""
    scoring_rows: int = Field(default=512, ge=8)
    """Training rows in the last heat of the race."""
    near_duplicate: float = Field(default=0.97, gt=0, le=1)
    """Cosine of two prefixes' embeddings from which on the second is dropped."""
    regime: Literal["auto", "low-resource", "online"] = "auto"
    """low-resource: search first, then train. online: search and train in turns. auto: online
    from 500 training rows."""


class DialogueGradientConfig(Section):
    """Fine-tuning the assistant on its own history: which prefixes gained, which did not."""

    method: Literal["sft", "weighted-sft", "dpo", "kto", "grpo"] = "weighted-sft"
    """sft: on the winners alike. weighted-sft: on the winners by their advantage. dpo, kto: on winners
    against what did worse. grpo: on replies sampled in training, the gain as reward."""
    every: int = Field(default=1, ge=1)
    """Rounds between two steps."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of one fine-tuning. None: three passes over the dialogues."""
    batch_size: int = Field(default=8, ge=2)
    """Dialogues per optimiser step; for grpo the replies to one request."""
    learning_rate: float = Field(default=3e-3, gt=0)
    rank: int = Field(default=16, ge=1, le=512)
    winners: float = Field(default=0.125, gt=0, le=0.5)
    """The share of the scored prefixes, from the best down, that is taught."""
    dialogues_per_winner: int = Field(default=8, ge=1, le=64)
    """How often a winner is taught, each time with other entries of the history shown."""
    beta: float = Field(default=0.1, gt=0)
    """For dpo and kto: how closely the assistant is held to what it was."""
    temperature: float = Field(default=1.5, gt=0, le=5)
    """Proposals of an adapter are sampled at this × assistant.temperature: it knows its winners nearly by
    heart, and hotter sampling varies them."""
    device: str = "auto"
    """Where a served assistant is trained, in a process of its own; a local one is trained where it is."""


class TrainingConfig(Section):
    steps: int | None = Field(default=None, ge=1)
    """None: three epochs, at least 40 steps."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of a step; half as many where label texts go along."""
    encoder_learning_rate: float = Field(default=5e-5, ge=0)
    head_learning_rate: float = Field(default=1e-2, gt=0)
    """For heads of sentence-transformers backbones; a plain checkpoint's head has the encoder's rate × 10."""
    label_text_loss: bool = True
    """In a low-resource search some of the label texts that the head started from go along in each step of training:
    embedded anew, they make a second head, whose loss is added, and the model's head ends as the mean of both."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls linearly to 0 after."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    """auto: a GPU if there is one. Otherwise a torch device such as cpu or cuda:1."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """How much of a fine-tuning may be lost when the machine stops. It changes no result."""


class BudgetConfig(Section):
    """Where one is reached, the search ends before the next round; then the best is chosen, trained,
    measured and exported as always. None: no limit."""

    seconds: float | None = Field(default=None, gt=0)
    """Of the search, reading and loading not counted; pauses neither."""
    tokens: int | None = Field(default=None, ge=1)
    """Read and written by the assistant. Where a server does not count them for each completion, the bytes of
    request and reply are counted: too many rather than too few."""
    calls: int | None = Field(default=None, ge=1)
    """Completions asked of the assistant, label texts included; never more are asked for."""
    trials: int | None = Field(default=None, ge=1)
    """Different prefixes scored; never more are proposed than are left."""


class FinishConfig(Section):
    finalists: int = Field(default=3, ge=1)
    """Prefixes compared on the validation rows, beside no prefix."""
    templates: int = Field(default=16, ge=0, le=1024)
    """The best prefixes, so many, are also put before the label texts that the head starts from (low-resource
    search), unless validation rows speak against it. 0: the head starts from the label texts alone."""
    plain_control: bool = True
    """Also train with a random head and no prefix, as without this tool. In an online search it is the product
    where nothing is clearly better on the validation rows."""


class LeakScanConfig(Section):
    """What is looked for in everything that goes to the assistant: words of private rows, personal data."""

    enabled: bool = True
    words: int = Field(default=6, ge=4, le=64)
    """So many words in a row that are also in a private row are a leak; of rows with fewer, the whole row."""
    threshold: int = Field(default=1, ge=1, le=100)
    """Different runs of so many words in one field from which on it is a leak."""


class PrivacyConfig(Section):
    """What may leave this machine, and what is looked for before it does."""

    allow_hosts: list[str] = []
    """Hosts besides this machine to which requests may go, such as an assistant's on another server. Each is
    an exact name or an address, such as llm.example.org; ports are not compared."""
    leak_scan: LeakScanConfig = LeakScanConfig()

    @field_validator("allow_hosts")
    @classmethod
    def _hosts_are_names_or_addresses(cls, hosts: list[str]) -> list[str]:
        normal = {host: normal_host(host) for host in hosts}
        for host, found in normal.items():
            if found is None:
                raise ValueError(
                    f"privacy.allow_hosts: {host!r} is no name or address of a host. Write that alone, such as "
                    "llm.example.org or 10.0.0.5: no scheme, port or path, no pattern, letters of ASCII"
                )
        return [found for found in normal.values() if found]


class Config(Section):
    task: Literal["text-classification", "text-pair-classification"] = "text-classification"
    data: DataConfig
    card: CardConfig
    assistant: AssistantConfig = LocalAssistantConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    budget: BudgetConfig = BudgetConfig()
    finish: FinishConfig = FinishConfig()
    dialogue_gradient: DialogueGradientConfig | None = None
    privacy: PrivacyConfig = PrivacyConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _pair_column_belongs_to_pair_task(self) -> Config:
        if self.task == "text-classification" and self.data.text_pair is not None:
            raise ValueError("data.text_pair is only for task: text-pair-classification")
        return self

    @model_validator(mode="after")
    def _label_column_holds_no_text(self) -> Config:
        pair = self.data.text_pair or ("text_pair" if self.task == "text-pair-classification" else None)
        if self.data.label in (self.data.text, pair):
            raise ValueError("data.label names a text column: its rows would be label names and go to the assistant")
        return self

    @model_validator(mode="after")
    def _endpoint_is_here_or_allowed(self) -> Config:
        host = _host_of(self.assistant.base_url) if isinstance(self.assistant, EndpointConfig) else None
        if host and not is_this_machine(host) and normal_host(host) not in self.privacy.allow_hosts:
            raise ValueError(
                f"assistant.base_url goes to {host}, which is not this machine. "
                "If it may see your description and gains, add it to privacy.allow_hosts"
            )
        return self


def _secret_in(value: Any, name: str = "") -> str:
    """The name of a field that holds a secret, by its name or by the form of its value; "" if there is none."""
    if isinstance(value, dict):
        return next((found for key, inner in value.items() if (found := _secret_in(inner, str(key)))), "")
    if isinstance(value, list):
        return next((found for inner in value if (found := _secret_in(inner, name))), "")
    return name if value and (SECRET_NAME.search(name) or SECRET_VALUE.match(str(value))) else ""


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and check a configuration file; its paths come out absolute.

    Raises:
        ConfigError: with every problem found, each with its key.
    """
    content = read_yaml(path)
    for override in overrides:
        _override(content, override)
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
        problems = [_explain(error, content, kind) for error in exc.errors()]
        if more := len(problems[SHOWN_PROBLEMS:]):
            problems[SHOWN_PROBLEMS:] = [f"and {more} more"]
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
        raise ConfigError("\n".join(_explain(error, content) for error in errors), where="--set") from exc


def dump(config: Config) -> str:
    """The resolved configuration as YAML. It holds no secret: keys are only named."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _host_of(url: str) -> str | None:
    """None if it has none: what is wrong with it says the module that uses it."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError("no such configuration file", where=str(path)) from exc
    except IsADirectoryError as exc:
        raise ConfigError("a folder, not a configuration file", where=str(path)) from exc
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
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{override!r} is not of the form a.b=c", where="--set")
    try:
        parsed = yaml.load(value, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the value of {key.strip()[:80]!r} is not valid YAML", where="--set") from exc
    section = content
    for part in parts[:-1]:
        if section.get(part) is None:  # also a section that is switched off
            section[part] = {}
        inner = section[part]
        if not isinstance(inner, dict):
            raise ConfigError(f"{part!r} in {key.strip()!r} is a value, not a section", where="--set")
        section = inner
    section[parts[-1]] = parsed


def _explain(error: Any, content: dict[str, Any], kind: type[Section] = Config) -> str:
    """One line for one pydantic error of a `kind`: key, what is wrong, how to mend it."""
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["assistant"] and len(location) > 1 and location[1] in {"local", "openai", "vllm", "replay"}:
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
        return f"{key}.backend must be one of local, openai, vllm, replay"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    message = str(error["msg"]).removeprefix("Input ").removeprefix("String ")
    given = error.get("input")
    if location[-1:] in (["api_key_env"], ["api_key_file"]) or _secret_in(given):
        return f"{key} {message}, not what is given"
    shown = "a section" if isinstance(given, dict) else re.sub(r"//[^/@]*@", "//***@", f"{given!r}")[:80]
    hint = " (put it in quotes)" if error["type"] == "string_type" and isinstance(given, bool | int | float) else ""
    return f"{key} {message}, not {shown}{hint}"


def _known_keys(location: list[str], content: dict[str, Any], kind: type[Section]) -> list[str]:
    if kind is Config and location[:1] == ["assistant"]:
        backends: dict[str, type[Section]] = {
            "local": LocalAssistantConfig,
            "openai": OpenAIAssistantConfig,
            "vllm": VLLMAssistantConfig,
            "replay": ReplayAssistantConfig,
        }
        return list(backends[content["assistant"]["backend"]].model_fields)
    section = kind
    for part in location:
        if part in section.model_fields:  # otherwise the name or number of a section among others
            annotation = section.model_fields[part].annotation
            section = next((inner for inner in (annotation, *get_args(annotation)) if _is_section(inner)), section)
    return list(section.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


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
    assistant = config.assistant
    if isinstance(assistant, LocalAssistantConfig) and assistant.model != EMBEDDED_ASSISTANT:
        assistant = assistant.model_copy(update={"model": absolute(assistant.model)})
    if isinstance(assistant, ReplayAssistantConfig):
        assistant = assistant.model_copy(update={"run": absolute(assistant.run)})
    if isinstance(assistant, EndpointConfig):
        paths = {"weights": absolute(assistant.weights), "api_key_file": absolute(assistant.api_key_file)}
        assistant = assistant.model_copy(update=paths)
    if isinstance(assistant, LocalAssistantConfig | VLLMAssistantConfig):
        assistant = assistant.model_copy(update={"adapter": absolute(assistant.adapter)})
    downstream = config.downstream
    if downstream.backbone != DEMO_BACKBONE:
        downstream = downstream.model_copy(update={"backbone": absolute(downstream.backbone)})
    return config.model_copy(update={"data": data, "card": card, "assistant": assistant, "downstream": downstream})
