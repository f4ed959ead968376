"""Text ↔ tokens: trains the tokenizer and turns an example into arrays for the training loop.

Knows the chat format and the shape of a training sequence. Does not know cards, models or optimisers.

Several replies share one prompt. A sequence is laid out as [prompt][reply 1][reply 2]…; every reply sees
the prompt and itself, and its positions start anew after the prompt (`segments`, `positions`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from corpus import Example
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gpta_local.schema import Message

PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One prompt with its replies as token arrays, all of length `t` but the pairs.

    A pair says: at index `source`, predict `target`. Reply pairs count fully, prompt pairs little.
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    reply_pairs: list[tuple[int, int]]
    prompt_pairs: list[tuple[int, int]]
    kind: str


def chat_text(messages: Sequence[Message]) -> str:
    """The prompt as `apply_chat_template(…, add_generation_prompt=True)` writes it; faster."""
    return "".join(f"<|{message.role}|>{message.content}{END}" for message in messages) + "<|assistant|>"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the chat template of the assistant."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode(
    example: Example, tokenizer: Tokenizer, rng: random.Random, *, longest: int, prompt_share: float
) -> TrainingSequence | None:
    """The example as one training sequence, or None if its prompt and first reply exceed `longest` tokens.

    Args:
        prompt_share: share of the tokens of description and labels that are predicted too.
    """
    text = chat_text(example.request.messages)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids, end = list(encoding.ids), tokenizer.token_to_id(END)
    prompt = len(ids)
    first, last = text.find("\nDescription:"), text.find("\n\n")
    prompt_pairs = [
        (i, ids[i + 1])
        for i, (start, _) in enumerate(encoding.offsets[1:])
        if first < start < last and rng.random() < prompt_share
    ]
    positions, segments, reply_pairs = list(range(prompt)), [0] * prompt, []
    for number, reply in enumerate(example.replies, start=1):
        reply_ids = [*tokenizer.encode(reply, add_special_tokens=False).ids, end]
        if len(ids) + len(reply_ids) > longest:
            break
        sources = [prompt - 1, *range(len(ids), len(ids) + len(reply_ids) - 1)]
        reply_pairs += list(zip(sources, reply_ids, strict=True))
        ids += reply_ids
        positions += range(prompt, prompt + len(reply_ids))
        segments += [number] * len(reply_ids)
    if not reply_pairs:
        return None
    return TrainingSequence(ids, positions, segments, reply_pairs, prompt_pairs, example.request.kind)
