"""A transformers network that costs less on a CPU: the same mathematics, fewer passes over memory, other products.

Knows modules and numbers; not what is trained, or on what. Outside training nothing changes but last digits of float32.

What it replaces, with the share of a step that it saves, is in docs/LOG.md.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa-lean"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt`, as glibc's malloc.h has them."""
KEPT_BYTES = 1 << 28
DRAWS = 1 << 16
"""Values of the 16 random bits that decide on one element."""


def kept(like: Tensor, dropout: float) -> Tensor:
    """What dropout multiplies by: 0, or as much more than 1 as keeps the mean. Four elements for each number that the
    generator draws, where `torch.dropout` draws one for each element.

    Args:
        dropout: probability of 0, to the nearest of `DRAWS`.
    """
    n, keep = like.numel(), round((1 - dropout) * DRAWS)
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)[:n]
    return (bits < keep - DRAWS // 2).to(like.dtype).mul_(DRAWS / max(1, keep)).view(like.shape)


class Dropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p or input.is_cuda:
            return super().forward(input)
        return input * kept(input, self.p)


class Linear(nn.Linear):
    """Outside training, in float32, by oneDNN: twice as fast as MKL on processors of AMD (docs/LOG.md)."""

    def forward(self, input: Tensor) -> Tensor:
        elsewhere = input.is_cuda or not torch._C._has_mkldnn or torch.is_autocast_enabled("cpu")
        if torch.is_grad_enabled() or elsewhere or not input.dtype == self.weight.dtype == torch.float32:
            return super().forward(input)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return product


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with dropout by plain products; without dropout, or where more is asked for, torch's own.

    Args:
        query, key, value: (b, h, s, d).
        attention_mask: (b, 1, s, s), True where a token is seen; None: everywhere.
    """
    special = kwargs.get("is_causal") or kwargs.get("position_bias") is not None or query.shape != key.shape
    if not dropout or special or query.is_cuda:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)  # (b, h, s, s)
    if attention_mask is not None:
        hidden = torch.zeros_like(attention_mask, dtype=scores.dtype)
        scores = scores + hidden.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1)
    return ((shares * kept(shares, dropout)) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed and use it again. Otherwise it gives the larger tensors of each step back to
    the kernel, which clears every page anew: a twelfth of a step (docs/LOG.md). Only where it is glibc."""
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
        set_option(M_MMAP_THRESHOLD, KEPT_BYTES)


def make_lean(network: Any) -> None:
    """Give a transformers model these three, and the process the memory that it frees."""
    keep_freed_memory()
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(ATTENTION)
