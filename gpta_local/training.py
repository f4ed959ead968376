"""The parameter gradient: optimiser, schedule and steps on [prefix; input], through Accelerate.

Knows models, token ids and settings. Does not know who chose the prefix, or why.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from transformers import get_linear_schedule_with_warmup

from gpta_local.config import TrainingConfig
from gpta_local.data import Example
from gpta_local.downstream import DownstreamModel, SentenceClassifier
from gpta_local.errors import TrainingError
from gpta_local.model_files import multiplies_in_bf16
from gpta_local.tokenization import EncodedRow

MIN_STEPS = 40
EPOCHS = 3
BUCKET = 32
"""Batches that are sorted by length together: little padding, order still random."""


def total_steps(config: TrainingConfig, rows: int) -> int:
    """`steps` of the configuration, or three epochs but at least 40 steps."""
    return config.steps or max(MIN_STEPS, EPOCHS * -(-rows // config.batch_size))


class Training:
    """One model's fine-tuning: a fixed number of steps, taken in one go or in parts.

    Two trainings with the same seed, rows and number of steps draw the same batches and dropout
    seeds whatever the prefix, so that their results are paired.
    """

    def __init__(
        self, model: DownstreamModel, examples: Sequence[Example], config: TrainingConfig, *, steps: int, seed: int
    ) -> None:
        self.model, self.steps, self.done = model, steps, 0
        device = model.device
        AcceleratorState._reset_state(reset_partial_state=True)  # another training of this process may differ
        self._accelerator = Accelerator(
            mixed_precision="bf16" if multiplies_in_bf16(config.precision, device) else "no", cpu=device.type == "cpu"
        )
        self._max_grad_norm = config.max_grad_norm
        self._labels = [example.label for example in examples]
        self._tokenised = model.tokenizer.tokenise([example.texts for example in examples])
        set_seed(seed)
        self._order = random.Random(f"batches-{seed}")
        self._batch_size = config.batch_size
        self._lengths = [sum(len(text.ids) for text in row) for row in self._tokenised.alone]
        self._batches = self._endless_batches()
        optimizer = torch.optim.AdamW(self._parameter_groups(config), fused=True)
        warmup = round(config.warmup * steps)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)  # type: ignore[no-untyped-call]  # no types
        self._optimizer, self._schedule = self._accelerator.prepare(optimizer, schedule)

    def run(self, prefix: str, steps: int, on_step: Callable[[float], None] = lambda loss: None) -> float:
        """Take `steps` steps with a prefix; return their mean loss.

        Args:
            on_step: called with each step's loss.

        Raises:
            TrainingError: if a loss, a gradient or then an output of the model is not a number.
        """
        rows = self.model.tokenizer.encode(self._tokenised, prefix)
        self.model.train()
        losses = [self._step(rows, next(self._batches), on_step) for _ in range(steps)]
        self.model.eval()
        if not self.model.predict_logits(rows[: self._batch_size]).isfinite().all():  # no loss tells of the last step
            raise self._diverged("output of the model", math.nan)
        return sum(losses) / len(losses)

    def _step(self, rows: Sequence[EncodedRow], batch: Sequence[int], on_step: Callable[[float], None]) -> float:
        inputs = self.model.collate([rows[i] for i in batch])
        labels = torch.tensor([self._labels[i] for i in batch], device=self.model.device)  # (b,)
        with self._accelerator.autocast():
            logits = self.model(inputs)  # (b, c)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        value = loss.item()
        self.done += 1
        if not math.isfinite(value):
            raise self._diverged("training loss", value)
        self._accelerator.backward(loss)
        length = self._accelerator.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        if not math.isfinite(length):
            raise self._diverged("length of the gradient", float(length))
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        on_step(value)
        return value

    def _diverged(self, what: str, value: float) -> TrainingError:
        return TrainingError(
            f"the {what} is {value} at step {self.done} of {self.steps}",
            fix="Lower the learning rates of `training`, or set training.precision to fp32",
        )

    def _parameter_groups(self, config: TrainingConfig) -> list[dict[str, object]]:
        head = {id(parameter) for parameter in self.model.head.parameters()}
        frozen = {id(parameter) for parameter in self.model.input_embeddings().parameters()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        rate = config.encoder_learning_rate
        head_rate = config.head_learning_rate if isinstance(self.model, SentenceClassifier) else 10 * rate
        rest = [
            (parameter, id(parameter) in head) for parameter in self.model.parameters() if id(parameter) not in frozen
        ]
        return [
            {
                "params": [
                    parameter for parameter, is_head in rest if is_head == wanted and (parameter.ndim > 1) == decays
                ],
                "lr": head_rate if wanted else rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for wanted in (False, True)
            for decays in (True, False)
        ]

    def _endless_batches(self) -> Iterator[list[int]]:
        """Epoch after epoch: shuffled, sorted by length within buckets, batches shuffled."""
        while True:
            order = list(range(len(self._lengths)))
            self._order.shuffle(order)
            size = self._batch_size
            batches: list[list[int]] = []
            for start in range(0, len(order), size * BUCKET):
                bucket = sorted(order[start : start + size * BUCKET], key=self._lengths.__getitem__)
                batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
            self._order.shuffle(batches)
            yield from batches
