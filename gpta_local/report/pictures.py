"""Figures of matplotlib → SVG elements for a page. Knows no results."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#777777", "#2b7bba")
"""Of what is compared with, and of ours."""


@dataclass(frozen=True, slots=True)
class Picture:
    """`name`: of its file, where it has one. `description`: what it shows, for those who do not see it."""

    caption: str
    name: str
    svg: str
    description: str = ""


def as_svg(figure: Figure, name: str) -> str:
    """The picture as an element of a page; `name` keeps its inner names apart from those of others."""
    from matplotlib import rc_context

    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = re.sub(r'<g id="[^"]*"', "<g", out.getvalue())  # the same in all pictures, and nothing refers to them
    return text[text.index("<svg") :]
