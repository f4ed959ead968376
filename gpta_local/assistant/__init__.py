"""The assistants: one interface (`base.Assistant`), one module for each way to reach a model.

Nothing below this package imports `gpta_local.data.readers`: no row can get into a request.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpta_local.assistant.base import Assistant
from gpta_local.config import (
    AssistantConfig,
    EndpointConfig,
    LocalAssistantConfig,
    OpenAIAssistantConfig,
    ReplayAssistantConfig,
)
from gpta_local.errors import ConfigError
from gpta_local.record.cache import default_folder
from gpta_local.system.files import read_secret

__all__ = ["Assistant", "open_assistant"]


def open_assistant(config: AssistantConfig) -> Assistant:
    """The assistant that the configuration asks for; nothing is loaded or contacted yet.

    Raises:
        ConfigError: if the environment variable for the key is not set, or its file cannot be used.
    """
    if isinstance(config, LocalAssistantConfig):
        from gpta_local.assistant.local import LocalAssistant

        return LocalAssistant(config.model, config.device, default_folder() if config.cache else None)
    if isinstance(config, ReplayAssistantConfig):
        from gpta_local.assistant.replay import ReplayAssistant

        return ReplayAssistant(Path(config.run))
    endpoint = config.model_dump(include={"base_url", "timeout", "max_retries", "concurrency", "extra_body"})
    endpoint["api_key"] = _key(config)
    endpoint["cache"] = default_folder() if config.cache else None
    if config.further_base_urls:
        from gpta_local.assistant.several import SeveralEndpoints

        return SeveralEndpoints(config.model, config.backend, **endpoint | {"base_url": config.base_urls})
    if isinstance(config, OpenAIAssistantConfig):
        from gpta_local.assistant.openai_api import OpenAIAssistant

        return OpenAIAssistant(config.model, **endpoint)
    from gpta_local.assistant.vllm import VLLMAssistant

    return VLLMAssistant(config.model, weights=Path(config.weights) if config.weights else None, **endpoint)


def _key(config: EndpointConfig) -> str | None:
    if config.api_key_file is not None:
        return read_secret(Path(config.api_key_file), "assistant.api_key_file")
    variable = config.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable!r} is not set",
            where="assistant.api_key_env",
            fix=f"export {variable}=..., or put the key into a file and name that in assistant.api_key_file",
        )
    return key
