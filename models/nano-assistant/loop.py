"""The training loop: batches of sequences → trained weights, with checkpoints and a log.

Knows optimiser, schedule and the tree-shaped attention of `tokens.TrainingSequence`. Does not know cards,
wording or the tokenizer.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokens import TrainingSequence
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train. Tokens count prompts and replies, without padding."""

    tokens: int
    batch_tokens: int = 4096  # padded tokens of one step
    learning_rate: float = 2e-3
    copying_share: float = 0.2  # of the learning rate, for the parts that start with the ability to copy
    last_learning_rate: float = 1e-4
    warm_up_steps: int = 60
    weight_decay: float = 0.05
    prompt_weight: float = 0.2
    pool: int = 600  # sequences that are sorted by length together


@dataclass(frozen=True, slots=True)
class Batch:
    """b sequences padded to t tokens; n pairs over the whole batch."""

    ids: Tensor  # b, t
    positions: Tensor  # b, t
    mask: Tensor  # b, 1, t, t; added to the attention scores
    sources: Tensor  # n; indices into b·t
    targets: Tensor  # n
    weights: Tensor  # n; 1 for replies, 0 for prompts
    labels: Tensor  # n; whether the pair belongs to a label-texts request
    tokens: int


def collate(sequences: Sequence[TrainingSequence]) -> Batch:
    b, t = len(sequences), max(len(sequence.ids) for sequence in sequences)
    ids, positions = torch.zeros(b, t, dtype=torch.long), torch.zeros(b, t, dtype=torch.long)
    segments = torch.full((b, t), -1)
    sources, targets, weights, labels = [], [], [], []
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        ids[row, :length] = torch.tensor(sequence.ids)
        positions[row, :length] = torch.tensor(sequence.positions)
        segments[row, :length] = torch.tensor(sequence.segments)
        for pairs, weight in ((sequence.reply_pairs, 1.0), (sequence.prompt_pairs, 0.0)):
            sources += [row * t + source for source, _ in pairs]
            targets += [target for _, target in pairs]
            weights += [weight] * len(pairs)
            labels += [sequence.kind == "label-texts"] * len(pairs)
    query, key = segments[:, :, None], segments[:, None, :]  # b, t, 1 and b, 1, t
    allowed = ((key == 0) | (key == query)) & torch.ones(t, t, dtype=torch.bool).tril()  # b, t, t
    mask = torch.zeros(b, 1, t, t, dtype=torch.bfloat16).masked_fill_(~allowed[:, None], float("-inf"))
    return Batch(
        ids, positions, mask, torch.tensor(sources), torch.tensor(targets), torch.tensor(weights),
        torch.tensor(labels), sum(len(sequence.ids) for sequence in sequences),
    )  # fmt: skip


def batches(draw: Callable[[], TrainingSequence], plan: Plan, shuffle: Callable[[list[Any]], None]) -> Iterator[Batch]:
    """Batches of sequences of similar length, without end."""
    while True:
        pool = sorted((draw() for _ in range(plan.pool)), key=lambda sequence: len(sequence.ids))
        groups: list[list[TrainingSequence]] = [[]]
        for sequence in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(sequence.ids) > plan.batch_tokens:
                groups.append([])
            groups[-1].append(sequence)
        shuffle(groups)
        yield from (collate(group) for group in groups)


