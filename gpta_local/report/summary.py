"""What a run found, in figures and in words. Knows evaluations, intervals and verdicts; trains
nothing. Its dictionary is `summary.json`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpta_local import __version__
from gpta_local.metrics import (
    Interval,
    by_class,
    calibration_error,
    paired_bootstrap,
    reliability,
    softmax,
    wilson_interval,
)
from gpta_local.schema import (
    DatasetCard,
    DialogueGradientStep,
    ExampleTexts,
    ProposalFigures,
    ScoredPrefix,
    Selection,
    Share,
    Templates,
)

if TYPE_CHECKING:
    from gpta_local.tasks.base import Evaluation

CROSS_VALIDATED = "cross-validated training"
"""In place of the name of the rows that a run is measured on."""


def arm(
    evaluation: Evaluation,
    fitted: Evaluation | None,
    evaluation_seconds: float,
    prefix: str,
    training: str,
    training_seconds: float,
) -> dict[str, Any]:
    """One trained model on one split: its figures, with Wilson's interval for the accuracy, and those on the
    training rows (`fitted`; None where there are none, or for a cross-validation, where all are of them).
    `training`: its name in `metrics.jsonl`."""
    n = len(evaluation.scores)
    interval = wilson_interval(round(evaluation.scores.sum()), n)
    return {
        **evaluation.summary,
        "interval": [interval.low, interval.high],
        "rows": n,
        "prefix": prefix,
        "training": training,
        "on_training_rows": fitted.summary if fitted else None,
        "training_seconds": training_seconds,
        "evaluation_seconds": evaluation_seconds,
    }


def of_product(
    evaluation: Evaluation,
    names: Sequence[str],
    temperature: float | None,
    fitted: Evaluation | None,
    fitted_on: str,
) -> dict[str, Any]:
    """The product on the rows that it is measured on: each class, what is taken for what, and how sure it is.

    Args:
        temperature: fitted on the rows of `fitted`; None without any.
        fitted_on: the name of these rows.
    """
    targets, predicted = evaluation.targets, evaluation.logits.argmax(axis=1)
    taken = Counter(zip(targets.tolist(), predicted.tolist(), strict=True))
    figures = by_class(predicted.tolist(), targets.tolist(), len(names))
    return {
        "classes": {name: asdict(of) for name, of in zip(names, figures, strict=True)},
        "confusion": {
            name: {other: taken[i, j] for j, other in enumerate(names) if taken[i, j]} for i, name in enumerate(names)
        },
        "calibration": {
            "temperature": temperature,
            "fitted_on": fitted_on if fitted else "",
            "rows": len(fitted.scores) if fitted else 0,
            "before": _sureness(evaluation, 1.0),
            "after": None if temperature is None else _sureness(evaluation, temperature),
        },
    }


def _sureness(evaluation: Evaluation, temperature: float) -> dict[str, Any]:
    bins = reliability(softmax(evaluation.logits, temperature), evaluation.targets)
    return {"error": calibration_error(bins), "bins": [asdict(of) for of in bins]}


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
    example_texts: ExampleTexts,
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
        "example_texts": {
            "usable": len(example_texts.texts),
            "kept": len(example_texts.kept),
            "used": example_texts.used,
            "gain": example_texts.gain,
            "standard_error": _finite(example_texts.standard_error),
        },
        "prefix": chosen.text,
        "selection": {
            "rows": selection.rows,
            "against": selection.names[0],
            "contestants": [_contestant(gain) for gain in selection.gains],
            "chosen": selection.chosen,
        },
    }


def askings(
    figures: Sequence[tuple[int, ProposalFigures]], steps: Sequence[tuple[int, DialogueGradientStep, str]]
) -> list[dict[str, Any]]:
    """What became of the example texts of each asking, where the assistant was taught between them."""
    verdicts = {step.adapter: verdict for _, step, verdict in steps}
    return [
        {
            "adapter": of.adapter,
            "asked": of.asked,
            "usable": of.fresh,
            "kept": of.hits,
            "verdict": verdicts.get(of.adapter, ""),
        }
        for _, of in figures
    ]


def _contestant(gain: ScoredPrefix) -> dict[str, Any]:
    return asdict(gain) | {"standard_error": _finite(gain.standard_error)}


def _finite(standard_error: float | None) -> float | None:
    """JSON has no infinity, which is the error of a gain on a single row."""
    return standard_error if standard_error is not None and math.isfinite(standard_error) else None


def arms_shown(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each trained model by its name for the user, the product first. A control that is the product
    itself is left out."""
    names = {
        "gpta": "this model",
        "no_prefix": "same label texts, nothing else",
        "card": "your label names and meanings alone",
        "plain": "plain fine-tuning",
    }
    if summary.get("product_is_plain"):
        names |= {"gpta": "plain fine-tuning", "no_prefix": "training from the label texts"}
    return {
        names[arm]: figures
        for arm, figures in summary["arms"].items()
        if arm == "gpta" or arm in summary["differences"]
    }


