"""Writes the model card (`README.md`) and the loss curve (`loss.svg`) from measured figures and the training log.

Knows the wording of the card. Does not know how figures are measured or how the model is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CURVES = (
    ("label-texts", "label texts", "#1b6ca8"),
    ("prefix", "prefixes", "#c4511a"),
    ("heldout label-texts", "label texts, held out", "#7fb2d9"),
    ("heldout prefix", "prefixes, held out", "#e6a27f"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Real output for a card that was never trained on."""

    description: str
    prefixes: tuple[str, ...]
    label_texts: str


def write_card(
    folder: Path, facts: dict[str, str], figures: Sequence[tuple[str, str]], samples: Sequence[Sample]
) -> None:
    """Replace the card and the loss curve in `folder`."""
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    (folder / "loss.svg").write_text(_svg(log), encoding="utf-8")
    last = log[-1]
    text = (
        TEMPLATE.replace("[[facts]]", "\n".join(f"| {name} | {value} |" for name, value in facts.items()))
        .replace("[[tokens]]", f"{last['tokens']:,}")
        .replace("[[steps]]", f"{last['step']:,}")
        .replace("[[minutes]]", f"{last['seconds'] / 60:.0f}")
        .replace("[[curve]]", _curve(log))
        .replace("[[figures]]", "\n".join(f"| {name} | {value} |" for name, value in figures))
        .replace("[[samples]]", "\n".join(map(_sample, samples)))
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _curve(log: Sequence[dict[str, Any]]) -> str:
    """About a dozen rows of the log; a held-out loss is the latest one that was measured by then."""
    chosen = {round(i * (len(log) - 1) / 11) for i in range(12)}
    latest: dict[str, float] = {}
    lines = []
    for number, row in enumerate(log):
        latest |= {name: row[name] for name, _, _ in CURVES if name in row}
        if number in chosen:
            losses = " | ".join(f"{latest[name]:.2f}" if name in latest else "" for name, _, _ in CURVES)
            lines.append(f"| {row['step']:,} | {row['tokens'] / 1e6:.2f} | {losses} |")
    return "\n".join(lines)


def _svg(log: Sequence[dict[str, Any]], width: int = 640, height: int = 280, margin: int = 36) -> str:
    most = max(row["tokens"] for row in log)
    top = max(row[name] for row in log for name, _, _ in CURVES if name in row)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for level in range(int(top) + 1):
        y = height - margin - level / top * (height - 2 * margin)
        parts.append(f'<path d="M{margin} {y:.1f}H{width - margin}" stroke="#ddd"/>')
        parts.append(f'<text x="{margin - 14}" y="{y + 4:.1f}">{level}</text>')
    for number, (name, title, colour) in enumerate(CURVES):
        points = " ".join(
            f"{margin + row['tokens'] / most * (width - 2 * margin):.1f},"
            f"{height - margin - row[name] / top * (height - 2 * margin):.1f}"
            for row in log
            if name in row
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{width - 190}" y="{margin + 15 * number}" fill="{colour}">{title}</text>')
    parts.append(
        f'<text x="{margin}" y="{height - 8}">loss in nats per token over {most / 1e6:.1f} million tokens</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _sample(sample: Sample) -> str:
    prefixes = "\n".join(f"- prefix: `{text}`" for text in sample.prefixes)
    labels = "\n".join(f"- label text: `{line}`" for line in sample.label_texts.splitlines())
    return f"> {sample.description}\n\n{prefixes}\n{labels}\n"


TEMPLATE = """# nano-assistant

The embedded default assistant of gpta-local: a very small language model that reads the description of a data
set and proposes label texts and prefixes. It runs on any CPU without network. It is no chat model: it answers
exactly the two requests of `gpta_local/assistant/prompts.py` and nothing else.

| property | value |
| --- | --- |
[[facts]]

It loads with stock `AutoModelForCausalLM` and `AutoTokenizer`, and any server for `LlamaForCausalLM` can serve it.

## Data

Everything was written for this project by an AI model, card by card, or made from that by `scenes.py` and
`generator.py`; no public data set was used. `corpus/cards_*.yaml` holds 285 cards of imagined data sets with
descriptions, label explanations, label texts and prefixes; `corpus/frames.yaml` holds sentence frames. The generator
varies them without end: other words for nouns (a list of 20,000 English words and made-up words), other label
sets and names, descriptions composed from frames with distracting sentences, and histories whose gains follow a hidden
preference that the right answer continues. `corpus/heldout.yaml` holds 30 cards for evaluation; their fields of
life are in no training card. Film reviews, question types, subjectivity, news topics, short social posts, clinic
messages, news paraphrases and image captions are kept out of training for evaluation.

## Training

[[tokens]] tokens in [[steps]] steps, [[minutes]] minutes on one core of a server CPU (bf16 autocast). Several
replies share one prompt: each sees the prompt and itself. Replies count fully, the prompt a fifth. The first two
layers start with weights that can copy from the prompt (`start.py`). Five stages, each with a learning rate of its
own (`STAGES` in `build.py`); the shipped weights went through bf16 files between them. The last norm is scaled so
that sampling at temperature 1 is that of the trained model at 0.95.

Loss in nats per token (held out: hand-written replies for unseen cards, one wording of many, so it stays high):

| step | million tokens | label texts | prefixes | label texts, held out | prefixes, held out |
| --- | --- | --- | --- | --- | --- |
[[curve]]

![loss curve](loss.svg)

To build it again, from the repository's root, with the package and its demo extra installed:

```
python models/nano-assistant/build.py
```

About 70 minutes with `--compile`, half more without. Options: `--stage`, `--start`, `--threads`, `--seed`,
`--output`, `--compile`. To measure it and write this card:
`python models/nano-assistant/measure.py --card`.

## Evaluation

On the 30 held-out cards. "On topic": the prefix names a content word of the card. "Nearest": of the reference
texts of all labels of the card, those of its own label are nearest to the generated phrase (cosine of
all-MiniLM-L6-v2); "label name alone" uses the name in place of the phrase. History: thirteen scored prefixes in
which those of one style gain and all others lose.

| figure | value |
| --- | --- |
[[figures]]

## Samples

Real output for unseen descriptions; all sampled at temperature 1.0. Nothing was chosen.

[[samples]]
## Limits

- English only. It knows few words beyond its corpus; what it does well is to reuse words of the description.
- Label texts are its weak side: on unseen cards its phrases are nearer to the right label than chance, but less
  often than the bare label names, and often mix up the labels' explanations. They join the card's names and
  meanings only where the head is clearly better with them on the training rows.
- It shows no measurable use of the gains in a history. It does not repeat what was tried.
- Some words come out garbled. Larger open-weight models write better texts; this one needs no download.
- It cannot refuse, reason or chat, and it may produce odd phrases: proposals are meant to be scored, not trusted.

## Licence

Apache-2.0, as the rest of the repository.
"""
