"""Makes a small random language model that chats, and dialogues to teach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samples import CARD, scored
from tiny_models import tiny_llama

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import prefix_request
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.schema import Request, Sampling

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
WORKER = "gpta_local.dialogue_gradient.worker"


def tiny_chat_llama(folder: Path, **changes: Any) -> Path:
    """A causal language model with a chat template; 2048 positions."""
    tiny_llama(folder, **changes)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def settings(**changes: Any) -> DialogueGradientConfig:
    """Two short steps."""
    return DialogueGradientConfig.model_validate({"steps": 2, "batch_size": 2, "rank": 4} | changes)


def dialogue(reply: str, *, weight: float = 1.0, shown: int = 2) -> Dialogue:
    entries = [scored(f"Text {number}", number / 10) for number in range(shown)]
    return Dialogue(prefix_request(CARD, entries), reply, weight)


DIALOGUES = (
    dialogue("What a guest wrote", weight=1.5),
    dialogue("My visit was", weight=0.5, shown=0),
    dialogue("The guest is", weight=1.0, shown=1),
)


def greedy(assistant: LocalAssistant, request: Request = DIALOGUES[0].request, tokens: int = 24) -> str:
    (completion,) = assistant.complete(request, 1, Sampling(temperature=0, max_new_tokens=tokens))
    return completion.text
