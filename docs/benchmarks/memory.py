"""How much memory a training and a prediction take with so many rows: made-up rows of 50 words in a file, a run of a
few steps, then `predict` on new ones, each in a process of its own.

    python docs/benchmarks/memory.py FOLDER 100000 [300000 …] [--predict 20000 [1000000 …]] [--backbone TINY_MODEL]

No assistant is asked. A hundred rows each are for validation and test. Peaks are of the whole process, torch included.
`--predict` says how many rows are labelled, otherwise as many as are trained on; a tiny backbone has a million labelled
soon.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

LABELS = ("sport", "trade", "science", "weather")
STEPS, WORDS, BESIDE = 5, 50, 100


def write_rows(path: Path, rows: int, words: list[str], seed: int) -> None:
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            label = rng.choice(LABELS)
            text = [*rng.choices(words, k=WORDS - 1), label if rng.random() < 0.8 else "news"]
            file.write(json.dumps({"text": " ".join(text), "label": label}) + "\n")


class Silent:
    """An assistant that is asked nothing."""

    name, takes_adapters, adapters_refused, checked = "none", False, "there is none", None

    def check(self, *_: Any) -> str:
        return self.name

    def use_adapter(self, _: Path | None) -> None: ...
    def close(self) -> None: ...


def train(folder: Path, _: str) -> None:
    from gpta_local.config import load
    from gpta_local.observer import Observer
    from gpta_local.run import loop

    class Told(Observer):
        def stage(self, title: str, steps: int) -> None:
            tell(title)

    with patch.object(loop, "open_assistant", lambda _: Silent()):
        run = loop.Run(load(folder / "config.yaml"), Told())
        tell("read, checked and scanned")
        run.run(folder / "run")
    tell("end")


def tell(what: str) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now, peak = pages * os.sysconf("SC_PAGE_SIZE") / 1e9, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = time.process_time()
    sys.stdout.write(f"  {seconds:7.1f} s of the processor  {now:5.2f} GB, peak {peak:5.2f} GB  {what}\n")
    sys.stdout.flush()


def predict(folder: Path, rows: str) -> None:
    from gpta_local.downstream.inference import predict
    from gpta_local.downstream.predicting import Wanted

    predict(folder / "run", [str(folder / f"new-{rows}.jsonl")], folder / f"labels-{rows}.jsonl", Wanted())
    tell("predicted")


def main(folder: Path, rows: int, labelled: list[int], backbone: str) -> None:
    from gpta_local.system.models import DEMO_BACKBONE, backbone_folder

    place = folder / str(rows)
    place.mkdir(parents=True)
    vocabulary = (backbone_folder(DEMO_BACKBONE) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2]
    sizes = {"train": rows, "validation": BESIDE, "test": BESIDE, **{f"new-{count}": count for count in labelled}}
    for number, (name, count) in enumerate(sizes.items()):
        write_rows(place / f"{name}.jsonl", count, words, number)
    (place / "config.yaml").write_text(
        "card: {description: What a made-up line of news is about.}\n"
        "data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n"
        "assistant: {backend: openai, base_url: 'http://127.0.0.1:1/v1', model: none}\n"
        f"search: {{rounds: 0, label_text_samples: 0}}\ntraining: {{steps: {STEPS}}}\n"
        f"downstream: {{backbone: {backbone}}}\n",
        encoding="utf-8",
    )
    for part, count in (("train", rows), *(("predict", count) for count in labelled)):
        sys.stdout.write(f"{count:,} rows, {part}:\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, part, str(place), str(count)], check=True)


if __name__ == "__main__":
    if sys.argv[1] in ("train", "predict"):
        {"train": train, "predict": predict}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    else:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("folder", type=Path)
        parser.add_argument("rows", type=int, nargs="+")
        parser.add_argument("--predict", type=int, nargs="+")
        parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
        given = parser.parse_args()
        for count in given.rows:
            main(given.folder, count, given.predict or [count], given.backbone)
