"""The parameter gradient: optimiser, schedule and steps on [prefix; input], through Accelerate.

Knows models, token ids and settings. Does not know who chose the prefix, or why.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from gpta_local.config import TrainingConfig
from gpta_local.data.examples import Example
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier
from gpta_local.downstream.team import Order, Team
from gpta_local.downstream.tokenization import EncodedRow
from gpta_local.errors import LOWER_RATES, TrainingError
from gpta_local.record.checkpoints import Checkpoint
from gpta_local.system.models import multiplies_in_bf16

MIN_STEPS = 40
EPOCHS = 3
LABEL_TEXTS = 2
"""Texts of each class in one step: four are no better and take longer (docs/LOG.md)."""
LABEL_TEXTS_OF_A_STEP = 32
"""Of all classes together, twice a usual batch: of more than sixteen classes each has one."""
WEIGHT_DECAY = 0.01
WARMUP = 0.1
"""Share of the steps in which the learning rate rises; it falls linearly to 0 after."""
MAX_GRAD_NORM = 1.0
"""These three are what is usual in fine-tuning BERT (Devlin et al. 2019)."""
LOOKS = 5
"""Parts of the steps, after each of which there is a look at the rows that are watched."""
BUCKET = 32
"""Batches that are sorted by length together: little padding, order still random."""


def rows_of_a_step(config: TrainingConfig, *, label_texts: bool) -> int:
    """`batch_size` of the configuration; half of it where label texts go along: as good as all of it, in 0.6 of the
    time (docs/LOG.md)."""
    return max(1, config.batch_size // 2) if label_texts else config.batch_size


def total_steps(config: TrainingConfig, rows: int, *, label_texts: bool = False) -> int:
    """`steps` of the configuration, or three epochs but at least 40 steps."""
    return config.steps or max(MIN_STEPS, EPOCHS * -(-rows // rows_of_a_step(config, label_texts=label_texts)))


class Training:
    """One model's fine-tuning: a fixed number of steps, taken in one go or in parts.

    Two trainings with the same seed, rows, number of steps and rows of a step draw the same batches and dropout
    seeds whatever the prefix, so that their results are paired. The random generator is its own: what
    else draws random numbers in the process changes nothing, nor does a pause of days (`state`, `load`).

    With `label_texts` a second head goes along, made at each step of some of the texts that the model's own head has
    started from, embedded by the encoder as it is then. Its loss is added, and after the last step the head is the
    mean of both. A model that has not started from label texts is trained without.

    With a `team` each of its processes takes its share of the rows of a step, and the gradients are added up: the same
    steps on the same rows, but for the last digits and the dropout. `part` tells them of which share of the rows.

    `steps`: `total_steps`, or so many `times` as many. `losses`: one for each step taken, of the model's own head.
    `seconds`: spent on them. `watched`: steps taken, and the loss on the rows `watch` of the model as it would be if
    that were the end; before the first step and after each of five parts. Nothing depends on it.
    """

    def __init__(
        self,
        model: DownstreamModel,
        examples: Sequence[Example],
        config: TrainingConfig,
        *,
        seed: int,
        label_texts: bool = False,
        times: int = 1,
        weight_decay: float = WEIGHT_DECAY,
        team: Team | None = None,
        part: int = 1,
        watch: Sequence[Example] = (),
    ) -> None:
        self.model, self._seed, self._team, self._part = model, seed, team, part
        self._anchored = model if label_texts and isinstance(model, SentenceClassifier) and model.label_rows else None
        anchored = self._anchored is not None
        self.batch_size = rows_of_a_step(config, label_texts=anchored)
        self.steps = times * total_steps(config, len(examples), label_texts=anchored)
        self.losses: list[float] = []
        self.watched: list[tuple[int, float]] = []
        self.seconds = 0.0
        device = model.device
        self._gpus = [device] if device.type == "cuda" else []
        AcceleratorState._reset_state(reset_partial_state=True)  # another training of this process may differ
        in_bf16, on_cpu = multiplies_in_bf16(config.precision, device), device.type == "cpu"
        self._accelerator = Accelerator(mixed_precision="bf16" if in_bf16 and not on_cpu else "no", cpu=on_cpu)
        self._labels = [example.label for example in examples]
        self._tokenised = model.tokenizer.tokenise([example.texts for example in examples])
        self._watch = watch
        self._looks = {self.steps * part // LOOKS for part in range(LOOKS + 1)} if watch else set()
        with torch.random.fork_rng(self._gpus):
            torch.manual_seed(seed)
            self._random = self._random_states()
        lengths = [sum(map(len, row)) for row in self._tokenised.alone]
        self._batches = endless_batches(lengths, self.batch_size, random.Random(f"batches-{seed}"))
        optimizer = torch.optim.AdamW(self._parameter_groups(config, weight_decay), fused=True)
        self._parameters, of_network = list(model.parameters()), dict(model.network.named_parameters())
        self._learning = {n: p for n, p in of_network.items() if p.requires_grad}
        frozen = {n: p for n, p in of_network.items() if not p.requires_grad}
        self._frozen_in_bf16 = {n: p.bfloat16() for n, p in frozen.items()} if in_bf16 and on_cpu else None
        warmup = round(WARMUP * self.steps)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, self.steps)  # type: ignore[no-untyped-call]  # no types
        self._optimizer, self._schedule = self._accelerator.prepare(optimizer, schedule)

    def run(self, prefix: str, steps: int, on_step: Callable[[float], None] = lambda loss: None) -> float:
        """Take `steps` steps with a prefix; return their mean loss.

        Args:
            on_step: called with each step's loss.

        Raises:
            TrainingError: if a loss, a gradient or then an output of the model is not a number.
        """
        if self._team and self._team.main:
            self._team.order(Order(prefix, steps, self._part, self.state()))
        rows = self.model.tokenizer.encode(self._tokenised, prefix)
        if not self.done:
            self._look(prefix)
        self.model.train()
        for left in reversed(range(steps)):
            started = time.monotonic()
            with self._own_random_state():
                loss = self._step(rows, next(self._batches))
            self.losses.append(loss)
            if self._anchored and self.done == self.steps:
                self._anchored.join_label_weights()
            self.seconds += time.monotonic() - started
            # no loss tells of the last step, after which all is written
            if not left and not self.model.predict_logits(rows[: self.batch_size]).isfinite().all():
                raise self._diverged("output of the model", math.nan)
            self._look(prefix)
            on_step(loss)
        self.model.eval()
        if self._team:
            self._team.trained()
        return sum(self.losses[-steps:]) / steps

    @property
    def processes(self) -> int:
        """That take a step together."""
        return self._team.size if self._team else 1

    @property
    def done(self) -> int:
        return len(self.losses)

    @contextmanager
    def as_if_ended(self) -> Iterator[None]:
        """The model as it would be if this were the last step."""
        head = {name: tensor.clone() for name, tensor in self.model.head.state_dict().items()}
        if self._anchored and self.done < self.steps:
            self._anchored.join_label_weights()
        yield
        self.model.head.load_state_dict(head)

    def _look(self, prefix: str) -> None:
        if self.done in self._looks:
            rows = self.model.tokenizer.encode(
                self.model.tokenizer.tokenise([row.texts for row in self._watch]), prefix
            )
            with torch.no_grad(), self._lower_precision(), self.as_if_ended():
                logits = self.model.predict_logits(rows).float()  # (n, c)
            labels = torch.tensor([row.label for row in self._watch], device=logits.device)  # (n,)
            self.watched.append((self.done, nn.functional.cross_entropy(logits, labels).item()))

    def state(self) -> Checkpoint:
        """All that `load` needs to go on as if there had been no pause; between two steps (`on_step`) it can be had.
        At the end that is the model alone."""
        tensors = {f"model.{name}": tensor.detach() for name, tensor in self._weights().items()}
        state: dict[str, Any] = {
            "losses": self.losses,
            "seconds": self.seconds,
            "watched": self.watched,
            "processes": self.processes,
        }
        if self.done < self.steps:
            optimizer = self._optimizer.state_dict()
            for number, of_parameter in optimizer["state"].items():
                tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in of_parameter.items()}
            tensors |= {f"random.{number}": tensor for number, tensor in enumerate(self._random)}
            state |= {"groups": optimizer["param_groups"], "schedule": self._schedule.state_dict()}
        return Checkpoint(tensors, state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from the `state` of a training of the same model, rows, configuration and seed."""
        tensors, state = checkpoint.tensors, checkpoint.state
        with torch.no_grad():
            for name, tensor in self._weights().items():
                tensor.copy_(tensors[f"model.{name}"])
        self.losses, self.seconds = state["losses"], state["seconds"]
        self.watched = [(step, loss) for step, loss in state["watched"]]
        if self.done < self.steps:
            of_parameters: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition(".")
                number, _, field = rest.partition(".")
                if kind == "optimizer":
                    of_parameters.setdefault(int(number), {})[field] = tensor.clone()
            self._optimizer.load_state_dict({"state": of_parameters, "param_groups": state["groups"]})
            self._schedule.load_state_dict(state["schedule"])
            # one begun without a GPU has no state of its generator: that stays as it is at the beginning
            self._random = [tensors.get(f"random.{n}", own).clone() for n, own in enumerate(self._random)]
            for _ in range(self.done):
                next(self._batches)

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, those that have two names once."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        with torch.random.fork_rng(self._gpus):
            if self._team and not self._team.main:  # from the step alone: only the main process keeps a state
                torch.manual_seed((self._seed * 2**24 + self.done) * self._team.size + self._team.rank)
                yield
                return
            torch.set_rng_state(self._random[0])
            for gpu, random_state in zip(self._gpus, self._random[1:], strict=True):
                torch.cuda.set_rng_state(random_state, gpu)
            yield
            self._random = self._random_states()

    def _random_states(self) -> list[Tensor]:
        """Of torch's generator, and of the GPU's if the model is on one."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]

    def _step(self, rows: Sequence[EncodedRow], batch: Sequence[int]) -> float:
        batch, weight = self._team.share(batch) if self._team else (batch, 1.0)
        inputs = self.model.collate([rows[i] for i in batch])
        labels = torch.tensor([self._labels[i] for i in batch], device=self.model.device)  # (b,)
        if self._anchored is None:
            with self._lower_precision():
                logits = self.model(inputs)  # (b, c)
            loss = own = nn.functional.cross_entropy(logits.float(), labels)
        else:
            with self._lower_precision():
                features = self._anchored.features(inputs)  # (b, d)
                weights = self._anchored.label_weights(self._some_label_texts(self._anchored))  # (c, d)
            own = nn.functional.cross_entropy(self._anchored.head(features.float()), labels)
            loss = own + nn.functional.cross_entropy(features.float() @ weights.T, labels)
        value, whole = own.item(), loss.item()
        self._accelerator.backward(weight * loss)
        if self._team:
            value = whole = self._team.add_up(weight * value, self._parameters)
        if not math.isfinite(whole):
            raise self._diverged("training loss", whole)
        length = self._accelerator.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        if not math.isfinite(length):
            raise self._diverged("length of the gradient", float(length))
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return value

    @contextmanager
    def _lower_precision(self) -> Iterator[None]:
        """Compute in bfloat16, if so configured: on a CPU with copies of the network's weights, made for this step.
        Autocast casts activations to and fro, which takes a fifth of a step there (docs/LOG.md)."""
        if self._frozen_in_bf16 is None:
            with self._accelerator.autocast():
                yield
            return
        learning = {n: p.bfloat16() for n, p in self._learning.items()}
        with self.model.in_place_of_weights(learning | self._frozen_in_bf16):
            yield

    def _some_label_texts(self, model: SentenceClassifier) -> list[int]:
        """Of which of its label texts the second head is made at this step; the same of each class."""
        classes, known = len(model.label_rows), len(model.label_rows[0])
        wanted = max(1, min(LABEL_TEXTS, LABEL_TEXTS_OF_A_STEP // classes))
        rng = random.Random(f"label-texts-{self._seed}-{self.done}")
        return rng.sample(range(known), min(wanted, known))

    def _diverged(self, what: str, value: float) -> TrainingError:
        return TrainingError(
            f"the {what} is {value} at step {min(self.done + 1, self.steps)} of {self.steps}",
            fix=LOWER_RATES,
        )

    def _parameter_groups(self, config: TrainingConfig, weight_decay: float) -> list[dict[str, object]]:
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
                "weight_decay": weight_decay if decays else 0.0,
            }
            for wanted in (False, True)
            for decays in (True, False)
        ]


def endless_batches(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Numbers of rows, epoch after epoch: shuffled, sorted by length within buckets, batches shuffled.

    Args:
        lengths: tokens of each row.
        size: rows of a batch.
    """
    while True:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), size * BUCKET):
            bucket = sorted(order[start : start + size * BUCKET], key=lengths.__getitem__)
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        rng.shuffle(batches)
        yield from batches
