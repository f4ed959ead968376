"""How fast training is beside the `Trainer` of transformers: both in turns in one process, on one thread.

    python -m gpta_local.benchmark.speed DATA OUTPUT

DATA holds sst2/train.jsonl and ag_news/train.jsonl, OUTPUT is the table in Markdown. Seconds are those of the
processor, so that other processes on the machine hardly count; read the ratios, not the seconds.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gpta_local.config import TrainingConfig
from gpta_local.data.examples import Example
from gpta_local.downstream.model import SentenceClassifier
from gpta_local.downstream.training import BUCKET, Training
from gpta_local.system.models import DEMO_BACKBONE, backbone_folder, load_pretrained, load_tokenizer

SETS = {"sst2": "short texts", "ag_news": "longer texts"}
BATCH = 16
ALTERNATIONS = 5
WARM = 3
"""Steps before those that are measured."""
PEER_STEPS = 12

Rows = list[tuple[str, int]]


def rows_of(path: Path) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    labels = sorted({row["label"] for row in rows})
    return [(row["text"], labels.index(row["label"])) for row in rows]


def ours(rows: Rows, classes: int) -> Callable[[int], float]:
    """What gives the seconds of a step, over the batches of one bucket."""
    model = SentenceClassifier(backbone_folder(DEMO_BACKBONE), classes, None)
    settings = TrainingConfig(precision="bf16", batch_size=BATCH, steps=BUCKET * 100)
    training = Training(model, [Example((text,), label) for text, label in rows], settings, seed=0)

    def seconds(_: int) -> float:
        ends: list[float] = []
        training.run("", BUCKET + 1, lambda loss: ends.append(time.process_time()))
        return (ends[-1] - ends[0]) / BUCKET

    return seconds


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())


def trainer(rows: Rows, classes: int) -> Callable[[int], float]:
    """The same for the `Trainer` as its documentation has it: bf16, batches of 16 at random, each padded to its own
    longest row."""
    folder = backbone_folder(DEMO_BACKBONE)
    tokenizer = load_tokenizer(folder)
    model = load_pretrained(AutoModelForSequenceClassification, folder, num_labels=classes)
    data = Dataset.from_list(
        [{**tokenizer(text, truncation=True, max_length=256), "label": label} for text, label in rows]
    )

    def seconds(seed: int) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as output:
            arguments = TrainingArguments(
                output_dir=output,
                per_device_train_batch_size=BATCH,
                max_steps=WARM + PEER_STEPS,
                bf16=True,
                use_cpu=True,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            collator = DataCollatorWithPadding(tokenizer)
            Trainer(model, arguments, collator, data, callbacks=[clock]).train()
        return (clock.ends[-1] - clock.ends[WARM - 1]) / PEER_STEPS

    return seconds


def compare(rows: Rows) -> tuple[float, float, list[float]]:
    """Samples a second of the peer and of ours, and the ratio of each alternation."""
    classes = 1 + max(label for _, label in rows)
    theirs, own = trainer(rows, classes), ours(rows, classes)
    pairs = [(theirs(number), own(number)) for number in range(ALTERNATIONS)]
    peer, mine = (BATCH / median(side) for side in zip(*pairs, strict=True))
    return peer, mine, [a / b for a, b in pairs]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    name, able = names[0] if names else platform.machine(), ", ".join(flags) or "no bfloat16 products"
    return f"{name} ({able}), torch {torch.__version__}"


def main(data: Path, output: Path) -> None:
    torch.set_num_threads(1)
    lines = [
        "# Speed of training",
        "",
        f"`make bench-speed`, {time.strftime('%Y-%m-%d')}, one thread of {machine()}. all-MiniLM-L6-v2, batches of "
        f"{BATCH}, bfloat16, {BUCKET} steps of ours and {PEER_STEPS} of the `Trainer` of transformers in turns, "
        f"{ALTERNATIONS} times, seconds of the processor. Medians; least and greatest ratio in brackets. Other "
        "processes still count where they share caches.",
        "",
        "| rows | samples a second, `Trainer` | gpta-local | ratio |",
        "|---|---|---|---|",
    ]
    for name, what in SETS.items():
        peer, mine, ratios = compare(rows_of(data / name / "train.jsonl"))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {name}, {what} | {peer:.0f} | {mine:.0f} | {median(ratios):.2f} ({spread}) |")
        click.echo(lines[-1])
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
