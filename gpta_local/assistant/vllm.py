"""A vLLM server as an assistant.

Knows what vLLM does beyond the chat API: it says the room of the model's context, and it can hold a
reply to a form. Neither starts nor stops a server.
"""

from __future__ import annotations

import re
from typing import Any

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.errors import EndpointError
from gpta_local.schema import Request, Sampling

LINE_LENGTH = 160
"""Characters that a line may have after its start, where the form of the reply is given."""


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

    def _body(self, request: Request, sampling: Sampling, first: int, n: int) -> dict[str, Any]:
        body = super()._body(request, sampling, first, n)
        if request.line_starts:
            lines = (f"{re.escape(start)} [^\\n]{{3,{LINE_LENGTH}}}" for start in request.line_starts)
            body["structured_outputs"] = {"regex": "\\n".join(lines)}
        return body
