"""The README.md of a product: a model card as the Hugging Face Hub reads it.

Knows the figures of a run and the words of its card; no row, and of the assistant's words none but the prefix that the
product carries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpta_local.report.page import as_table, plain
from gpta_local.report.summary import CROSS_VALIDATED, arms_shown, confusions, headline

TASK = "text-classification"
"""As the Hub calls both tasks."""


def model_card(summary: Mapping[str, Any], library: str, backbone: str) -> str:
    """
    Args:
        summary: what `summary.json` will hold.
        library: that loads the product, `sentence-transformers` or `transformers`.
        backbone: the name of the model that the product was trained from.
    """
    blocks = [f"---\n{_header(summary, library)}\n---", *_blocks(summary, library, backbone)]
    return "\n\n".join(blocks) + "\n"


def _header(summary: Mapping[str, Any], library: str) -> str:
    """Without a licence and a base model: what is called so on the Hub, only who hands the product on can say."""
    from huggingface_hub import EvalResult, ModelCardData

    name, ours = summary["card"]["name"], summary["arms"].get("gpta")
    split = "train" if summary["evaluated_on"] == CROSS_VALIDATED else summary["evaluated_on"]
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type="private",
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_name=words if split != "train" else f"{words}, cross-validated",
            metric_value=round(ours[key], 4),
        )
        for key, metric, words in (("accuracy", "accuracy", "accuracy"), ("macro_f1", "f1", "macro-F1"))
        if ours
    ]
    tags = ["gpta-local", TASK]
    about = {"model_name": name, "eval_results": results} if results else {}
    data: Any = ModelCardData(library_name=library, pipeline_tag=TASK, tags=tags, **about)
    return str(data.to_yaml()).strip()


def _blocks(summary: Mapping[str, Any], library: str, backbone: str) -> Iterator[str]:
    card, rows = summary["card"], summary["training_rows"]
    pair = card["task"] == "text-pair-classification"
    what = "two texts" if pair else "a text"
    yield f"# {plain(card['name'])}"
    yield (
        f"Gives {what} one of {len(card['labels'])} labels. Trained from {plain(backbone)} on {rows:,} labelled rows "
        f"with gpta-local {summary['gpta_local']}. {plain(headline(summary))}"
    )
    yield "## Intended use"
    yield plain(f"Labelling of {'pairs of texts' if pair else 'texts'} of this kind: {card['description']}")
    yield (
        "It is not meant for other kinds of texts, for languages that its rows are not in, or to decide on people "
        "without a person who looks. A text that fits no label gets one all the same."
    )
    yield as_table(
        "The labels.", ("label", "meaning"), [(of["name"], of["meaning"] or "–") for of in card["labels"]], words=(1,)
    )
    yield "## Data"
    yield (
        "The rows are private, and none is in this folder. What may be said of them is the description above, which "
        "its owner wrote, and their numbers."
    )
    yield as_table(
        "Rows, and their words.",
        ("rows", "number", "words, median", "words, most"),
        [
            (name, f"{of['rows']:,}", f"{of['words']['median']:g}", f"{of['words']['longest']:,}")
            for name, of in summary["data"]["splits"].items()
        ],
    )
    yield "## Figures"
    yield from _figures(summary)
    yield "## Limits"
    yield "\n".join(f"- {limit}" for limit in _limits(summary))
    yield "## How to load it"
    yield f"```python\n{_loading(summary, library, pair)}\n```"
    if temperature := _temperature(summary):
        yield (
            f"Divide the logits by {temperature:.4g} before the softmax (`temperature` in gpta.json) to get "
            "calibrated probabilities; `gpta-local predict` does so."
        )
    yield "## Licence"
    yield (
        "Not chosen yet: whoever hands this model on says it here and, under `license`, in the header. The licence "
        f"of {plain(backbone)}, from which it was trained, holds too."
    )


def _figures(summary: Mapping[str, Any]) -> Iterator[str]:
    arms, measured = arms_shown(summary), summary["product"]
    if not arms:
        yield "None: there were no rows to measure it on."
        return
    names = ["this model", *list(arms)[1:]]
    yield as_table(
        f"On {summary['evaluated_on']} rows, with 95 % intervals of the accuracy over the rows.",
        ("model", "rows", "accuracy, %", "interval", "macro-F1, %"),
        [
            (
                name,
                f"{arm['rows']:,}",
                f"{100 * arm['accuracy']:.1f}",
                f"{100 * arm['interval'][0]:.1f} to {100 * arm['interval'][1]:.1f}",
                f"{100 * arm['macro_f1']:.1f}",
            )
            for name, arm in zip(names, arms.values(), strict=True)
        ],
    )
    yield as_table(
        "Of each label, in %.",
        ("label", "rows", "precision", "recall", "F1"),
        [
            (name, f"{of['rows']:,}", *(f"{100 * of[key]:.1f}" for key in ("precision", "recall", "f1")))
            for name, of in measured["classes"].items()
        ],
    )


def _limits(summary: Mapping[str, Any]) -> Iterator[str]:
    if not summary["training_rows"]:
        yield "No labelled row has a part in it."
    if summary["evaluated_on"] in ("validation", CROSS_VALIDATED):
        yield "It was chosen on the rows that it is measured on: the figures are too good."
    yield "The intervals are over rows. With other training rows of the same number the model would differ by more."
    if measured := summary["product"]:
        for rows, name, other in confusions(measured["confusion"])[:1]:
            yield plain(f"Most often it takes {name} for {other}: {rows} rows.")
        error = measured["calibration"]["after"] or measured["calibration"]["before"]
        how = "calibrated" if measured["calibration"]["after"] else "not calibrated"
        yield f"Its probabilities are {how}; their expected calibration error is {100 * error['error']:.1f} points."
    yield f"It reads {summary['data']['tokens']['most']} tokens of an input; the rest is cut."
    if prefix := summary["prefix"]:
        yield plain(f'Its tokenizer puts "{prefix}" in front of each input by itself.')


def _loading(summary: Mapping[str, Any], library: str, pair: bool) -> str:
    folder = 'folder = "."  # where this file lies'
    if library == "transformers":
        inputs = '{"text": "A text.", "text_pair": "Another."}' if pair else '"A text."'
        load = 'classify = pipeline("text-classification", folder, truncation=True)'
        return f"from transformers import pipeline\n\n{folder}\n{load}\nprint(classify({inputs}))"
    labels = json.dumps([label["name"] for label in summary["card"]["labels"]], ensure_ascii=False)
    inputs = '[("A text.", "Another.")]' if pair else '["A text."]'
    return (
        f"from sentence_transformers import SentenceTransformer\n\n{folder}\nlabels = {labels}\nlogits = "
        f"SentenceTransformer(folder).encode({inputs})\nprint([labels[n] for n in logits.argmax(axis=1)])"
    )


def _temperature(summary: Mapping[str, Any]) -> float | None:
    measured = summary["product"]
    found: float | None = measured and measured["calibration"]["temperature"]
    return found