def pair_losses(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Cross-entropy of each pair, in nats: n values."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state  # b, t, h
        logits = model.lm_head(states.flatten(0, 1)[batch.sources])  # n, v
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def train(
    model: LlamaForCausalLM,
    stream: Iterator[Batch],
    heldout: Sequence[Batch],
    plan: Plan,
    *,
    log: Path,
    on_checkpoint: Callable[[], None],
    minutes_between_checkpoints: float = 5.0,
) -> None:
    """Train until `plan.tokens` are seen; the log goes on where the stage before ended."""
    optimiser = make_optimiser(model, plan)
    step, tokens = 0, 0
    log.parent.mkdir(parents=True, exist_ok=True)
    before = _last_row(log)
    started = saved = time.monotonic()
    sums = {"label-texts": [0.0, 0], "prefix": [0.0, 0], "prompt": [0.0, 0]}
    model.train()
    while tokens < plan.tokens:
        batch = next(stream)
        rate = _learning_rate(plan, step, tokens)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"]
        losses = pair_losses(model, batch)
        reply = batch.weights > 0
        loss = losses[reply].mean() + plan.prompt_weight * losses[~reply].sum() / max(int((~reply).sum()), 1)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + batch.tokens
        chosen = {"label-texts": reply & batch.labels, "prefix": reply & ~batch.labels, "prompt": ~reply}
        for name, which in chosen.items():
            sums[name][0] += losses.detach()[which].sum().item()
            sums[name][1] += int(which.sum())
        if step % 50 == 0 or tokens >= plan.tokens:
            row: dict[str, Any] = {"step": before["step"] + step, "tokens": before["tokens"] + tokens}
            row |= {"seconds": round(before["seconds"] + time.monotonic() - started, 1)}
            row |= {"learning_rate": round(rate, 6)}
            row |= {name: round(total / max(count, 1), 4) for name, (total, count) in sums.items()}
            sums = {name: [0.0, 0] for name in sums}
            if step % 250 == 0 or tokens >= plan.tokens:
                row |= {"copied": copied_share(model)} | _heldout_losses(model, heldout)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if time.monotonic() - saved > 60 * minutes_between_checkpoints or tokens >= plan.tokens:
            on_checkpoint()
            saved = time.monotonic()


def _last_row(log: Path) -> dict[str, Any]:
    """The end of the stage before, from which the log goes on."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return json.loads(lines[-1]) if lines else {"step": 0, "tokens": 0, "seconds": 0.0}


@torch.no_grad()
def copied_share(model: LlamaForCausalLM, length: int = 60) -> float:
    """Share of right next tokens in the second half of random tokens that are said twice."""
    half = torch.randint(300, model.config.vocab_size, (8, length), generator=torch.Generator().manual_seed(1))
    model.eval()
    predicted = model(torch.cat([half, half], dim=1)).logits[:, length:-1].argmax(-1)  # 8, length - 1
    model.train()
    return round((predicted == half[:, 1:]).float().mean().item(), 3)


def make_optimiser(model: LlamaForCausalLM, plan: Plan) -> torch.optim.Optimizer:
    """AdamW. Embeddings and the attention of the first two layers, which start with the ability to copy, learn
    more slowly: at the full rate they lose it within a hundred steps and never find it again."""
    copying = [model.model.embed_tokens.weight]
    copying += [p for layer in model.model.layers[:2] for p in layer.self_attn.parameters()]
    slow = {id(p) for p in copying}
    rest = [p for p in model.parameters() if id(p) not in slow]
    groups = [
        {"params": copying, "share": plan.copying_share, "weight_decay": 0.0},
        {"params": [p for p in rest if p.dim() == 2], "share": 1.0, "weight_decay": plan.weight_decay},
        {"params": [p for p in rest if p.dim() == 1], "share": 1.0, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)


def _learning_rate(plan: Plan, step: int, tokens: int) -> float:
    if step < plan.warm_up_steps:
        return plan.learning_rate * (step + 1) / plan.warm_up_steps
    span = plan.learning_rate - plan.last_learning_rate
    return plan.last_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, tokens / plan.tokens)))


@torch.no_grad()
def _heldout_losses(model: LlamaForCausalLM, heldout: Sequence[Batch]) -> dict[str, float]:
    model.eval()
    sums = {True: [0.0, 0], False: [0.0, 0]}
    for batch in heldout:
        losses = pair_losses(model, batch)
        for labels in sums:
            which = (batch.weights > 0) & (batch.labels == labels)
            sums[labels][0] += losses[which].sum().item()
            sums[labels][1] += int(which.sum())
    model.train()
    (label_sum, label_count), (prefix_sum, prefix_count) = sums[True], sums[False]
    return {
        "heldout label-texts": round(label_sum / max(label_count, 1), 4),
        "heldout prefix": round(prefix_sum / max(prefix_count, 1), 4),
    }
