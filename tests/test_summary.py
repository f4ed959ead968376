"""Verdicts in words: the same figures never read as more than they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpta_local.metrics import Interval
from gpta_local.report import summary
from gpta_local.tasks.base import Evaluation


def evaluation(scores: list[float]) -> Evaluation:
    array = np.array(scores, dtype=np.float64)
    logits, targets = np.tile([0.0, 1.0], (len(array), 1)), array.astype(np.int64)  # 1 is always said
    figures = {"accuracy": float(array.mean()), "macro_f1": 0.5, "loss": 0.1}
    return Evaluation(array, 1 - array, logits, targets, figures)


GAIN = {"value": 0.05, "low": 0.01, "high": 0.09, "verdict": "gain"}


def result(prefix: str = "Topic:", **changes: Any) -> dict[str, Any]:
    base = {"prefix": prefix, "differences": {"no_prefix": GAIN, "plain": GAIN}, "arms": {"gpta": {}}}
    texts = {"usable": 9, "kept": 4, "used": False}
    return {**base, "templates": [], "example_texts": texts, "evaluated_on": "test", **changes}


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(0.02, 0.001, 0.04), "gain"),
        (Interval(0.02, -0.001, 0.04), "no clear difference"),
        (Interval(0.0, 0.0, 0.0), "no clear difference"),
        (Interval(-0.02, -0.04, -0.001), "loss"),
    ],
)
def test_verdict_needs_an_interval_without_zero(interval: Interval, word: str) -> None:
    assert summary.judge(interval) == word


def test_gain_is_told_with_its_interval() -> None:
    first = summary.verdict(result())[0]
    assert (
        'The prefix "Topic:" in front of the inputs: gains +5.0 points of accuracy' in first and "+1.0 to +9.0" in first
    )


def test_loss_is_told_as_a_loss() -> None:
    loss = {"value": -0.05, "low": -0.09, "high": -0.01, "verdict": "loss"}
    assert "loses -5.0 points" in summary.verdict(result(differences={"no_prefix": loss}))[0]


def test_no_prefix_is_told_as_no_gain() -> None:
    first, second = summary.verdict(result(prefix="", differences={"plain": GAIN}))
    assert first.startswith("No prefix and no example texts: none was clearly better") and second.startswith(
        "The whole"
    )


def test_plain_model_that_is_the_product_is_told_as_that() -> None:
    (line,) = summary.verdict(result(prefix="", differences={"no_prefix": GAIN}, product_is_plain=True))
    assert "nothing is clearly better than plain fine-tuning (random head): that is the model" in line
    assert "gains +5.0 points of accuracy against the training that starts from the label texts" in line


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "The best 3 prefixes before the label texts"),
        ("Topic:", 'The best 3 prefixes before the label texts and the prefix "Topic:" in front of the inputs'),
    ],
)
def test_what_all_parts_are_worth_together_is_told(prefix: str, words: str) -> None:
    texts = {"usable": 9, "kept": 4, "used": True}
    with_templates = result(prefix=prefix, templates=["a", "b", "c"])
    first = summary.verdict(with_templates)[0]
    assert (
        first.casefold().startswith(f"{words}: gains +5.0 points".casefold()) and "the same training without" in first
    )
    first = summary.verdict(with_templates | {"example_texts": texts})[0]
    assert first.startswith("4 example texts of 9 among the rows and ")


def test_parts_without_a_control_claim_no_gain() -> None:
    (first,) = summary.verdict(result(templates=["a"], differences={}))
    assert "gains" not in first and first.startswith("In the model: the best prefix before the label texts")


def test_what_the_assistant_adds_to_the_words_of_the_card_is_told() -> None:
    card = {"value": -0.03, "low": -0.05, "high": -0.01, "verdict": "loss"}
    lines = summary.verdict(result(differences={"no_prefix": GAIN, "card": card, "plain": GAIN}))
    assert lines[1].startswith("All that the assistant wrote loses -3.0 points") and "your label names" in lines[1]
    assert len(summary.verdict(result(differences={"no_prefix": GAIN, "card": GAIN, "plain": GAIN}))) == 2, "the same"


def test_validation_figures_are_marked_as_too_good() -> None:
    assert "too good" in summary.verdict(result(evaluated_on="validation"))[-1]


def test_cross_validated_figures_are_marked_as_that() -> None:
    last = summary.verdict(result(differences={"plain": GAIN}, evaluated_on=summary.CROSS_VALIDATED))[-1]
    assert last.startswith("Cross-validated, as there are no other rows") and "--split" in last


def test_nothing_measured_nothing_claimed() -> None:
    lines = summary.verdict(result(arms={}, differences={}, evaluated_on=""))
    assert "not measured" in lines[-1] and not any("gains" in line for line in lines)


def test_difference_is_paired_over_rows() -> None:
    ours, theirs = evaluation([1, 1, 1, 0] * 25), evaluation([1, 1, 0, 0] * 25)
    figures = summary.difference(ours, theirs)
    assert figures["value"] == pytest.approx(0.25)
    assert figures["verdict"] == "gain" and 0.15 < figures["low"] < 0.25 < figures["high"] < 0.35
