"""Checks of files: who else can read what is private, and whether model folders are whole, closed and free of code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpta_local.config import EndpointConfig, LocalAssistantConfig
from gpta_local.doctor import exposure
from gpta_local.doctor.findings import RUNS, Case, Outcome, counted, named, quoted, short
from gpta_local.errors import ModelError
from gpta_local.system.adapters import check_adapter
from gpta_local.system.catalogue import read_catalogue
from gpta_local.system.library import assistant_folder, is_name, package_files, stored
from gpta_local.system.manifests import MANIFEST, verify_manifest
from gpta_local.system.models import DEMO_BACKBONE, backbone_folder, checked_folder
from gpta_local.system.pickles import find_pickles

CUSTOM_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
"""Files in which a model names code of its own, as auto_map."""


def modes(case: Case) -> Iterator[Outcome]:
    """Whether other accounts of this machine can read what is private."""
    data = case.config.data
    given = [case.path, *(Path(path) for path in (data.train, data.validation, data.test) if path)]
    keys = sorted(Path.cwd().glob("*.log.key"))  # of `assistant serve`; `assistant.api_key_file` is checked on use
    runs = sorted(RUNS.iterdir()) if RUNS.is_dir() else []
    private = [path for path in (*given, *keys, *runs) if path.exists()]
    readable = [path for path in private if exposure.readable_by_others(path)]
    if readable:
        line = f"any account of this machine can read {named(readable)}"
        yield "warning", line, f"chmod -R o-rwx {quoted(readable)}"
    else:
        yield "ok", "other accounts cannot read the configuration, the data and earlier runs"


def backbone_files(case: Case) -> Iterator[Outcome]:
    backbone = case.config.downstream.backbone
    yield from _model_files(backbone_folder(backbone), ours=backbone == DEMO_BACKBONE)


def assistant_files(case: Case) -> Iterator[Outcome]:
    """The folder of a local assistant, or that of a served one's weights, where it is known before asking."""
    config = case.config.assistant
    if isinstance(config, LocalAssistantConfig):
        if is_name(config.model) and stored(config.model) is None:
            package_files(read_catalogue()[config.model])
            fix = f"To do it now: gpta-local models add {config.model}"
            yield "warning", f"{config.model} is installed, and will be converted at its first use", fix
            return
        folder = assistant_folder(config.model)
        yield from _model_files(folder, ours=is_name(config.model))
        if config.adapter is not None:
            check_adapter(Path(config.adapter), folder)
            yield "ok", f"the adapter {short(Path(config.adapter))} fits it"
    elif isinstance(config, EndpointConfig) and config.weights is not None:
        yield from _model_files(checked_folder(config.weights, "assistant.weights"), ours=False)


def _model_files(folder: Path, *, ours: bool) -> Iterator[Outcome]:
    """Whether weights are whole, as in their SHA256SUMS, not to be changed by others, and free of code.

    Args:
        ours: whether it came with a package; its build scripts are no code of a model.

    Raises:
        ModelError: a file is broken or not as in SHA256SUMS.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.rglob("*.safetensors"))
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as exc:
            raise ModelError(f"damaged or cut off ({exc})", where=str(path), fix="Copy the model again") from exc
    verify_manifest(folder)
    size = sum(path.stat().st_size for path in weights) / 2**20
    manifest = "as in SHA256SUMS" if (folder / MANIFEST).is_file() else "no SHA256SUMS to compare with"
    yield "ok", f"{short(folder)}: {counted(len(weights), 'weights file')}, {size:.0f} MiB, {manifest}"
    if writable := exposure.writable_by_others(folder):
        line = f"any account of this machine can change {named(writable)}"
        yield "error", line, f"chmod -R o-w {quoted([folder])}, and make sure that the model is still the right one"
    if pickles := find_pickles(folder):
        yield "warning", f"can run code, and are never loaded: {named(pickles)}", "Remove them"
    if code := _custom_code(folder, ours):
        line = f"comes with code of its own, which is never run: {', '.join(code)}"
        yield "warning", line, "Take a model that the libraries know, if this one does not load"


def _custom_code(folder: Path, ours: bool) -> list[str]:
    found = [] if ours else [path.name for path in sorted(folder.rglob("*.py"))]
    for name in CUSTOM_CODE:
        with suppress(OSError, ValueError):
            if "auto_map" in json.loads((folder / name).read_text(encoding="utf-8")):
                found.append(f"auto_map in {name}")
    return found
