"""The arm in which the assistant labels test rows itself: what it knows, as a reference for what is made of it.

HERE ROWS REACH A LANGUAGE MODEL. Nowhere else in this package do they, and no run of `gpta-local train` can come here:
the arm is for public sets, and for an assistant in this process (`backend: local`), so that no row leaves it. No row
and no reply is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpta_local.assistant.local import LocalAssistant, chat
from gpta_local.assistant.prompts import describe
from gpta_local.benchmark.rivals import evaluation
from gpta_local.config import Config, LocalAssistantConfig
from gpta_local.data.examples import Example
from gpta_local.errors import InputError
from gpta_local.schema import DatasetCard, Message, Request
from gpta_local.tasks.base import Evaluation

ROWS = 300
"""At most, drawn at random: the assistant takes a second a row."""


def label_by_assistant(config: Config, card: DatasetCard, rows: Sequence[Example]) -> Evaluation:
    """Each row gets the label whose name is the most probable reply.

    Raises:
        InputError: the assistant is not in this process.
    """
    if not isinstance(config.assistant, LocalAssistantConfig):
        fix = "Take the arm out of the suite, or give the set an assistant with backend: local"
        raise InputError("the arm 'zero_shot' shows rows to the assistant, which must be in this process", fix=fix)
    assistant = LocalAssistant(config.assistant.model, config.assistant.device)
    model, tokenizer = assistant.base()

    def reading(row: Example) -> list[int]:
        """What the model reads before it replies, in tokens."""
        texts = "\n".join(f"Text {number}: {text}" for number, text in enumerate(row.texts, start=1))
        question = f"{describe(card)}\n\n{texts}\n\nWhich label is right? Reply with its name alone."
        request = Request("label-texts", (Message("system", "You label texts."), Message("user", question)))
        messages = chat(tokenizer, request, f"assistant.model ({assistant.name})")
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    replies = [
        [*tokenizer(name, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for name in card.label_names
    ]
    scores = torch.stack([log_likelihoods(model, reading(row), replies) for row in rows])  # (n, c)
    return evaluation(scores.softmax(-1).double().numpy().astype(np.float64), rows)


@torch.inference_mode()
def log_likelihoods(model: torch.nn.Module, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> Tensor:
    """Of each of c replies after a prompt, in nats: (c,). The prompt is read once.

    Args:
        replies: tokens, with the one that ends a reply.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    first = model(torch.tensor([list(prompt)]), past_key_values=cache, logits_to_keep=1).logits[:, -1]  # (1, v)
    cache.batch_repeat_interleave(len(replies))
    width = max(map(len, replies))
    tokens = torch.tensor([[*reply, *[0] * (width - len(reply))] for reply in replies])  # (c, w)
    real = torch.tensor([[1] * len(reply) + [0] * (width - len(reply)) for reply in replies])
    later = model(tokens, past_key_values=cache).logits[:, :-1]  # (c, w - 1, v); what is padded comes after all else
    logits = torch.cat([first.expand(len(replies), 1, -1), later], dim=1).float().log_softmax(-1)
    found: Tensor = (logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * real).sum(1)
    return found
