"""What an adapter folder is: LoRA weights as peft writes them, and the base model that they fit.

Knows files, and shapes by their names. Reads headers, no weights: neither the adapter's nor the
base's. Does not know who trains adapters or serves them; vLLM, for one, takes an adapter of another
base without a word and answers nonsense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpta_local.errors import ModelError
from gpta_local.system.files import sha256
from gpta_local.system.manifests import verify_manifest
from gpta_local.system.models import causal_lm_without_weights

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
NOT_PLAIN = (
    *("use_dora", "modules_to_save", "lora_bias", "rank_pattern", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
)
"""Fields of the configuration that make it more than one pair of matrices of one rank for each layer."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the weights of the base as they are."""
PLAIN = "Train a plain LoRA adapter: one rank, no DoRA, no bias, no modules_to_save"

Shape = tuple[int, ...]


def check_adapter(folder: Path, base: Path) -> None:
    """Make sure that the folder holds a plain LoRA adapter for the model in the folder `base`.

    Raises:
        ModelError: saying what is missing, damaged, not plain, not as listed, or does not fit.
    """
    verify_manifest(folder)
    rank = adapter_rank(folder)
    shapes = _tensor_shapes(folder)
    layers = _linear_layers(base)
    for name, shape in shapes.items():
        parts = TENSOR_NAME.fullmatch(name)
        if parts is None:
            raise _unusable(folder, f"{ADAPTER_WEIGHTS} holds {name}, which is no LoRA matrix of a linear layer", PLAIN)
        layer, side = parts["layer"], parts["side"]
        if layer not in layers:
            raise _misfit(folder, base, f"it has weights for the layer {layer}, which the base model does not have")
        if name.replace(f".lora_{side}.", f".lora_{'BA'['AB'.index(side)]}.") not in shapes:
            raise _unusable(
                folder, f"{ADAPTER_WEIGHTS} holds only one of the two matrices for {layer}", "Train it again"
            )
        wide, high = layers[layer]
        fitting = (rank, wide) if side == "A" else (high, rank)
        if shape != fitting:
            raise _misfit(folder, base, f"{name} has the shape {shape}; rank {rank} on this base needs {fitting}")


def adapter_rank(folder: Path) -> int:
    """The rank of a plain LoRA adapter, by its configuration.

    Raises:
        ModelError: there is no readable configuration, or it asks for more than plain LoRA.
    """
    config = _config(folder)
    if str(config.get("peft_type")).upper() != "LORA":
        raise _unusable(folder, f"{ADAPTER_CONFIG} says peft_type {config.get('peft_type')!r}, not 'LORA'", PLAIN)
    for field in NOT_PLAIN:
        if config.get(field):
            raise _unusable(folder, f"{ADAPTER_CONFIG} asks for {field}: {config[field]!r:.80}", PLAIN)
    if config.get("bias", "none") != "none":
        raise _unusable(folder, f"{ADAPTER_CONFIG} asks for bias: {config['bias']!r}", PLAIN)
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        what = f"{ADAPTER_CONFIG} says init_lora_weights: {config['init_lora_weights']!r:.80}"
        raise _unusable(folder, f"{what}, which changes the base's weights", PLAIN)
    rank = config.get("r")
    if type(rank) is not int or rank < 1:
        raise _unusable(folder, f"{ADAPTER_CONFIG} gives r as {rank!r:.80}, which is no rank", "Train it again")
    return rank


def adapter_digest(folder: Path) -> str:
    """SHA-256 of the weights file, in hexadecimal."""
    try:
        return sha256(folder / ADAPTER_WEIGHTS)
    except OSError as exc:
        raise _unusable(folder, f"{ADAPTER_WEIGHTS} cannot be read ({exc.strerror})", "Train it again") from exc


def _config(folder: Path) -> Mapping[str, Any]:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise _unusable(folder, f"there is no {ADAPTER_CONFIG}", "Give a folder as peft's save_pretrained writes it")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise _unusable(folder, f"{ADAPTER_CONFIG} cannot be read as JSON ({exc})", "Train it again") from exc
    if not isinstance(config, dict):
        raise _unusable(folder, f"{ADAPTER_CONFIG} holds no JSON object", "Train it again")
    return config


def _tensor_shapes(folder: Path) -> dict[str, Shape]:
    """By the header of the weights file, which must be whole."""
    from safetensors import SafetensorError, safe_open

    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in OTHER_WEIGHTS)
    if others:
        what = f"it holds {', '.join(others)}; formats other than safetensors can run code"
        raise _unusable(folder, what, "Save it with peft's save_pretrained in a new folder")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise _unusable(folder, f"there is no {ADAPTER_WEIGHTS}", "Give a folder as peft's save_pretrained writes it")
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as exc:
        raise _unusable(folder, f"{ADAPTER_WEIGHTS} is damaged or cut off ({exc})", "Train it again") from exc
    if not shapes:
        raise _unusable(folder, f"{ADAPTER_WEIGHTS} holds no tensor", "Train it again")
    return shapes


def _linear_layers(base: Path) -> dict[str, tuple[int, int]]:
    """Name → (inputs, outputs), of the model that the folder's config.json describes."""
    import torch
    from transformers.pytorch_utils import Conv1D

    where = f"base model ({base})"
    if not (base / "config.json").is_file():
        raise ModelError("there is no config.json", where=where, fix="Give the folder of the model's weights")
    try:
        model = causal_lm_without_weights(base)
    except Exception as exc:  # a config can be wrong in any way: ValueError, KeyError, TypeError, RuntimeError …
        what = f"config.json describes no language model known here: {' '.join(str(exc).split())[:200]}"
        raise ModelError(what, where=where, fix="Is it the folder of the model's weights?") from exc
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            layers[name] = (module.nx, module.nf)
    return layers


def _unusable(folder: Path, what: str, fix: str) -> ModelError:
    return ModelError(what, where=f"adapter ({folder})", fix=fix)


def _misfit(folder: Path, base: Path, what: str) -> ModelError:
    fix = f"It was trained on another model, or is damaged; train it on {base}"
    return ModelError(what, where=f"adapter ({folder})", fix=fix)
