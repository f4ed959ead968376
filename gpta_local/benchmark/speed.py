"""How fast training is beside the `Trainer` of transformers, and `predict` beside `SentenceTransformer.encode`: in
turns in one process, on one thread.

    python -m gpta_local.benchmark.speed DATA OUTPUT [ROWS]

ROWS are labelled, 100,000 unless told otherwise, which takes an hour. DATA holds sst2/train.jsonl and
ag_news/train.jsonl, OUTPUT is the table in Markdown. Seconds are those of the processor, so that other processes on the
machine hardly count; read the ratios, not the seconds.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gpta_local.config import DataConfig, TrainingConfig
from gpta_local.data.examples import Example
from gpta_local.data.records import Record
from gpta_local.downstream.loaded import WINDOW
from gpta_local.downstream.model import SentenceClassifier
from gpta_local.downstream.onnx import export_onnx
from gpta_local.downstream.predicting import Labeller, Wanted
from gpta_local.downstream.product import open_product, write_product
from gpta_local.downstream.training import BUCKET, Training
from gpta_local.system.models import DEMO_BACKBONE, backbone_folder, load_pretrained, load_tokenizer

SETS = {"sst2": "short texts", "ag_news": "longer texts"}
BATCH = 16
ALTERNATIONS = 5
WARM = 3
"""Steps before those that are measured."""
PEER_STEPS = 12
LABELLED = 100_000

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


def labelling(texts: list[str]) -> dict[str, list[float]]:
    """Rows a second of each window of texts but the first, by what labels them: the same weights in all."""
    labels = [str(number) for number in range(4)]
    model = SentenceClassifier(backbone_folder(DEMO_BACKBONE), len(labels), None)
    columns = DataConfig(train="none")
    with tempfile.TemporaryDirectory() as folder:
        write_product(Path(folder, "model"), model, "", "text-classification", labels, columns)
        product = open_product(Path(folder, "model"))
        export_onnx(product, Path(folder, "onnx"))
        sentences = product.sentence_transformer()
        windows = [texts[start : start + WINDOW] for start in range(0, len(texts), WINDOW)]
        ways: dict[str, Iterator[Any]] = {"encode": (row for window in windows for row in sentences.encode(window))}
        for name, of in (("predict", product), ("predict, ONNX Runtime", open_product(Path(folder, "onnx")))):
            records = (Record({columns.text: text}, "") for text in texts)
            ways[name] = Labeller(of, [columns.text], Wanted(), flat=False).rows(records)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number, window in enumerate(windows):
            for name, rows in ways.items():
                begun = time.process_time()
                for _ in islice(rows, len(window)):
                    pass
                if number:  # in the first, models are loaded
                    found[name].append(len(window) / (time.process_time() - begun))
    return found


def table_of_labelling(found: dict[str, list[float]], count: int) -> list[str]:
    encode = found["encode"]
    lines = [
        "",
        "# Speed of prediction",
        "",
        f"{count:,} rows, half of sst2, half of ag_news, mixed; float32, one thread, in turns, {len(encode)} windows "
        f"of {WINDOW} rows, seconds of the processor. Medians; 5 % and 95 % of the windows in brackets.",
        "",
        "| | rows a second | ratio to `encode` |",
        "|---|---|---|",
    ]
    for name, speeds in found.items():
        ratios = [a / b for a, b in zip(speeds, encode, strict=True)]
        low, high = np.percentile(ratios, [5, 95])
        lines.append(f"| {name} | {median(speeds):.0f} | {median(ratios):.2f} ({low:.2f} to {high:.2f}) |")
    return lines


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    name, able = names[0] if names else platform.machine(), ", ".join(flags) or "no bfloat16 products"
    return f"{name} ({able}), torch {torch.__version__}"


def main(data: Path, output: Path, labelled: int = LABELLED) -> None:
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
    texts = [text for name in SETS for text, _ in rows_of(data / name / "train.jsonl")[: labelled // 2]]
    texts = random.Random(0).choices(texts, k=labelled + WINDOW)
    lines += table_of_labelling(labelling(texts), labelled)
    click.echo("\n".join(lines[-3:]))
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
