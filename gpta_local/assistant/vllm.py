"""A vLLM server as an assistant.

Knows what vLLM says beyond the chat API: the room of the model's context. Neither starts nor stops
a server.
"""

from __future__ import annotations

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.errors import EndpointError


class VLLMAssistant(OpenAIAssistant):
    """An `OpenAIAssistant` that insists on vLLM; its list of models is complete and is believed.

    `max_model_len` is the room, in tokens, for a request and its completion; known after `check`.
    """

    # On a CPU, vLLM 0.32 stops at a seeded request whose prompt it takes in two parts.
    start_hint = "vllm serve {model} --port {port} (on a CPU with --max-num-batched-tokens 16384)"
    max_model_len: int | None = None

    def check(self) -> str:
        line = super().check()
        room = self._served.get(self.name, {}).get("max_model_len")
        if not isinstance(room, int):
            what = "the server answers, but not as vLLM: its list of models has no max_model_len"
            raise EndpointError(what, where=self._at("base_url"), fix="Set assistant.backend to openai")
        self.max_model_len = room
        return f"{line} (vLLM, context of {room} tokens)"
