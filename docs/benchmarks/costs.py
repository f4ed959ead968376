"""What many runs would take and cost, by the figures of `seconds.jsonl`. A model of four numbers, no measurement.

A run takes its seconds on one place: a core, or a share of a card. What the assistant writes for a data set's card, it
writes once on each node; the other runs wait for that and find it. A training takes its rows, three times over, at the
rate of plain fine-tuning, and as many processes share it.

    python docs/benchmarks/costs.py --runs 60 --nodes 8 --places 32 --processes 64 --faster 10 --price 25
    python docs/benchmarks/costs.py --curves
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).with_name("seconds.jsonl")
STEPS, BATCH = 40, 16
"""Of `plain` with 8 shots."""
EPOCHS = 3
MANY_ROWS, THOUSANDS_OF_ROWS = 500, 2000
TRAININGS, ON_SHARES = 4, 1 + 2 / 16 + 2 / 8
"""On all rows: the search's model, plain fine-tuning, from the label texts, from the card's own alone. With thousands
the winner alone, and two on a sixteenth and on an eighth of them."""
LABELS, SHOTS = 4, 8
"""Of the measured sets on average; rows of a label."""
RUN_GIB, ASSISTANT_GIB = 1.5, 3.1
"""Memory of a run without its assistant (docs/LOG.md, peaks of three runs), and of 1.54 billion weights in bfloat16."""


@dataclass(frozen=True)
class Figures:
    """Seconds of one thread: of a run, the assistant's prefixes included, and of what it writes for a data set's card;
    rows that it trains on in a second; and of the run's seconds those of its trainings."""

    run: float
    card: float
    rows: float
    trainings: float = 0.0


def measured(results: Path = RESULTS) -> Figures:
    """Means over the six sets, 8 shots."""
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    good = [record for record in records if "error" not in record and record["shots"] == 8 and record["kind"] == "arm"]
    plain = [record["seconds"]["training"] for record in good if record["arm"] == "plain"]
    ours = [record for record in good if record["arm"] == "gpta"]
    first = [record["seconds"] for record in ours if record["sample"] == 0]
    later = [record["seconds"] for record in ours if record["sample"] > 0]
    prefixes = mean(run["assistant"] for run in later)
    asked = mean(run["assistant"] for run in first if run["assistant"] > 1)  # of some sets the answers were there
    trainings = mean(run["total"] - run["search"] for run in later)
    return Figures(mean(run["total"] for run in later), asked - prefixes, STEPS * BATCH / mean(plain), trainings)


def seconds_of_runs(figures: Figures, runs: int, nodes: int, places: int, faster: float) -> float:
    """Of independent runs with few rows, of one data set."""
    at_a_time = nodes * places
    return (math.ceil(runs / at_a_time) * figures.run + figures.card) / faster


def seconds_of_training(figures: Figures, rows: int, processes: int, faster: float) -> float:
    """Of the trainings of one run with many rows; what is beside them takes minutes."""
    trainings = ON_SHARES if rows >= THOUSANDS_OF_ROWS else TRAININGS
    return trainings * EPOCHS * rows / figures.rows / processes / faster


def gib_of_node(runs: int, nodes: int, places: int) -> float:
    """Where each run has the assistant in its process."""
    return min(places, math.ceil(runs / nodes)) * (RUN_GIB + ASSISTANT_GIB)


def seconds_of_labels(figures: Figures, labels: int) -> float:
    """Of one run with 8 rows a label. The assistant writes 32 example texts for each label, of more than twenty 640 in
    all, but at least 8 for each. A step has 8 rows and two texts of each label, of more than sixteen labels one. With
    so many labels that the rows are many, none are written, and it is trained as with many."""
    if SHOTS * labels >= MANY_ROWS:
        return figures.run - figures.trainings + seconds_of_training(figures, SHOTS * labels, 1, 1)

    def written(of: int) -> int:
        return of * min(32, max(8, 640 // of))

    def trained(of: int) -> int:
        return max(STEPS, EPOCHS * of) * (SHOTS + of * max(1, min(2, 32 // of)))

    trainings = figures.trainings * (trained(labels) / trained(LABELS) - 1)
    return figures.run + trainings + figures.card * written(labels) / written(LABELS)


def curves(figures: Figures) -> list[str]:
    """Markdown: seconds of one thread against rows and against labels."""
    lines = ["| rows | plain fine-tuning | a run | ratio |", "|---|---|---|---|"]
    for rows in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000):
        plain, run = EPOCHS * rows / figures.rows, seconds_of_training(figures, rows, 1, 1)
        search = figures.run - figures.trainings if rows < THOUSANDS_OF_ROWS else 0.0
        lines.append(f"| {rows:,} | {told(plain)} | {told(run + search)} | {(run + search) / plain:.1f} |")
    lines += ["", "| labels | a run with 8 rows of each |", "|---|---|"]
    lines += [f"| {labels} | {told(seconds_of_labels(figures, labels))} |" for labels in (2, 4, 6, 20, 50, 100, 150)]
    return lines


@dataclass(frozen=True)
class Plan:
    """`places`: runs at a time on a node. `processes`: that share one training. `faster`: each of these than the
    measured thread. `price`: of a node, an hour."""

    name: str
    nodes: int = 1
    places: int = 2
    processes: int = 1
    faster: float = 1.0
    price: float = 0.0


def table(figures: Figures, runs: int, rows: int, plans: list[Plan]) -> list[str]:
    """Markdown."""
    lines = [
        f"| machines | {runs} seeds, 8 shots | memory of a node | cost | one run of {rows:,} rows | cost |",
        "|---|---|---|---|---|---|",
    ]
    for plan in plans:
        many = seconds_of_runs(figures, runs, plan.nodes, plan.places, plan.faster)
        one = seconds_of_training(figures, rows, plan.processes, plan.faster)
        costs = [plan.nodes * plan.price * seconds / 3600 for seconds in (many, one)]
        memory = f"{gib_of_node(runs, plan.nodes, plan.places):.0f} GiB"
        lines.append(f"| {plan.name} | {told(many)} | {memory} | {costs[0]:.2f} | {told(one)} | {costs[1]:.2f} |")
    return lines


def told(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--rows", type=int, default=100_000, help="of the one run with many")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--places", type=int, default=2, help="runs at a time on a node: its cores, or shares of cards")
    parser.add_argument("--processes", type=int, default=1, help="that share one training")
    parser.add_argument("--faster", type=float, default=1.0, help="than one measured thread, each of these")
    parser.add_argument("--price", type=float, default=0.0, help="of a node, an hour")
    parser.add_argument("--curves", action="store_true", help="seconds against rows and labels in place of a plan")
    given = vars(parser.parse_args())
    if given.pop("curves"):
        sys.stdout.write("\n".join(curves(measured())) + "\n")
        return
    runs, rows = given.pop("runs"), given.pop("rows")
    plan = Plan(f"{given['nodes']} × {given['places']}", **given)
    sys.stdout.write("\n".join(table(measured(), runs, rows, [plan])) + "\n")


if __name__ == "__main__":
    main()
