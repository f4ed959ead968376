"""An assistant in this process: any causal LM folder with a chat template, run by transformers."""

from __future__ import annotations

from typing import Any

import torch

from gpta_local.errors import ModelError
from gpta_local.model_files import assistant_folder, quiet_transformers, resolve_device
from gpta_local.schema import Completion, Request, Sampling

GENERATION_BATCH = 64


class LocalAssistant:
    """Loads the model when it is first needed, in bfloat16 on a GPU and float32 elsewhere."""

    def __init__(self, model: str, device: str = "auto") -> None:
        self.name = model
        self._device_name = device
        self._loaded: tuple[Any, Any] | None = None

    def check(self) -> str:
        model, _ = self._load()
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        return f"{self.name} in this process, {millions:.1f} million parameters, on {model.device}"

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        model, tokenizer = self._load()
        chat = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception as exc:  # a template is a program of its own and may raise anything
            raise ModelError(
                f"the chat template refuses the request ({exc})", where=f"assistant.model ({self.name})"
            ) from exc
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        length = inputs["input_ids"].shape[1]
        room = getattr(model.config, "max_position_embeddings", None)
        if room and length + sampling.max_new_tokens > room:
            raise ModelError(
                f"the request of {length} tokens and {sampling.max_new_tokens} new ones exceed the model's {room}",
                where="card.description",
                fix="Shorten the description, or lower search.history_shown or assistant.max_new_tokens",
            )
        completions: list[Completion] = []
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            while len(completions) < n:
                count = min(GENERATION_BATCH, n - len(completions))
                output = model.generate(**inputs, num_return_sequences=count, **_generation(sampling, tokenizer))
                completions += [self._read(tokenizer, ids[length:].tolist(), length, sampling) for ids in output]
        return completions

    def close(self) -> None:
        self._loaded = None

    def _read(self, tokenizer: Any, ids: list[int], prompt_tokens: int, sampling: Sampling) -> Completion:
        stops = [i for i, token in enumerate(ids) if token in (tokenizer.eos_token_id, tokenizer.pad_token_id)]
        kept = ids[: stops[0]] if stops else ids
        text = tokenizer.decode(kept, skip_special_tokens=True)
        reason = "stop" if stops or len(ids) < sampling.max_new_tokens else "length"
        return Completion(text, self.name, reason, prompt_tokens, len(kept))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = _load(self.name, self._device_name)
        return self._loaded


def _generation(sampling: Sampling, tokenizer: Any) -> dict[str, Any]:
    common = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    if sampling.temperature == 0:
        return {**common, "do_sample": False}
    return {**common, "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


def _load(name: str, device_name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assistant_folder(name)
    device = resolve_device(device_name, "assistant.device")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    quiet_transformers()
    where = f"assistant.model ({folder})"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    except Exception as exc:  # a broken folder raises OSError, ValueError, KeyError, SafetensorError, RuntimeError …
        raise ModelError(f"the model cannot be loaded: {str(exc).splitlines()[0][:200]}", where=where) from exc
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            where=where,
            fix="Use an instruction-tuned model, or add chat_template.jinja to the folder",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return model.to(device), tokenizer  # type: ignore[arg-type]  # transformers wraps torch's method without its types
