"""The processes of one launch (`accelerate launch`, `torchrun`) that train one model together.

Knows processes and bytes; neither models nor rows. The main process makes the run; the others do nothing but take their
share of the trainings that it orders, until it dismisses them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
import torch.distributed as processes
from safetensors.torch import load, save
from torch import Tensor

from gpta_local.errors import TrainingError
from gpta_local.record.checkpoints import Checkpoint

PATIENCE = timedelta(days=30)
"""How long the others wait for an order: the main process asks, scores and measures alone. That one has died is known
at once."""

TAKEN_AWAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the launcher, so that no library shares out by itself what one process does alone."""


@dataclass(frozen=True, slots=True)
class Order:
    """Steps of a training with a prefix, from a state on. `part`: 16 for one on a sixteenth of the rows."""

    prefix: str
    steps: int
    part: int
    state: Checkpoint


class Team:
    """This process among those of the launch. As a context: at its end the main one dismisses the others.

    `rank`: 0 for the main process. `size`: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._training = False
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            backend = "cpu:gloo,cuda:nccl"
        processes.init_process_group(backend, timeout=PATIENCE)
        for name in TAKEN_AWAY:
            os.environ.pop(name, None)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self.main and not self._training:  # in a training, the others hear of our end by the broken connection
            self._send(b"")
        if kind is None:
            processes.destroy_process_group()

    def order(self, order: Order) -> None:
        """Let the others begin: they take the same steps."""
        about = {"prefix": order.prefix, "steps": order.steps, "part": order.part, "state": order.state.state}
        self._send(json.dumps(about).encode())
        self._send(save({name: tensor.contiguous() for name, tensor in order.state.tensors.items()}))
        self._training = True

    def trained(self) -> None:
        """The steps of the order have been taken."""
        self._training = False

    def next_order(self) -> Order | None:
        """What the main process orders next; None: it has dismissed us, or is gone."""
        try:
            content = self._receive()
            if not content:
                return None
            about = json.loads(content)
            state = Checkpoint(load(self._receive()), about["state"])
            return Order(about["prefix"], about["steps"], about["part"], state)
        except RuntimeError:
            return None

    def share(self, batch: Sequence[int]) -> tuple[Sequence[int], float]:
        """Our rows of a batch, and their part of it. Rows of a batch are alike in length, so every n-th makes even
        shares. Who would have none takes one that counts nothing."""
        share = batch[self.rank :: self.size]
        return share or batch[:1], len(share) / len(batch)

    def add_up(self, value: float, parameters: Iterable[torch.nn.Parameter]) -> float:
        """The sum over all processes of a value; and of the gradients, in place.

        Raises:
            TrainingError: one of the processes has ended.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([value])])
        try:
            processes.all_reduce(flat)
        except RuntimeError as exc:
            what = "another process of this launch has ended"
            raise TrainingError(what, fix="See its messages; the same command with --resume goes on") from exc
        *parts, total = torch.split(flat, [*(g.numel() for g in gradients), 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(total)

    def _send(self, content: bytes) -> None:
        processes.broadcast(torch.tensor([len(content)]), 0)
        if content:
            processes.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)

    def _receive(self) -> bytes:
        length = torch.zeros(1, dtype=torch.int64)
        processes.broadcast(length, 0)
        content: Tensor = torch.zeros(int(length), dtype=torch.uint8)
        if len(content):
            processes.broadcast(content, 0)
        return content.numpy().tobytes()
