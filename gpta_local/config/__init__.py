"""The configuration: its sections, how it is loaded, and what is said of mistakes."""

from gpta_local.config.assistants import (
    AssistantConfig,
    EndpointConfig,
    LocalAssistantConfig,
    OpenAIAssistantConfig,
    ReplayAssistantConfig,
    ServeConfig,
    VLLMAssistantConfig,
)
from gpta_local.config.json_schema import SCHEMA_FILE, json_schema
from gpta_local.config.loading import check, dialogue_gradient, dump, load, load_config, read_yaml, reading
from gpta_local.config.section import Section
from gpta_local.config.sections import (
    Config,
    DataConfig,
    DialogueGradientConfig,
    FormatConfig,
    InputConfig,
    LeakScanConfig,
    ReadingConfig,
    TrainingConfig,
)

__all__ = [
    "SCHEMA_FILE",
    "AssistantConfig",
    "Config",
    "DataConfig",
    "DialogueGradientConfig",
    "EndpointConfig",
    "FormatConfig",
    "InputConfig",
    "LeakScanConfig",
    "LocalAssistantConfig",
    "OpenAIAssistantConfig",
    "ReadingConfig",
    "ReplayAssistantConfig",
    "Section",
    "ServeConfig",
    "TrainingConfig",
    "VLLMAssistantConfig",
    "check",
    "dialogue_gradient",
    "dump",
    "json_schema",
    "load",
    "load_config",
    "read_yaml",
    "reading",
]
