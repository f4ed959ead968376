"""What a run found, in figures and in words. Knows evaluations, intervals and verdicts; trains
nothing. Its dictionary is `summary.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpta_local import __version__
from gpta_local.metrics import Interval, paired_bootstrap, wilson_interval
from gpta_local.schema import DatasetCard, ScoredPrefix, Selection, Templates

if TYPE_CHECKING:
    from gpta_local.tasks.base import Evaluation


def arm(
    evaluation: Evaluation, fitted: Evaluation, evaluation_seconds: float, prefix: str, training_seconds: float
) -> dict[str, Any]:
    """One trained model on one split: its figures, with Wilson's interval for the accuracy, and those on the
    training rows (`fitted`)."""
    n = len(evaluation.scores)
    interval = wilson_interval(round(evaluation.scores.sum()), n)
    return {
        **evaluation.summary,
        "interval": [interval.low, interval.high],
        "rows": n,
        "prefix": prefix,
        "on_training_rows": fitted.summary,
        "training_seconds": training_seconds,
        "evaluation_seconds": evaluation_seconds,
    }


def difference(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """Accuracy of ours less theirs on the same rows, with a paired bootstrap interval."""
    interval = paired_bootstrap(ours.scores, theirs.scores)
    return {**asdict(interval), "verdict": judge(interval)}


def judge(interval: Interval) -> str:
    """ "gain" or "loss" where the interval leaves zero out, else "no clear difference"."""
    if interval.low > 0:
        return "gain"
    return "loss" if interval.high < 0 else "no clear difference"


def describe_run(
    card: DatasetCard,
    regime: str,
    label_texts: Sequence[Mapping[str, str]],
    templates: Templates,
    selection: Selection,
) -> dict[str, Any]:
    """The part of the summary that holds before anything is evaluated."""
    chosen = selection.gains[selection.chosen]
    return {
        "gpta_local": __version__,
        "card": asdict(card),
        "regime": regime,
        "label_texts": [dict(texts) for texts in label_texts],
        "templates": list(templates.texts),
        "templates_on_validation": None
        if templates.gain is None
        else {"gain": templates.gain, "standard_error": _finite(templates.standard_error)},
        "prefix": chosen.text,
        "selection": {
            "rows": selection.rows,
            "against": selection.names[0],
            "contestants": [_contestant(gain) for gain in selection.gains],
        },
    }


def _contestant(gain: ScoredPrefix) -> dict[str, Any]:
    return asdict(gain) | {"standard_error": _finite(gain.standard_error)}


def _finite(standard_error: float | None) -> float | None:
    """JSON has no infinity, which is the error of a gain on a single row."""
    return standard_error if standard_error is not None and math.isfinite(standard_error) else None


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences, first the prefix, then what the whole is worth."""
    prefix, templates = summary["prefix"], len(summary.get("templates", []))
    against = summary["differences"].get("no_prefix")
    lines = []
    if why := summary.get("ended_by"):
        lines.append(f"The search ended before its last round: {why}.")
    if not prefix and not summary.get("product_is_plain"):
        lines.append(
            "No prefix in front of the inputs: none was clearly better than none. The model is shipped without one."
        )
    elif prefix and not against:
        lines.append(f'The prefix is "{prefix}".')
    elif prefix and not templates:
        lines.append(f'The prefix "{prefix}" {_against(against, "the same training without it")}')
    if templates and against:
        what = (
            f'The prefix "{prefix}", with the best {templates} as templates of the label texts,'
            if prefix
            else f"A head that starts from the label texts behind the best {templates} prefixes too"
        )
        lines.append(f"{what} {_against(against, 'the same training without prefixes')}")
    if summary.get("product_is_plain"):
        what = "On validation rows nothing is clearly better than plain fine-tuning (random head): that is the model."
        lines.append(f"{what} It {_against(against, 'the training that starts from the label texts')}")
    if "plain" in summary["differences"]:
        lines.append(
            f"The whole {_against(summary['differences']['plain'], 'plain fine-tuning (random head, no prefix)')}"
        )
    if not summary["arms"]:
        lines.append("There is no data.test and no data.validation: what was gained is not measured.")
    elif summary["evaluated_on"] == "validation":
        lines.append("Measured on the validation rows that the choice was made on: too good. Give data.test.")
    return lines


def _against(figures: Mapping[str, Any], other: str) -> str:
    words = {"gain": "gains", "loss": "loses", "no clear difference": "makes no clear difference:"}
    value, low, high = (100 * figures[end] for end in ("value", "low", "high"))
    return (
        f"{words[figures['verdict']]} {value:+.1f} points of accuracy against {other} "
        f"(95 % interval {low:+.1f} to {high:+.1f})."
    )
