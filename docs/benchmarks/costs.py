"""What many runs would take and cost, by the figures of `results.jsonl`. A model of four numbers, no measurement.

A run takes its seconds on one place: a core, or a share of a card. What the assistant writes for a data set's card, it
writes once on each node; the other runs wait for that and find it. A training takes its rows, three times over, at the
rate of plain fine-tuning, and as many processes share it.

    python docs/benchmarks/costs.py --runs 60 --nodes 8 --places 32 --processes 64 --faster 10 --price 25
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).with_name("results.jsonl")
STEPS, BATCH = 40, 16
"""Of `plain` with 8 shots."""
EPOCHS, TRAININGS = 3, 4
"""Of a run with many rows: the search's model, plain fine-tuning, from the label texts, from the card's own alone."""
RUN_GIB, ASSISTANT_GIB = 1.5, 3.1
"""Memory of a run without its assistant (docs/LOG.md, peaks of three runs), and of 1.54 billion weights in bfloat16."""


@dataclass(frozen=True)
class Figures:
    """Seconds of one thread: of a run, the assistant's prefixes included, and of what it writes for a data set's card;
    and rows that it trains on in a second."""

    run: float
    card: float
    rows: float


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
    return Figures(mean(run["total"] for run in later), asked - prefixes, STEPS * BATCH / mean(plain))


def seconds_of_runs(figures: Figures, runs: int, nodes: int, places: int, faster: float) -> float:
    """Of independent runs with few rows, of one data set."""
    at_a_time = nodes * places
    return (math.ceil(runs / at_a_time) * figures.run + figures.card) / faster


def seconds_of_training(figures: Figures, rows: int, processes: int, faster: float) -> float:
    """Of the trainings of one run with many rows; the search beside them takes minutes."""
    return TRAININGS * EPOCHS * rows / figures.rows / processes / faster


def gib_of_node(runs: int, nodes: int, places: int) -> float:
    """Where each run has the assistant in its process."""
    return min(places, math.ceil(runs / nodes)) * (RUN_GIB + ASSISTANT_GIB)


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
    given = vars(parser.parse_args())
    runs, rows = given.pop("runs"), given.pop("rows")
    plan = Plan(f"{given['nodes']} × {given['places']}", **given)
    sys.stdout.write("\n".join(table(measured(), runs, rows, [plan])) + "\n")


if __name__ == "__main__":
    main()
