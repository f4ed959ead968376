"""What shares of a model's replies can be used, and how fast it writes: the figures of models/catalogue.yaml.

For each configuration the requests of a run are made, for label texts, example texts and prefixes (the latter without a
history, as in a first round), sampled as a run does, and read as a run reads them. Share of label texts: of sets; of
prefixes: of replies; of example texts: of the texts asked for. Seconds are the processor's, of one thread.

    OMP_NUM_THREADS=1 python docs/benchmarks/usable.py MODEL_FOLDER configs/benchmark/sst2.yaml ...
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import (
    TEXTS_OF_A_REPLY,
    UnusableReply,
    example_texts_request,
    label_texts_request,
    parts_of,
    prefix_request,
)
from gpta_local.config import load
from gpta_local.knowledge.example_texts import ExampleTextReader
from gpta_local.knowledge.label_texts import read_label_text_sets
from gpta_local.run.plan import Plan
from gpta_local.schema import Ask, Completion, Request
from gpta_local.tasks import open_task

SETS, PREFIXES, TEXTS = 8, 16, 16
"""Label-text sets, replies with prefixes, and example texts of a label."""


def measure(folder: str, configuration: Path) -> dict[str, object]:
    """One line of figures: shares by kind, tokens and seconds by kind, reasons against prefixes."""
    config = load(configuration, [f"assistant.model={folder}"])
    task = open_task(config)
    card = task.card()
    plan = Plan(config, task, task.splits(), card)
    assistant = LocalAssistant(folder, "cpu")
    assistant.base()  # loading is no part of the seconds
    model = task.build(task.own_label_texts())
    read_prefix = plan.prefix_reader(model, lambda text: "")
    labels = list(card.labels)
    requests = {
        "label_texts": ([label_texts_request(part) for part in parts_of(card)], SETS),
        "example_texts": ([example_texts_request(card, label) for label in labels], -(-TEXTS // TEXTS_OF_A_REPLY)),
        "prefixes": ([prefix_request(card, [])], PREFIXES),
    }
    found: dict[str, object] = {"set": configuration.stem, "model": Path(folder).name}
    for kind, (asked, n) in requests.items():
        tokens, seconds, replies = _write(assistant, plan, asked, n)
        reasons = Counter[str]()
        if kind == "label_texts":
            read = [
                read_label_text_sets(got, part, lambda text: "")[1]
                for part, got in zip(parts_of(card), replies, strict=True)
            ]
            good, total = sum(verdict != "unusable" for outcomes in read for verdict, _ in outcomes), n * len(asked)
            reasons.update(why for outcomes in read for verdict, why in outcomes if verdict == "unusable")
        elif kind == "example_texts":
            reader = ExampleTextReader(card)
            good = sum(len(reader.read(got, label.name)[0]) for label, got in zip(labels, replies, strict=True))
            total, reasons = n * TEXTS_OF_A_REPLY * len(labels), reader.refused
        else:
            good, total = 0, n
            for reply in replies[0]:
                try:
                    good += bool(read_prefix(reply.text))
                except UnusableReply as exc:
                    reasons[str(exc)] += 1
        found[kind] = {"usable": good, "of": total, "tokens": tokens, "seconds": round(seconds, 1), "why": reasons}
    return found


def _write(
    assistant: LocalAssistant, plan: Plan, requests: list[Request], n: int
) -> tuple[int, float, list[list[Completion]]]:
    started = time.process_time()
    replies = assistant.complete_all([Ask(request, n, plan.sampling(0, request)) for request in requests])
    seconds = time.process_time() - started
    return sum(reply.completion_tokens or 0 for got in replies for reply in got), seconds, replies


if __name__ == "__main__":
    for path in sys.argv[2:]:
        sys.stdout.write(json.dumps(measure(sys.argv[1], Path(path))) + "\n")
        sys.stdout.flush()
