"""Curves of a run, as PNG and SVG. Knows matplotlib and what a history says; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpta_local.schema import DialogueGradientStep, ProposalFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, TRIAL, LOSS = "#1b6ca8", "#c4511a", "#555555"


def plot_dialogue_gradient(
    figures: Sequence[tuple[int, ProposalFigures]],
    askings: Sequence[ProposalFigures],
    steps: Sequence[DialogueGradientStep],
    folder: Path,
) -> None:
    """Write `dialogue_gradient.png` and `.svg`: hit rate and mean gain of each round's proposals, by
    adapter, what became of each asking's example texts, and the loss of every optimiser step.

    Args:
        figures: (round, figures), the adapter in use first where a round has two. The first round, in
            which no history is shown, is left out of the hit rates; alone it is not drawn.
        askings: of example texts, the first one first.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "gpta-local", "svg.fonttype": "none", "font.size": 9}):
        number = 1 + 2 * bool(figures[1:]) + bool(askings)
        figure = Figure(figsize=(0.5 + 3.5 * number, 3), layout="constrained")
        panels: Any = figure.subplots(1, number, squeeze=False)[0]
        if figures[1:]:
            _curve(panels[0], figures[1:], "hit rate", [f.hit_rate for _, f in figures[1:]])
            panels[0].set(title="Proposals that beat the best shown", ylim=(-0.02, max(0.1, panels[0].get_ylim()[1])))
            _curve(panels[1], figures, "mean gain, nats", [f.mean_gain or 0.0 for _, f in figures])
            panels[1].set(title="New proposals")
        if askings:
            _askings(panels[-2], askings)
        _losses(panels[-1], steps)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "dialogue_gradient.svg", metadata={"Date": None})
        figure.savefig(folder / "dialogue_gradient.png", dpi=150)


def _curve(panel: Axes, figures: Sequence[tuple[int, ProposalFigures]], what: str, values: Sequence[float]) -> None:
    """One value per round and adapter: a line for the adapter in use, a mark for one on trial."""
    first = {number: place for place, (number, _) in reversed(list(enumerate(figures)))}
    used = sorted(first.values())
    tried = [place for place in range(len(figures)) if place not in used]
    for places, style, colour, label in ((used, "o-", BEFORE, "in use"), (tried, "s", TRIAL, "on trial")):
        panel.plot([figures[p][0] for p in places], [values[p] for p in places], style, color=colour, label=label)
    for place, (number, of) in enumerate(figures):
        at = (number, values[place])
        above = 5 if place in used else -12
        panel.annotate(of.adapter or "base", at, (0, above), textcoords="offset points", ha="center", fontsize=7)
    panel.set(xlabel="round", ylabel=what)
    panel.margins(y=0.2)
    rounds = sorted(first)
    panel.set_xticks(rounds if len(rounds) <= 12 else rounds[:: len(rounds) // 12 + 1])
    panel.legend(frameon=False)


def _askings(panel: Axes, askings: Sequence[ProposalFigures]) -> None:
    """Of the lines of each asking the shares that are usable, and that have their label."""
    names = [of.adapter or "base" for of in askings]
    for counts, colour, label in (
        ([of.fresh for of in askings], LOSS, "usable"),
        ([of.hits for of in askings], BEFORE, "with their label"),
    ):
        shares = [count / max(1, of.asked) for count, of in zip(counts, askings, strict=True)]
        panel.plot(range(len(askings)), shares, "o-", color=colour, label=label)
    panel.set(xlabel="adapter", ylabel="share of lines asked for", title="Example texts", ylim=(-0.02, None))
    panel.set_xticks(range(len(askings)), names)
    panel.legend(frameon=False)


def _losses(panel: Axes, steps: Sequence[DialogueGradientStep]) -> None:
    start = 0
    for step in steps:
        panel.plot(range(start + 1, start + len(step.losses) + 1), step.losses, color=LOSS, linewidth=1)
        panel.axvline(start, color="#cccccc", linewidth=0.8, zorder=0)
        panel.annotate(
            step.adapter, (start, 1), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points"
        )
        start += len(step.losses)
    method = steps[0].method if steps else ""
    panel.set(xlabel="optimiser step", ylabel=f"loss ({method})", title="Fine-tuning of the assistant")
