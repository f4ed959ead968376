"""Many continuations of many prompts at once, and attention that is fast on a CPU. Knows token ids, a causal language
model and its cache; not requests.

What prompts begin with in common is read once, and each prompt once however many continuations are drawn: the keys and
values are copied, not computed again. Reading is most of the time where replies are short.

Shapes: u prompts, r continuations of each, s tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CANDIDATES = 256
"""The most probable tokens that are drawn from: sorting a whole vocabulary of 150,000 takes longer than a layer."""
NAME = "grouped"
RECOMPUTED: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
LEAST_SHARED = 16
"""Tokens that prompts must have in common for it to be worth a pass of its own."""


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' signature, for what torch's own is slow at on a CPU. For one new token, queries that
    share keys and values (Ainslie et al. 2023) are multiplied with them in one product; the usual way copies keys and
    values for each query at every step, which took two thirds of the time with 36 rows of 300 tokens. In training, so
    are all masked tokens of a row: four times as fast in bfloat16.

    Args:
        query: (b, h, s, d). key, value: (b, g, s, d), h a multiple of g. attention_mask: (b, 1, s, s), True or 0 for
            what is seen.
    """
    b, h, s, d = query.shape
    g, scale = key.shape[1], scaling if scaling is not None else d**-0.5
    if s > 1 and query.requires_grad and attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        rows = zip(query * scale, key, value, mask, strict=True)
        return torch.stack([checkpoint(_of_a_row, *row, **RECOMPUTED) for row in rows]), None
    if s > 1:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.reshape(b * g, h // g, d) * scale
    scores = torch.bmm(grouped, key.reshape(b * g, -1, d).transpose(1, 2)).view(b, h, 1, -1).float()
    if attention_mask is not None:
        seen = attention_mask[..., : key.shape[2]]
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    weights = scores.softmax(-1).to(value.dtype).view(b * g, h // g, -1)
    return torch.bmm(weights, value.reshape(b * g, -1, d)).view(b, h, 1, d).transpose(1, 2).contiguous(), None


def _of_a_row(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention (s, h, d). Of one row at a time the weights stay in a processor's cache.

    Args:
        query: (h, s, d). key, value: (g, s, d). mask: (1, s, s), added.
    """
    h, s, d = query.shape
    g = len(key)
    scores = torch.bmm(query.reshape(g, h // g * s, d), key.transpose(1, 2)).view(h, s, -1) + mask
    weights = scores.softmax(-1, dtype=scores.dtype).view(g, h // g * s, -1)
    return torch.bmm(weights, value).view(h, s, d).transpose(0, 1)


@contextmanager
def fast_attention(model: Any) -> Iterator[None]:
    """Let the model use `grouped_attention` for a while."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if before == "sdpa":
            model.set_attn_implementation(before)


@torch.inference_mode()
def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    repeats: int,
    *,
    ends: Collection[int],
    pad: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    on_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Draw `repeats` continuations of each prompt, without the token that ends them: u · r lists, those of the first
    prompt first. They come from torch's global generator.

    Args:
        ends: tokens of which any ends a continuation.
        on_token: called after each step of all continuations.
    """
    with fast_attention(model):
        return _drawn_out(
            model, *_read(model, prompts, repeats, pad), ends, max_new_tokens, temperature, top_p, on_token
        )


def _drawn_out(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    cache: Any,
    ends: Collection[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    on_token: Callable[[], None],
) -> list[list[int]]:
    ended = torch.tensor(sorted(ends), device=ids.device)
    live, found = list(range(len(ids))), [list[int]() for _ in range(len(ids))]
    positions = mask.sum(1, keepdim=True) - 1  # of the last token
    tokens = ids[:, -1:]
    for _ in range(max_new_tokens):
        output = model(tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        tokens = _drawn(output.logits[:, -1].float(), temperature, top_p)
        on_token()
        kept = (~torch.isin(tokens[:, 0], ended)).nonzero()[:, 0]
        for place in kept.tolist():
            found[live[place]].append(int(tokens[place, 0]))
        if not len(kept):
            break
        if len(kept) < len(live):  # what has ended leaves the batch
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            live = [live[place] for place in kept.tolist()]
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = positions + 1
    return found


def _read(model: Any, prompts: Sequence[Sequence[int]], repeats: int, pad: int) -> tuple[Tensor, Tensor, Any]:
    """Token ids and mask (u · r, s), padded behind what all prompts share, and the cache of all but the last token."""
    from transformers import DynamicCache

    shared = shared_beginning(prompts)
    width = max(map(len, prompts)) - shared
    rows = [[*prompt[:shared], *[pad] * (width - len(prompt) + shared), *prompt[shared:]] for prompt in prompts]
    marks = [[1] * shared + [0] * (width - len(p) + shared) + [1] * (len(p) - shared) for p in prompts]
    ids, mask = (torch.tensor(lists, device=model.device) for lists in (rows, marks))
    cache = DynamicCache(config=model.config)
    if shared:
        model(ids[:1, :shared], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if width > 1:
        model(
            ids[:, shared:-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, shared:-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    cache.batch_repeat_interleave(repeats)
    return ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0), cache


def shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, the last of the shortest not counted; 0 where a pass of their own is not
    worth it."""
    shortest = min(map(len, prompts)) - 1
    shared = next((i for i in range(shortest) if len({prompt[i] for prompt in prompts}) > 1), shortest)
    return shared if shared >= LEAST_SHARED and len(prompts) > 1 else 0


def _drawn(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """A token (n, 1) for each row of logits (n, v): the most probable one at temperature 0, else one of the smallest
    set whose probability is `top_p` (Holtzman et al. 2020), of `CANDIDATES` at most."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / temperature
    top, index = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
    chances = (top - logits.logsumexp(-1, keepdim=True)).exp()
    chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0.0)
    return index.gather(1, torch.multinomial(chances, 1))
