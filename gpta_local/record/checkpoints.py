"""What a stopped run goes on from: tensors and a small state, in one safetensors file each.

Knows files, tensors and JSON; neither models nor what a state means. A file is written beside its
place, flushed to the disk and renamed. Its name holds the step and the beginning of its SHA-256, so a
file that was cut off or changed is known as such, named and left out.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpta_local.system.files import flush, sha256

KEPT = 2
"""Checkpoints of a training in progress: the one before is there should the newest be damaged."""
STATE = "state"
NAME = re.compile(r"(?P<slot>.+)-(?P<step>\d{8})-(?P<digest>[0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """Plain JSON; floats come back to the bit."""


class Checkpoints:
    """The checkpoints in a folder, which is made when the first is written.

    Args:
        seconds: of work after which a checkpoint is due.
        warn: told of each checkpoint that is damaged.
    """

    def __init__(self, folder: Path, seconds: float, warn: Callable[[str], None]) -> None:
        self._folder, self._seconds, self._warn = folder, seconds, warn
        self._written = time.monotonic()

    def newest(self, slot: str) -> Checkpoint | None:
        """The newest whole checkpoint of a slot; None if there is none."""
        for path in self._files(slot):
            name = NAME.fullmatch(path.name)
            assert name is not None  # `_files` gives no other
            if not sha256(path).startswith(name["digest"]):
                self._warn(f"{path} is damaged and left out")
                continue
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
                return Checkpoint(tensors, json.loads(file.metadata()[STATE]))
        return None

    @property
    def due(self) -> bool:
        return time.monotonic() - self._written >= self._seconds

    def write(
        self, slot: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kept: int = KEPT
    ) -> None:
        """Write a checkpoint, then delete all of the slot but the newest `kept`.

        Raises:
            OSError, SafetensorError: the disk is full, or fails.
        """
        self._folder.mkdir(exist_ok=True)
        partial = self._folder / f"{slot}.partial"
        content = {key: tensor.contiguous() for key, tensor in tensors.items()}
        try:
            save_file(content, partial, {STATE: json.dumps(state)})
        except BaseException:  # Ctrl-C too leaves no half of a file
            partial.unlink(missing_ok=True)
            raise
        flush(partial)
        partial.replace(self._folder / f"{slot}-{step:08d}-{sha256(partial)[:16]}.safetensors")
        flush(self._folder)
        for old in self._files(slot)[kept:]:
            old.unlink()
        self._written = time.monotonic()

    def clear(self) -> None:
        """Delete all of them, with what a run that was killed left half-written."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _files(self, slot: str) -> list[Path]:
        """From the newest to the oldest."""
        named = ((path, NAME.fullmatch(path.name)) for path in self._folder.glob(f"{slot}-*.safetensors"))
        return sorted((path for path, name in named if name and name["slot"] == slot), reverse=True)
