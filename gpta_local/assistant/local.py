"""An assistant in this process: any causal LM folder with a chat template, run by transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gpta_local.assistant.decoding import continuations
from gpta_local.errors import ModelError, first_line
from gpta_local.record.cache import CompletionCache
from gpta_local.schema import Ask, Checked, Completion, Request, Sampling
from gpta_local.system.adapters import adapter_digest, check_adapter
from gpta_local.system.library import assistant_folder
from gpta_local.system.manifests import model_digest
from gpta_local.system.models import load_pretrained, load_tokenizer, multiplies_in_bf16, resolve_device

GENERATION_BATCH = 64
"""Completions, or lines of them, that are drawn at once: each has a cache of its own."""
SHORTEST_LINE = 12
"""Tokens that a line of a reply with given line starts needs at least."""
LINE_END = re.compile(r"\n|Ċ|<0x0A>")
"""A token with the end of a line, as byte-level and as SentencePiece vocabularies write it."""


class LocalAssistant:
    """Loads the model when it is first needed, in bfloat16 where the hardware has it, in float32 elsewhere."""

    checked: Checked | None = None
    takes_adapters = True
    adapters_refused = ""

    def __init__(self, model: str, device: str = "auto", cache: Path | None = None) -> None:
        """
        Args:
            cache: folder of what was answered before; None: everything is asked anew.
        """
        self.name = model
        self._cache_folder = cache
        self._adapter: Path | None = None
        self._device_name = device
        self._loaded: tuple[Any, Any] | None = None
        self._adapted: Any = None

    def check(self, ask: Ask | None = None, tell: Callable[[str], None] | None = None) -> str:
        model, _ = self._load()
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        return f"{self.name} in this process, {millions:.1f} million parameters, on {model.device}"

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        return self.complete_all([Ask(request, n, sampling)])[0]

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """Requests that are sampled alike and for the same number of completions are answered together; where all
        were answered before, none is answered again."""
        cache = self._cache
        with cache.asking(asks) if cache else nullcontext():
            return self._complete_all(asks, cache)

    def _complete_all(self, asks: Sequence[Ask], cache: CompletionCache | None) -> list[list[Completion]]:
        found = [cache.known(ask) if cache else [] for ask in asks]
        if all(found):
            return found
        together: dict[tuple[int, Sampling, bool], list[int]] = {}
        for place, ask in enumerate(asks):
            together.setdefault((ask.n, ask.sampling, bool(ask.request.labels)), []).append(place)
        for (n, sampling, by_lines), places in together.items():
            write = self._write_lines if by_lines else self._write
            with torch.random.fork_rng():
                torch.manual_seed(sampling.seed)
                written = write([asks[place].request for place in places], n, sampling)
            for place, completions in zip(places, written, strict=True):
                found[place] = completions
        for ask, completions in zip(asks, found, strict=True):
            if cache:
                cache.keep(ask, completions)
        return found

    @property
    def _cache(self) -> CompletionCache | None:
        if self._cache_folder is None:
            return None
        adapter = adapter_digest(self._adapter) if self._adapter else ""
        return CompletionCache(self._cache_folder, f"{self._digest} {adapter}")

    @cached_property
    def _digest(self) -> str:
        """Of the model; a folder of gigabytes takes seconds to read."""
        return model_digest(assistant_folder(self.name))

    def use_adapter(self, folder: Path | None) -> None:
        """Put the adapter on the model, in place of the one before; only one is in memory."""
        if folder is not None:
            check_adapter(folder, assistant_folder(self.name))
        model, _ = self._load()
        self._adapter = folder
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

    def _write(self, requests: Sequence[Request], n: int, sampling: Sampling) -> list[list[Completion]]:
        prompts = [self._prompt(request, sampling.max_new_tokens) for request in requests]
        replies = self._continue(prompts, n, sampling)
        return [
            [self._completion(tokens, prompt, sampling) for tokens in replies[n * place : n * (place + 1)]]
            for place, prompt in enumerate(prompts)
        ]

    def _write_lines(self, requests: Sequence[Request], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Each line of a reply on its own, its start being given: all lines of all replies at once."""
        _, tokenizer = self._load()
        found = []
        for request in requests:
            starts = request.line_starts
            prompts = [self._prompt(request, SHORTEST_LINE, start) for start in starts]
            left = self._positions - max(map(len, prompts))
            room = replace(sampling, max_new_tokens=min(left, max(8, sampling.max_new_tokens // len(starts))))
            replies = self._continue(prompts, n, room, lines=True)
            lines = [
                [f"{start} {tokenizer.decode(tokens, skip_special_tokens=True).strip()}" for start, tokens in of_reply]
                for of_reply in (zip(starts, replies[number::n], strict=True) for number in range(n))
            ]
            spent = [sum(map(len, replies[number::n])) for number in range(n)]
            found.append(
                [
                    Completion("\n".join(of_reply), self.name, "stop", len(prompts[0]), tokens)
                    for of_reply, tokens in zip(lines, spent, strict=True)
                ]
            )
        return found

    def _prompt(self, request: Request, room: int, start: str = "") -> list[int]:
        """The request as the model reads it, and the start of the reply, in tokens.

        Args:
            room: tokens that the reply needs at least.
        """
        _, tokenizer = self._load()
        messages = chat(tokenizer, request, f"assistant.model ({self.name})")
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + start
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if (left := self._positions - len(ids)) < room:
            raise ModelError(
                f"the request of {len(ids)} tokens leaves {left} for the reply, which is too few",
                where="card.description",
                fix="Shorten the description, or lower search.history_shown or assistant.max_new_tokens",
            )
        return ids

    @property
    def _positions(self) -> int:
        """Tokens that the model takes, request and reply together."""
        model, _ = self._load()
        return getattr(model.config, "max_position_embeddings", None) or 10**9

    def _continue(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, *, lines: bool = False
    ) -> list[list[int]]:
        """`n` continuations of each prompt, those of the first prompt first; with `lines` to the end of the line."""
        model, tokenizer = self._load()
        size = max(1, GENERATION_BATCH // n)
        found: list[list[int]] = []
        for start in range(0, len(prompts), size):
            found += continuations(
                self._adapted or model,
                prompts[start : start + size],
                n,
                ends={*self._ends, *(self._line_ends if lines else ())},
                pad=tokenizer.pad_token_id,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
        return found

    def _completion(self, tokens: Sequence[int], prompt: Sequence[int], sampling: Sampling) -> Completion:
        _, tokenizer = self._load()
        reason = "length" if len(tokens) >= sampling.max_new_tokens else "stop"
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(text, self.name, reason, len(prompt), len(tokens))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_model(assistant_folder(self.name), self._device_name, "assistant")
            model, tokenizer = self._loaded
            of_model = model.generation_config.eos_token_id
            self._ends = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])} - {None}
            self._line_ends = {number for token, number in tokenizer.get_vocab().items() if LINE_END.search(token)}
        return self._loaded


def chat(tokenizer: Any, request: Request, where: str) -> list[dict[str, str]]:
    """The messages of a request as the chat template takes them: the system text before the first user message where
    it has no such role.

    Raises:
        ModelError: it takes neither.
    """
    apart = [{"role": message.role, "content": message.content} for message in request.messages]
    ways = [apart]
    if apart[0]["role"] == "system":
        system, first, *rest = apart
        ways.append([{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    for messages in ways:
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # a template is a program of its own and may raise anything
            refusal = exc
        else:
            return messages
    raise ModelError(f"the chat template refuses the request ({refusal})", where=where) from refusal


def load_model(folder: Path, device_name: str, section: str) -> tuple[Any, Any]:
    """A causal LM and its tokenizer, padded on the left; in bfloat16 where the hardware has it, in float32 elsewhere.

    Args:
        section: of the configuration, for error messages.

    Raises:
        ModelError: the folder cannot be loaded, or has no chat template.
        ConfigError: there is no such device.
    """
    from transformers import AutoModelForCausalLM

    device = resolve_device(device_name, f"{section}.device")
    dtype = torch.bfloat16 if multiplies_in_bf16("auto", device) else torch.float32
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
