"""The pictures of a report, as SVG. Knows matplotlib and numbers; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gpta_local.metrics import Interval
from gpta_local.report.pictures import COLOURS, as_svg

PANELS = 3
"""Panels of curves in a row."""


@dataclass(frozen=True, slots=True)
class Course:
    """The course of one arm on one set, in epochs and points, means over samples."""

    epochs: NDArray[np.float64]
    train: NDArray[np.float64]
    test: NDArray[np.float64]


def difference_plot(intervals: Mapping[str, Interval], title: str, name: str) -> str:
    """A dot with its interval for each arm; right of 0 is better."""
    figure = Figure(figsize=(7, 0.6 + 0.3 * len(intervals)), layout="constrained")
    panel = figure.subplots()
    arms = list(reversed(list(intervals)))  # the first on top
    for place, interval in enumerate(intervals[arm] for arm in arms):
        panel.plot(interval.value, place, "o", color=COLOURS[1])
        if np.isfinite(interval.low):
            panel.plot([interval.low, interval.high], [place, place], "-", color=COLOURS[1])
    panel.axvline(0, color="#bbbbbb", linewidth=1, zorder=0)
    panel.set_yticks(range(len(arms)), arms)
    panel.set(xlabel=title, ylim=(-0.6, len(intervals) - 0.4))
    return as_svg(figure, name)


def curve_plot(courses: Mapping[str, Mapping[str, Course]], name: str) -> str:
    """A panel for each set: training rows dashed, test rows solid, one colour for each arm."""
    rows, columns = -(-len(courses) // PANELS), min(PANELS, len(courses))
    figure = Figure(figsize=(3.2 * columns, 2.5 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for panel, (title, arms) in zip(panels.flat, courses.items(), strict=False):
        for colour, (arm, course) in zip(COLOURS, arms.items(), strict=False):
            panel.plot(course.epochs, course.train, "--", color=colour, linewidth=1.2, label=f"{arm}, training")
            panel.plot(course.epochs, course.test, "-", color=colour, linewidth=1.8, label=f"{arm}, test")
        panel.set(title=title, xlabel="epoch", ylabel="accuracy, points", ylim=(0, 103))
    for panel in panels.flat[len(courses) :]:
        panel.set_visible(False)
    panels.flat[0].legend(frameon=False, fontsize=7, loc="lower right")
    return as_svg(figure, name)


def matrix_plot(matrix: NDArray[np.float64], names: Sequence[str], name: str) -> str:
    """Differences in points, used on (rows) by found on (columns); blue is better, red worse."""
    size = 1.6 + 0.62 * len(names)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    panel = figure.subplots()
    most = max(1.0, float(np.nanmax(np.abs(matrix), initial=0.0)))
    panel.imshow(matrix, cmap="RdBu", vmin=-1.5 * most, vmax=1.5 * most)
    for row, column in np.argwhere(np.isfinite(matrix)):
        panel.text(column, row, f"{matrix[row, column]:+.1f}", ha="center", va="center", fontsize=8)
    panel.set_xticks(range(len(names)), list(names), rotation=40, ha="right")
    panel.set_yticks(range(len(names)), list(names))
    panel.set(xlabel="prefix found on", ylabel="used on")
    return as_svg(figure, name)
