"""The pictures of a run's report. Knows matplotlib and figures; measures nothing.

Colours are of medium brightness, text and axes black on white: the page turns these into its own ink and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpta_local.report.pictures import COLOURS, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches: as wide as the screen of a phone, so that letters keep their size there."""
DARKEST = 0.75
"""Opacity of a full cell: black ink and white ink can both be read on it."""
SMOOTHED = 15
"""Parts of a curve of losses: each point is the mean of so many steps as make a part."""

Bins = Sequence[Mapping[str, float]]


def accuracies(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """A dot with its interval for each arm, ours on top."""
    figure, panel = _figure(0.75 + 0.32 * len(arms))
    for place, (name, arm) in enumerate(arms.items()):
        colour = COLOURS[place == 0]
        low, high = arm["interval"]
        panel.plot([100 * low, 100 * high], [-place, -place], "-", color=colour, linewidth=2)
        panel.plot(100 * arm["accuracy"], -place, "o", color=colour)
        panel.annotate(name, (100 * low, -place), (0, 5), textcoords="offset points", fontsize=8)
    panel.set(xlabel="accuracy, %, with its 95 % interval", ylim=(0.4 - len(arms), 0.7), yticks=[])
    panel.spines["left"].set_visible(False)
    return as_svg(figure, "accuracies")


def confusion(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Rows of a label by what they are taken for: darker cells hold a larger share of the label's rows."""
    from matplotlib.colors import to_rgba

    names = list(counts)
    size = max(3.0, 1.9 + 0.36 * len(names))
    figure, panel = _figure(size * 0.92, size)
    ink = to_rgba(COLOURS[1])[:3]
    cells: list[list[tuple[float, ...]]] = []
    for row, name in enumerate(names):
        rows = max(1, sum(counts[name].values()))
        cells.append([(*ink, DARKEST * counts[name].get(other, 0) / rows) for other in names])
        for column, other in enumerate(names):
            if count := counts[name].get(other):
                panel.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", fontsize=8)
    panel.pcolormesh(cells, edgecolors="#8888", linewidth=0.4)
    short = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
    places = [place + 0.5 for place in range(len(names))]
    panel.set_xticks(places, short, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(places, short)
    panel.set(xlabel="taken for", ylabel="is", aspect="equal")
    panel.invert_yaxis()
    return as_svg(figure, "confusion")


def reliability(before: Bins, after: Bins | None) -> str:
    """How often the model is right by how sure it is; on the diagonal it is as often right as it says."""
    figure, panel = _figure(3.3)
    panel.plot([0, 100], [0, 100], ":", color="#888888", linewidth=1)
    for bins, colour, style, name in (
        (before, COLOURS[0], "s--", "as trained"),
        (after or (), COLOURS[1], "o-", "calibrated"),
    ):
        if bins:
            points = [(100 * of["probability"], 100 * of["accuracy"]) for of in bins]
            panel.plot(*zip(*points, strict=True), style, color=colour, markersize=4, label=name)
    panel.set(xlabel="probability of the label that it says, %", ylabel="right, %", xlim=(0, 102), ylim=(-2, 102))
    panel.legend(frameon=False, loc="upper left")
    return as_svg(figure, "reliability")


def losses(
    courses: Mapping[str, Sequence[float]],
    watched: Mapping[str, Sequence[tuple[int, float]]],
    measured: Mapping[str, float],
) -> str:
    """Panel by panel, ours in colour: the loss of the training steps; and that on rows that the model is measured on,
    after some steps on a part of them, and in the end on all.

    Args:
        watched: by the names of the courses, steps and the loss after each.
        measured: by the names of the courses, those of which it is known.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.9 + 1.35 * len(courses)), layout="constrained")
    panels = figure.subplots(len(courses), sharex=True, sharey=True, squeeze=False)[:, 0]
    for place, (panel, (name, course)) in enumerate(zip(panels, courses.items(), strict=True)):
        colour, size = COLOURS[place == 0], max(1, len(course) // SMOOTHED)
        parts = [course[start : start + size] for start in range(0, len(course), size)]
        ends = [min(len(course), (number + 1) * size) for number in range(len(parts))]
        panel.plot(ends, [sum(part) / len(part) for part in parts], "-", color=colour, label="training rows")
        if name in watched:
            panel.plot(*zip(*watched[name], strict=True), "o--", color=colour, markersize=3, label="watched rows")
        if name in measured:
            panel.plot(
                len(course), measured[name], "D", color=colour, markersize=5, clip_on=False, label="all, in the end"
            )
        panel.set_title(name, fontsize=8, loc="left")
        panel.set_ylabel("loss, nats")
    panels[-1].set(xlabel="step", ylim=(0, None), xlim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    return as_svg(figure, "losses")


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
