"""An assistant in this process: any causal LM folder with a chat template, run by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpta_local.errors import ModelError, first_line
from gpta_local.schema import Completion, Request, Sampling
from gpta_local.system.adapters import check_adapter
from gpta_local.system.library import assistant_folder
from gpta_local.system.models import load_pretrained, load_tokenizer, resolve_device

GENERATION_BATCH = 64
SHORTEST_LINE = 12
"""Tokens that a line of a reply with given line starts needs at least."""


class LocalAssistant:
    """Loads the model when it is first needed, in bfloat16 on a GPU and float32 elsewhere."""

    takes_adapters = True
    adapters_refused = ""

    def __init__(self, model: str, device: str = "auto") -> None:
        self.name = model
        self._device_name = device
        self._loaded: tuple[Any, Any] | None = None
        self._adapted: Any = None

    def check(self) -> str:
        model, _ = self._load()
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        return f"{self.name} in this process, {millions:.1f} million parameters, on {model.device}"

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        model, tokenizer = self._load()
        text = self._render(tokenizer, request)
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        room = (getattr(model.config, "max_position_embeddings", None) or 10**9) - length
        if room < (SHORTEST_LINE * len(request.labels) or sampling.max_new_tokens):
            raise ModelError(
                f"the request of {length} tokens leaves {room} for the reply, which is too few",
                where="card.description",
                fix="Shorten the description, or lower search.history_shown or assistant.max_new_tokens",
            )
        sampling = replace(sampling, max_new_tokens=min(room, sampling.max_new_tokens))
        completions: list[Completion] = []
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            while len(completions) < n:
                count = min(GENERATION_BATCH, n - len(completions))
                completions += self._write(text, request.line_starts, count, sampling)
        return completions

    def use_adapter(self, folder: Path | None) -> None:
        """Put the adapter on the model, in place of the one before; only one is in memory."""
        if folder is not None:
            check_adapter(folder, assistant_folder(self.name))
        model, _ = self._load()
        if self._adapted is not None:
            self._adapted.unload()
            self._adapted = None
        if folder is not None:
            from peft import PeftModel

            self._adapted = PeftModel.from_pretrained(model, folder).eval()

    def drop_adapter(self, folder: Path) -> None:
        """Nothing is left of an adapter that is not in use."""

    def base(self) -> tuple[Any, Any]:
        """The model and its tokenizer, for training; without an adapter."""
        self.use_adapter(None)
        return self._load()

    def close(self) -> None:
        self._loaded = self._adapted = None

    def _render(self, tokenizer: Any, request: Request) -> str:
        """The request as the model reads it."""
        messages = chat(tokenizer, request, f"assistant.model ({self.name})")
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _write(self, text: str, line_starts: Sequence[str], count: int, sampling: Sampling) -> list[Completion]:
        """Draw `count` continuations of one text, line by line where the start of each line is given."""
        if not line_starts:
            return [
                Completion(reply, self.name, reason, length, tokens)
                for reply, reason, length, tokens in self._continue([text] * count, sampling)
            ]
        room = replace(sampling, max_new_tokens=max(8, sampling.max_new_tokens // len(line_starts)))
        replies, spent, length = [""] * count, [0] * count, 0
        for start in line_starts:
            replies = [f"{reply}\n{start}".lstrip("\n") for reply in replies]
            lines = self._continue([text + reply for reply in replies], room, "\n")
            for i, (rest, _, whole, tokens) in enumerate(lines):
                replies[i] += " " + rest.strip()
                spent[i] += tokens
                length = length or whole
        return [
            Completion(reply, self.name, "stop", length, tokens) for reply, tokens in zip(replies, spent, strict=True)
        ]

    def _continue(
        self, texts: Sequence[str], sampling: Sampling, stop: str | None = None
    ) -> list[tuple[str, str, int, int]]:
        """Sample a continuation of each text: (reply up to `stop`, finish reason, tokens read, tokens written)."""
        model, tokenizer = self._load()
        inputs = tokenizer(
            list(texts), return_tensors="pt", padding=True, add_special_tokens=False, return_attention_mask=True
        ).to(model.device)
        length = inputs["input_ids"].shape[1]
        output = (self._adapted or model).generate(**inputs, **_generation(sampling, tokenizer, stop))
        found = []
        for row, mask in zip(output[:, length:].tolist(), inputs["attention_mask"].sum(1).tolist(), strict=True):
            ends = [i for i, token in enumerate(row) if token in (tokenizer.eos_token_id, tokenizer.pad_token_id)]
            ids = row[: ends[0]] if ends else row
            reply = tokenizer.decode(ids, skip_special_tokens=True)
            reason = "stop" if ends or len(row) < sampling.max_new_tokens else "length"
            found.append((reply.strip().partition(stop)[0] if stop else reply, reason, mask, len(ids)))
        return found

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_model(assistant_folder(self.name), self._device_name, "assistant")
        return self._loaded


def chat(tokenizer: Any, request: Request, where: str) -> list[dict[str, str]]:
    """The messages of a request as the chat template takes them: one user message where it has no system role.

    Raises:
        ModelError: it takes neither.
    """
    apart = [{"role": message.role, "content": message.content} for message in request.messages]
    joined = [{"role": "user", "content": "\n\n".join(message.content for message in request.messages)}]
    for messages in (apart, joined):
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # a template is a program of its own and may raise anything
            refusal = exc
        else:
            return messages
    raise ModelError(f"the chat template refuses the request ({refusal})", where=where) from refusal


def _generation(sampling: Sampling, tokenizer: Any, stop: str | None) -> dict[str, Any]:
    common = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    if stop:
        common |= {"stop_strings": [stop], "tokenizer": tokenizer}
    if sampling.temperature == 0:
        return {**common, "do_sample": False}
    return {**common, "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def load_model(folder: Path, device_name: str, section: str) -> tuple[Any, Any]:
    """A causal LM and its tokenizer, padded on the left; in bfloat16 on a GPU and float32 elsewhere.

    Args:
        section: of the configuration, for error messages.

    Raises:
        ModelError: the folder cannot be loaded, or has no chat template.
        ConfigError: there is no such device.
    """
    from transformers import AutoModelForCausalLM

    device = resolve_device(device_name, f"{section}.device")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    where = f"{section}: model ({folder})"
    try:
        tokenizer = load_tokenizer(folder)
        model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)
    except Exception as exc:  # a broken folder raises OSError, ValueError, KeyError, SafetensorError, RuntimeError …
        raise ModelError(f"the model cannot be loaded: {first_line(exc)}", where=where) from exc
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            where=where,
            fix="Use an instruction-tuned model, or add chat_template.jinja to the folder",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    tokenizer.padding_side = "left"
    return model.to(device), tokenizer
