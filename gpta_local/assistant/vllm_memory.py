"""Whether a model fits into the memory that a vLLM server would have. Knows sizes in bytes, not servers.

What is counted: the weights at two bytes each at most, and the keys and values of one request of the greatest length,
for which vLLM wants room before it starts. What else it needs is small beside these, and counted on a GPU alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gpta_local.errors import InputError

GIB = 2**30
BYTES = 2
"""Of a number, in weights and cache: bfloat16 or float16, also of a model that is stored in float32."""
BESIDE = GIB
"""Of a card: its context, and what a step computes."""
OTHER_SIZES = {
    *(
        "--cpu-offload-gb",
        "--dtype",
        "--hf-overrides",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--max-model-len",
    ),
    *("--pipeline-parallel-size", "-pp", "--quantization", "-q", "--speculative-config"),
}
"""Arguments of vLLM with which other sizes hold than are counted here."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """`tensor`: cards (on a CPU: processes) that each copy of the model is spread over. `data`: copies."""

    tensor: int = 1
    data: int = 1

    @property
    def cards(self) -> int:
        return self.tensor * self.data


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one copy of a model. `tokens`: of the longest request, whose keys and values take `cache` bytes."""

    weights: int
    cache: int
    tokens: int
    heads: int


def sizes(folder: Path, max_model_len: int | None = None) -> Sizes | None:
    """None where the folder's config.json does not say what has to be known."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        keys = int(config.get("num_key_value_heads") or heads)
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        tokens = max_model_len or int(config["max_position_embeddings"])
        weights = sum(map(_bytes_of, folder.glob("*.safetensors")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Sizes(weights, 2 * layers * keys * width * BYTES * tokens, tokens, heads)


def _bytes_of(path: Path) -> int:
    """Of a safetensors file's tensors, as they are loaded. Its header is JSON, after eight bytes with its length."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    stored = (tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors)
    return sum(min(size, BYTES * math.prod(t["shape"])) for size, t in zip(stored, tensors, strict=True))


def check_cards(
    name: str, needed: Sizes, parallel: Parallel, cards: Sequence[tuple[int, int]], utilization: float
) -> None:
    """
    Args:
        cards: bytes free and bytes of all of each GPU.
        utilization: the share of each that vLLM takes.

    Raises:
        InputError: there are too few cards, or too little memory on one of those that would be used.
    """
    _check_heads(name, needed, parallel)
    if len(cards) < parallel.cards:
        what = f"{parallel.data} × {parallel.tensor} GPUs are asked for, and vLLM's Python sees {len(cards)}"
        raise InputError(what, where=name, fix="Lower --tensor-parallel or --data-parallel")
    each = (needed.weights + needed.cache) / parallel.tensor + BESIDE
    for number, (free, whole) in enumerate(cards[: parallel.cards]):
        taken = utilization * whole
        if each > taken:
            fix = "Lower --max-model-len, raise --tensor-parallel, or take a smaller model"
            what = f"{_told(needed, parallel)}; {utilization:g} of GPU {number} is {_gib(taken)}"
            raise InputError(what, where=name, fix=fix)
        if taken > free:
            what = f"{utilization:g} of GPU {number} is {_gib(taken)}, and {_gib(free)} of it are free"
            least = math.ceil(100 * each / whole) / 100
            fix = f"Lower --gpu-memory-utilization (at least {least:g} is needed), or end what is on it"
            raise InputError(what, where=name, fix=fix)


def check_machine(name: str, needed: Sizes, parallel: Parallel, cache_gib: float, available: int | None = None) -> None:
    """
    Args:
        cache_gib: what vLLM keeps for keys and values, in each process.
        available: bytes of memory; None: those of this machine.

    Raises:
        InputError: there is too little memory.
    """
    _check_heads(name, needed, parallel)
    available = psutil.virtual_memory().available if available is None else available
    if needed.cache / parallel.tensor > cache_gib * GIB:
        enough = math.ceil(needed.cache / parallel.tensor / GIB)
        fits = int(needed.tokens * cache_gib * GIB * parallel.tensor / needed.cache)
        raise InputError(
            f"one request of {needed.tokens} tokens takes {_gib(needed.cache / parallel.tensor)} of cache, and vLLM "
            f"is given {cache_gib:g}",
            where=name,
            fix=f"Give --max-model-len {fits} or less, or export VLLM_CPU_KVCACHE_SPACE={enough}",
        )
    wanted = parallel.data * needed.weights + parallel.cards * cache_gib * GIB
    if wanted > available:
        copies = f"{parallel.data} copies of " if parallel.data > 1 else ""
        raise InputError(
            f"{copies}{_gib(needed.weights)} of weights and {cache_gib:g} GiB of cache are needed, and "
            f"{_gib(available)} are available",
            where=name,
            fix="Take a smaller model, lower VLLM_CPU_KVCACHE_SPACE or --data-parallel, or end other programs",
        )


def _check_heads(name: str, needed: Sizes, parallel: Parallel) -> None:
    if needed.heads % parallel.tensor:
        what = f"its {needed.heads} attention heads cannot be spread over {parallel.tensor}"
        raise InputError(what, where=name, fix=f"Let --tensor-parallel divide {needed.heads}")


def _told(needed: Sizes, parallel: Parallel) -> str:
    spread = f" on each of {parallel.tensor} GPUs" if parallel.tensor > 1 else ""
    weights, cache = needed.weights / parallel.tensor, needed.cache / parallel.tensor
    return f"{_gib(weights)} of weights and {_gib(cache)} for one request of {needed.tokens} tokens are needed{spread}"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