def confusions(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[int, str, str]]:
    """(rows, label, what it is taken for) of each confusion, the most frequent first."""
    found = [(n, name, other) for name, row in counts.items() for other, n in row.items() if other != name]
    return sorted(found, key=lambda one: -one[0])


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    ours = summary["arms"].get("gpta")
    if ours is None:
        return "What was gained is not measured: there are no test rows."
    low, high = ours["interval"]
    right = (
        f"Of {ours['rows']:,} {summary['evaluated_on']} rows the model labels {100 * ours['accuracy']:.1f} % right "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )
    if summary.get("product_is_plain"):
        why = "with so many rows no gain of anything else is expected"
        why = "since nothing else was clearly better" if "no_prefix" in summary["differences"] else why
        return f"{right}; it is the plain fine-tuning, {why}."
    if plain := summary["differences"].get("plain"):
        words = {"gain": "a gain over", "loss": "a loss against", "no clear difference": "no clear difference from"}
        value, low, high = (100 * plain[end] for end in ("value", "low", "high"))
        points = f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
        return f"{right}: {words[plain['verdict']]} plain fine-tuning, {points}."
    return f"{right}."


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences: what the assistant's texts are worth, then the whole."""
    against, parts = summary["differences"].get("no_prefix"), _parts(summary)
    lines = []
    if why := summary.get("ended_by"):
        lines.append(f"The search ended before its last round: {why}.")
    if why := summary.get("unusable"):
        lines.append(f"{'No' if nothing_usable(summary) else 'Few'} replies of the assistant could be used: {why}.")
    if shares := summary.get("shares"):
        lines.append(_compared_on_shares(shares, summary))
    elif summary.get("product_is_plain") and against is None:
        lines.append(
            "With thousands of rows no prefix is searched, and label texts are for single texts and models of "
            "sentence-transformers alone: the model is plain fine-tuning. The assistant was not asked."
        )
    elif summary.get("product_is_plain"):
        what = "On validation rows nothing is clearly better than plain fine-tuning (random head): that is the model."
        lines.append(f"{what} It {_against(against, 'the training that starts from the label texts')}")
    elif not parts:
        lines.append("No prefix and no example texts: none was clearly better than none. The model is shipped without.")
    else:
        told = " and ".join(parts)
        if against:
            lines.append(f"{told[0].upper()}{told[1:]}: {_against(against, 'the same training without')}")
        else:
            lines.append(f"In the model: {told}.")
    if summary.get("training_rows") == 0:
        lines.append("No labelled row has a part in this model: label some, as data.train they are worth more.")
    card = summary["differences"].get("card")
    if card and card != against and not summary.get("product_is_plain"):
        lines.append(f"All that the assistant wrote {_against(card, 'your label names and meanings alone')}")
    if "plain" in summary["differences"]:
        lines.append(f"The whole {_against(summary['differences']['plain'], 'plain fine-tuning')}")
    if not summary["arms"]:
        lines.append("There is no data.test and no data.validation: what was gained is not measured.")
    elif summary["evaluated_on"] == CROSS_VALIDATED:
        lines.append(
            "Cross-validated, as there are no other rows: each was labelled by a model trained without it, so on fewer "
            "rows; prefixes and texts were chosen on all. For a test: gpta-local init FILE --split"
        )
    elif summary["evaluated_on"] == "validation":
        lines.append("Measured on the validation rows that the choice was made on: too good. Give data.test.")
    return lines


def _compared_on_shares(shares: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """What was compared, on which rows, why that was enough, and what is not known for it."""
    of, last = " and ".join(f"{share['rows']:,}" for share in shares), shares[-1]
    found = f"{last['gain']:+.3f} ± {last['standard_error']:.3f} nats of loss on validation rows with {last['rows']:,}"
    begin = (
        "With thousands of rows little is to be gained, so shares of them were tried first: a start from your "
        f"label names and meanings and plain fine-tuning, on {of} of the {summary['training_rows']:,} training rows. "
        f"The start from them gained {found}"
    )
    if summary["product_is_plain"]:
        clear = Share(**last).clear
        why = "but by both shares not clearly anything with all rows" if clear else "not clearly more than nothing"
        return (
            f"{begin}, {why}: the model is plain fine-tuning on all rows. What more label texts or prefixes "
            "would have given there was not measured; the assistant was not asked."
        )
    return (
        f"{begin}, and by both shares it is more than nothing with all rows: the model starts from them. Plain "
        "fine-tuning was not trained on all rows, so it is not known what they gain there."
    )


def nothing_usable(summary: Mapping[str, Any]) -> bool:
    """Whether the assistant replied, and no reply could be used."""
    replies = summary["replies"]
    return bool(replies["read"]) and not replies["usable"]


def _parts(summary: Mapping[str, Any]) -> list[str]:
    """What the assistant wrote that the product was made with, label texts aside."""
    texts, templates, prefix = summary["example_texts"], len(summary["templates"]), summary["prefix"]
    parts = []
    if texts["used"]:
        parts.append(f"{texts['kept']} example texts of {texts['usable']} among the rows")
    if templates:
        best = f"the best {templates} prefixes" if templates > 1 else "the best prefix"
        parts.append(f"{best} before the label texts")
    if prefix:
        parts.append(f'the prefix "{prefix}" in front of the inputs')
    return parts


def _against(figures: Mapping[str, Any], other: str) -> str:
    words = {"gain": "gains", "loss": "loses", "no clear difference": "makes no clear difference:"}
    value, low, high = (100 * figures[end] for end in ("value", "low", "high"))
    return (
        f"{words[figures['verdict']]} {value:+.1f} points of accuracy against {other} "
        f"(95 % interval {low:+.1f} to {high:+.1f})."
    )
