"""The section `assistant`, a model for each way to reach one; and which values are secrets, which none may hold.

Knows what a value may be, not what it does; opens no file.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from gpta_local.config.section import Section
from gpta_local.system.models import EMBEDDED_ASSISTANT

SECRET_NAME = re.compile(
    r"(?i)(api|access|private|secret)[_-]?key|secret|passw(or)?d|authori[sz]ation|bearer|credential"
    r"|(api|access|auth|refresh|session|hf)[_-]?token$"
)
OWN_FIELDS = {"messages", "model", "n", "stream"}
"""Fields of a request that are made here, scanned and recorded: nothing may replace them."""
SECRET_VALUE = re.compile(r"(Bearer |sk-|hf_|ghp_|glpat-|eyJ)\S{8}")
"""As keys of well-known services begin."""


TEACHER = "teacher"
"""In the place of an adapter's path: the adapter that comes with this package for the model."""


class SamplingConfig(Section):
    temperature: float = Field(default=0.9, ge=0, le=5)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, ge=8, le=32768)
    """Room for one completion, in the assistant's tokens. None: 48 for a prefix, 32 and 24 per label
    for label texts. Models that think before they answer need more, such as 2048."""


class AskedConfig(SamplingConfig):
    cache: bool = True
    """Keep what was answered, below ~/.cache/gpta-local, so that the same request with the same model and sampling is
    answered at once the next time. Of a served model the address and the name that the server says are compared."""


class LocalAssistantConfig(AskedConfig):
    """A causal LM with a chat template, run in this process by transformers."""

    backend: Literal["local"] = "local"
    model: str = EMBEDDED_ASSISTANT
    """A name of `gpta-local models list`, or a model folder."""
    adapter: str | None = TEACHER
    """A LoRA adapter to begin with, such as `gpta-local assistant tune` makes. "teacher": the one that comes with this
    package for this model, where there is one. None: the model as it is."""
    device: str = "auto"


class EndpointConfig(AskedConfig):
    model: str
    base_url: str = Field(pattern=r"^https?://")
    """Up to and including the version, as in http://127.0.0.1:8000/v1"""
    further_base_urls: list[Annotated[str, Field(pattern=r"^https?://")]] = Field(default=[], max_length=64)
    """Other servers of the same model, with the same key. Requests are spread over all; what one that fails was asked
    goes to the others. Adapters are loaded into none then."""
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
    extra_body: dict[str, JsonValue] = Field(default={})
    """Further fields of each request, such as top_k or chat_template_kwargs; null leaves a field out."""
    weights: str | None = None
    """Folder of the served model's weights on this machine: the dialogue gradient trains adapters on it.
    None: what a vLLM server says it serves."""

    @property
    def base_urls(self) -> list[str]:
        return [self.base_url, *self.further_base_urls]

    @model_validator(mode="after")
    def _addresses_differ(self) -> EndpointConfig:
        if len({url.rstrip("/") for url in self.base_urls}) < len(self.base_urls):
            raise ValueError("assistant.further_base_urls names an address twice, or that of assistant.base_url")
        if self.further_base_urls and getattr(self, "adapter", None):
            raise ValueError("assistant.adapter is loaded into one server: leave assistant.further_base_urls out")
        return self

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
        if name := secret_in(self.extra_body):
            raise ValueError(
                f"assistant.extra_body: {name!r} looks like a secret, and a run keeps its configuration. "
                "A key belongs into the file that assistant.api_key_file names"
            )
        return self


class OpenAIAssistantConfig(EndpointConfig):
    """Any OpenAI-compatible chat endpoint."""

    backend: Literal["openai"]


class ServeConfig(Section):
    """How `gpta-local assistant serve` starts vLLM; a run does not look at it."""

    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that each copy of the model is spread over."""
    data_parallel: int = Field(default=1, ge=1)
    """Copies of the model that share the requests."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """vLLM's part of a GPU's memory. The dialogue gradient can train on the rest, should they share the GPU."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of a request and its completion together. None: what the model is made for."""
    max_lora_rank: int = Field(default=16, ge=1, le=512)
    """Of the adapters that can be loaded."""


class VLLMAssistantConfig(EndpointConfig):
    """A vLLM server."""

    backend: Literal["vllm"]
    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://")
    adapter: str | None = None
    """A LoRA adapter to begin with, such as `gpta-local assistant tune` makes; "teacher": the one that comes with this
    package for this model."""
    serve: ServeConfig = ServeConfig()


class ReplayAssistantConfig(SamplingConfig):
    """The recorded completions of an earlier run, in order."""

    backend: Literal["replay"]
    run: str
    """The run directory that holds the record."""


AssistantConfig = Annotated[
    LocalAssistantConfig | OpenAIAssistantConfig | VLLMAssistantConfig | ReplayAssistantConfig,
    Field(discriminator="backend"),
]


def secret_in(value: Any, name: str = "") -> str:
    """The name of a field that holds a secret, by its name or by the form of its value; "" if there is none."""
    if isinstance(value, dict):
        return next((found for key, inner in value.items() if (found := secret_in(inner, str(key)))), "")
    if isinstance(value, list):
        return next((found for inner in value if (found := secret_in(inner, name))), "")
    return name if value and (SECRET_NAME.search(name) or SECRET_VALUE.match(str(value))) else ""
