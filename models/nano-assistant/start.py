"""The untrained model: the Llama architecture, and weights that can already copy.

Knows how a model copies and writes that into its first two layers. Does not know cards, tokens or training.

A small model needs most of a short training to find out how to repeat a word of its prompt, so it starts with
that ability: heads of layer 0 look one token back and write what they see beside the token itself; heads of
layer 1 look for the place whose previous token is the current one, and bring the token that stands there.
All other blocks start by adding nothing to the residual stream.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, HEADS, HEAD = 256, 4, 64
ROPE_THETA = 100_000.0  # slow enough that half of a head's dimensions compare contents, not positions
STANDARD = 0.06
# residual stream: 0 is the same for all tokens, then the token, then the token before it
TOKEN, BEFORE = slice(1, 160), slice(160, 256)


def make_model(vocabulary_size: int, end: int, pad: int) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=HIDDEN,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=HEAD,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            initializer_range=STANDARD,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    _teach_copying(model)
    return model


@torch.no_grad()
def _teach_copying(model: LlamaForCausalLM) -> None:
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 4 * STANDARD
    embedding[:, BEFORE] *= 0.1
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    _look_one_back(model.model.layers[0].self_attn)
    _continue_what_was_seen(model.model.layers[1].self_attn)


def _look_one_back(attention: torch.nn.Module) -> None:
    """Heads 0 and 1 attend to the position before, whatever stands there (it shows best in fast frequencies)."""
    width, pairs = BEFORE.stop - BEFORE.start, 8
    for head in (0, 1):
        first = head * HEAD
        attention.q_proj.weight[first : first + HEAD] = 0
        attention.k_proj.weight[first : first + HEAD] = 0
        for pair in range(pairs):
            angle = ROPE_THETA ** (-pair / (HEAD / 2))  # turn of this pair of dimensions from one position to the next
            attention.q_proj.weight[first + pair, 0] = 1.8
            attention.k_proj.weight[first + pair, 0] = 1.8 * math.cos(angle)
            attention.k_proj.weight[first + HEAD // 2 + pair, 0] = 1.8 * math.sin(angle)
        attention.v_proj.weight[first : first + HEAD] = 0
        for i in range(width // 2):
            source = head * width // 2 + i
            attention.v_proj.weight[first + i, TOKEN.start + source] = 1.0
            attention.o_proj.weight[BEFORE.start + source, first + i] = STANDARD


def _continue_what_was_seen(attention: torch.nn.Module) -> None:
    """Heads 0 to 2 compare the current token with the tokens before others, in slow frequencies."""
    slow = [*range(HEAD // 4, HEAD // 2), *range(3 * HEAD // 4, HEAD)]
    heads = (BEFORE.stop - BEFORE.start) // len(slow)
    brought = (TOKEN.stop - TOKEN.start) // heads
    for head in range(heads):
        first = head * HEAD
        attention.q_proj.weight[first : first + HEAD] = 0
        attention.k_proj.weight[first : first + HEAD] = 0
        for i, dimension in enumerate(slow):
            attention.q_proj.weight[first + dimension, TOKEN.start + head * len(slow) + i] = 1.6
            attention.k_proj.weight[first + dimension, BEFORE.start + head * len(slow) + i] = 1.6
        attention.v_proj.weight[first : first + HEAD] = 0
        for i in range(brought):
            token = TOKEN.start + head * brought + i
            attention.v_proj.weight[first + i, token] = 1.0
            attention.o_proj.weight[token, first + i] = 3 * STANDARD
