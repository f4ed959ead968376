"""The curves of a run."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from gpta_local.dialogue_gradient.plots import plot_dialogue_gradient
from gpta_local.schema import DialogueGradientStep, ProposalFigures

STEPS = [DialogueGradientStep(f"{n:03d}", "sft", 12, (2.0, 1.5, 1.0 / n), 1.0) for n in (1, 2)]
FIGURES = [
    (1, ProposalFigures("", 16, 12, 7, 0.01)),
    (2, ProposalFigures("", 8, 6, 1, 0.00)),
    (2, ProposalFigures("001", 8, 5, 2, 0.03)),
    (3, ProposalFigures("001", 8, 4, 0, 0.02)),
    (3, ProposalFigures("002", 8, 0, 0, None)),
]
ASKINGS = [ProposalFigures("", 16, 12, 7, None), ProposalFigures("003", 16, 10, 9, None)]


@pytest.mark.parametrize(("figures", "askings"), [(FIGURES, []), ([], []), ([], ASKINGS), (FIGURES, ASKINGS)])
def test_curves_are_drawn_as_png_and_svg(
    tmp_path: Path, figures: list[tuple[int, ProposalFigures]], askings: list[ProposalFigures]
) -> None:
    plot_dialogue_gradient(figures, askings, STEPS, tmp_path)
    assert (tmp_path / "dialogue_gradient.png").read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(tmp_path / "dialogue_gradient.svg").getroot().itertext())
    assert "loss (sft)" in text
    assert ("hit rate" in text) == bool(figures)
    assert ("share of lines asked for" in text) == bool(askings)


def test_same_run_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot_dialogue_gradient(FIGURES, ASKINGS, STEPS, tmp_path / name)
    first, second = ((tmp_path / name / "dialogue_gradient.svg").read_bytes() for name in ("a", "b"))
    assert first == second
