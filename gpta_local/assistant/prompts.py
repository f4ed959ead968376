"""Card + history → messages; completion → prefix or label texts.

Knows the wording of requests and how replies are read. Does not know rows, models or files: it is
given a card and scored prefixes, and nothing here imports `data`.

A request begins with what all of its kind share: the system text and a worked example of another, invented task. Then
come the card and what is asked for; a server or a cache that keeps common beginnings reads them once.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from gpta_local.assistant.replies import ASIDE, NoAnswer, answer, json_answer
from gpta_local.schema import DatasetCard, Label, Message, Request, ScoredPrefix

SYSTEM = "You help to train a small text classifier. You read a description of the data, never the data."
ASK_PREFIX = (
    "Write one new short text to put before every input, so that the labels are easier to tell apart: at most eight "
    "words, no label's name, nothing else."
)
ASK_LABEL_TEXTS = (
    "Write a short phrase for each label: what a text with this label says or is about. "
    "One line for each label, as label: phrase"
)
TEXTS_OF_A_REPLY = 8
"""Example texts that are asked for in one request: they differ more than those of eight requests for one."""
LABELS_OF_A_REQUEST = 20
"""Most labels that a request shows: with their meanings and a phrase for each, so many fit into 2,048 tokens."""
TOKENS_OF_A_PHRASE, TOKENS_AROUND = 24, 32
"""That are enough, in any tokenizer, for a label with its phrase, and for what stands around all of them."""
VARIED = "varied (some short, some long, some informal, some indirect, some with specific details)"
LABELS = "Labels:"
TRIED = "Tried before, from the least to the most helpful:"
FIELDS = {"Data set": "card.name", "Description": "card.description"}
"""How a line of the card starts, and the key of the configuration that it comes from."""

EXAMPLE = DatasetCard(
    "garden-club-letters",
    "text-classification",
    "Short letters from readers to a garden club's magazine. The label is what the writer wants.",
    (
        Label("advice", "asks what to do about a plant"),
        Label("offer", "gives away or sells something"),
        Label("thanks", "praises a person or an event"),
    ),
)
"""The invented task of the worked examples."""
EXAMPLE_LABEL_TEXTS = {
    "advice": "my roses have black spots, what can I spray",
    "offer": "free seedlings and tools to collect",
    "thanks": "what a lovely open day, well done to all",
}
EXAMPLE_PREFIX = "What this reader of the magazine wants:"
EXAMPLE_TEXTS = (
    "We are taking out two old apple trees in March, still full of fruit every year, yours if you bring a spade.",
    "Seed potatoes, 3 kg, come and get them.",
    "hi all, anyone want my greenhouse?? moving to a flat so it has to go :)",
    "Our shed in Mill Lane holds a 1962 Allen scythe and forty clay pots that would look better with you.",
)


LONGEST_REPLY, LONGEST_LINE = 50_000, 1_000
"""Characters of a reply, thoughts aside, and of a line of it; what is longer is no prefix and no phrase, and would
take long to read."""

LIST_MARK = re.compile(r"^(?:[-*•]\s+|\(?\d{1,3}[.):]\)?\s+)+")


class UnusableReply(ValueError):
    """A completion that cannot be read as what was asked for; the message says why."""


def describe(card: DatasetCard) -> str:
    """The card as the assistant reads it. Each label has a line of its own, as in the reply that is
    asked for: a small model copies best what stands at the same place of a line."""
    labels = "\n".join(f"{label.name}: {label.meaning}" if label.meaning else label.name for label in card.labels)
    return f"Data set: {card.name}\nDescription: {card.description}\n{LABELS}\n{labels}"


def parts_of(card: DatasetCard, most: int = LABELS_OF_A_REQUEST) -> list[DatasetCard]:
    """The card with its labels spread evenly over as few cards as hold at most so many each."""
    number = -(-len(card.labels) // most)
    bounds = [len(card.labels) * part // number for part in range(number + 1)]
    return [replace(card, labels=card.labels[a:b]) for a, b in pairwise(bounds)]


def phrases_that_fit(max_new_tokens: int | None) -> int:
    """Labels of one request for label texts, where replies have so many tokens at most; None: as many as they need."""
    if max_new_tokens is None:
        return LABELS_OF_A_REQUEST
    return min(LABELS_OF_A_REQUEST, max(1, (max_new_tokens - TOKENS_AROUND) // TOKENS_OF_A_PHRASE))


def label_texts_request(card: DatasetCard) -> Request:
    """Ask for a phrase for each label."""
    example = f"{describe(EXAMPLE)}\n\n{ASK_LABEL_TEXTS}"
    reply = write_label_texts(EXAMPLE_LABEL_TEXTS)
    return Request("label-texts", _chat(f"{describe(card)}\n\n{ASK_LABEL_TEXTS}", example, reply), card.labels)


def example_texts_request(card: DatasetCard, label: Label) -> Request:
    """Ask for `TEXTS_OF_A_REPLY` texts that could be rows with this label."""
    offer = EXAMPLE.labels[1]
    asked = _ask_texts(EXAMPLE, offer, len(EXAMPLE_TEXTS))
    content = f"{describe(card)}\n\n{_ask_texts(card, label, TEXTS_OF_A_REPLY)}"
    example, reply = f"{describe(EXAMPLE)}\n\n{asked}", write_example_texts(EXAMPLE_TEXTS)
    return Request("example-texts", _chat(content, example, reply))


def _ask_texts(card: DatasetCard, label: Label, count: int) -> str:
    name = f'"{label.name}" ({label.meaning})' if label.meaning else f'"{label.name}"'
    return (
        f"Write {count} different texts of this data set. {card.description} The label of all of them must be {name} "
        f"and no other. Do not name the label. Style: {VARIED}. One text per line, numbered, nothing else."
    )


def prefix_request(card: DatasetCard, history: Sequence[ScoredPrefix]) -> Request:
    """Ask for one prefix, showing what was tried, worst to best. The gains are not shown: small models copy numbers. Of
    many labels some are shown, from the first to the last."""
    shown = card.labels[:: -(-len(card.labels) // LABELS_OF_A_REQUEST)]
    parts = [describe(replace(card, labels=shown))]
    if others := len(card.labels) - len(shown):
        parts[0] += f"\n({others} more)"
    if history:
        ranked = sorted(history, key=lambda scored: scored.gain)
        tried = "\n".join(f"- {scored.text or '(nothing)'}" for scored in ranked)
        parts.append(f"{TRIED}\n{tried}")
    parts.append(ASK_PREFIX)
    return Request("prefix", _chat("\n\n".join(parts), f"{describe(EXAMPLE)}\n\n{ASK_PREFIX}", EXAMPLE_PREFIX))


def named_lines(request: Request) -> list[tuple[str, str]]:
    """Every line of a request, with the name of the field it comes from. The name of a label comes before
    its line, alone: what is said of the line names it. The gains of the history are left out."""
    lines: list[tuple[str, str]] = []
    *fixed, own = request.messages
    lines += [("the request", line) for message in fixed for line in message.content.split("\n")]
    for message in (own,):
        section, number = "", 0
        for line in message.content.split("\n"):
            number += 1
            if line in (LABELS, TRIED, ""):
                section, number = line, 0
            elif section == LABELS:
                name = line.partition(":")[0]
                lines += [(f"card.labels, the name of label {number}", name), (f"card.labels.{name}", line)]
            elif section == TRIED:
                lines.append((f"the prefix shown as number {number} of the history", line.partition(" ")[2]))
            else:
                start, _, rest = line.partition(": ")
                lines.append((FIELDS[start], rest) if start in FIELDS else ("the request", line))
    return lines


def reply_room(request: Request) -> int:
    """Tokens that are enough for a plain reply, in any tokenizer."""
    phrases = TOKENS_AROUND + TOKENS_OF_A_PHRASE * len(request.labels)
    return {"prefix": 48, "label-texts": phrases, "example-texts": 30 * TEXTS_OF_A_REPLY}[request.kind]


def read_lines(text: str) -> list[str]:
    """The lines of a reply that hold a word, without list marks and quotes.

    Raises:
        UnusableReply: if there is none, or the reply is far too long.
    """
    lines = [_unquote(LIST_MARK.sub("", line.strip())) for line in _plain(text).splitlines()]
    lines = [line for line in lines if re.search(r"[^\W\d_]", line)]
    if not lines:
        raise UnusableReply("no word in the reply" if text.strip() else "empty reply")
    return lines


def read_prefixes(text: str) -> list[str]:
    """The prefixes in a completion: its lines without quotes, list marks or the word "prefix", but for a first one
    that announces the others.

    Raises:
        UnusableReply: if there is none, or the reply is far too long.
    """
    lines = read_lines(text)
    if len(lines) > 1 and re.match(r"(?i)(here|sure|certainly|okay|(new )?prefix|answer)\b.*:$", lines[0]):
        lines = lines[1:]
    return [_unquote(re.sub(r"(?i)^(?:new )?prefix\**\s*[:=]\**\s*(?=\S)", "", line)) for line in lines]


def read_label_texts(text: str, label_names: Sequence[str]) -> dict[str, str]:
    """The phrase for each label, in the order of `label_names`.

    Raises:
        UnusableReply: if a label has no line or no words, two labels have the same phrase, or the reply is
            far too long.
    """
    found: dict[str, str] = {}
    folded = Counter(map(_key, label_names))
    by_key = {_key(name): name for name in label_names if folded[_key(name)] == 1}  # "-1" and "1" fold alike
    by_key |= {name: name for name in label_names}
    for line in (line for line in _plain(text, keys=True).splitlines() if len(line) <= LONGEST_LINE):
        line = line.strip()
        name, phrase = _split_label(line, by_key)  # a label may be a number
        if name is None:
            name, phrase = _split_label(LIST_MARK.sub("", line), by_key)
        if name is not None and name not in found and re.search(r"\w", phrase):
            found[name] = _unquote(phrase)
    missing = [name for name in label_names if name not in found]
    if missing:
        raise UnusableReply(f"no phrase for the label {missing[0]!r}")
    if len({phrase.casefold() for phrase in found.values()}) < len(found):
        raise UnusableReply("two labels have the same phrase")
    return {name: found[name] for name in label_names}


def write_label_texts(texts: Mapping[str, str]) -> str:
    """The reply that `read_label_texts` reads as these texts."""
    return "\n".join(f"{name}: {phrase}" for name, phrase in texts.items())


def write_example_texts(texts: Iterable[str]) -> str:
    """The reply that holds these texts."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


def _chat(content: str, example: str, reply: str) -> tuple[Message, ...]:
    """The worked example as a turn of its own before the request."""
    return Message("system", SYSTEM), Message("user", example), Message("assistant", reply), Message("user", content)


def _split_label(line: str, by_key: dict[str, str]) -> tuple[str | None, str]:
    """Split "label: phrase" at the first colon whose left side is a label (labels may hold colons)."""
    for match in re.finditer(r":", line):
        left = line[: match.start()].strip()
        name = by_key.get(left) or by_key.get(_key(left))
        if name is not None:
            return name, line[match.end() :].strip().rstrip(",")
    return None, ""


def _key(name: str) -> str:
    return re.sub(r"[\s_\-*`\"']+", " ", name).strip().casefold()


def _plain(text: str, *, keys: bool = False) -> str:
    """The lines of the answer, without code fences and control characters; of JSON, its texts.

    Args:
        keys: in front of the texts of JSON stand their keys.
    """
    try:
        text = answer(text)
        if len(text) > LONGEST_REPLY:
            raise UnusableReply(f"{len(text)} characters")
        text = _lines_of_json(text, keys)
    except NoAnswer as exc:
        raise UnusableReply(str(exc)) from exc
    text = re.sub(r"(?m)^[^\S\n]*```\w*[^\S\n]*$", "", text)
    return "".join(c for c in text if c == "\n" or c == "\t" or unicodedata.category(c)[0] != "C").replace("\t", " ")


def _lines_of_json(text: str, keys: bool) -> str:
    """A line for each text of JSON; other text as it is. JSON that is cut off may have whole lines."""
    try:
        found = json_answer(text)
    except NoAnswer:
        if not keys:
            raise
        return text
    if found is None:
        return text
    if keys:
        return "\n".join(f"{key}: {said}" for key, said in found)
    answers = [(key, said) for key, said in found if not ASIDE.fullmatch(key)]
    prefixes = [said for key, said in answers if "prefix" in key.casefold()]
    return "\n".join(prefixes or [said for _, said in answers])


def _unquote(text: str) -> str:
    """Without marks and quotes around the whole; '"a" or "b"' keeps its own."""
    text = text.strip().strip("*`").strip()
    while len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("'", "'"), ("“", "”"), ("«", "»"), ("‘", "’")}:
        inner = sum(c in (text[0], text[-1]) for c in text[1:-1])
        if inner and inner % 2 == 0:
            break
        text = text[1:-1].strip().strip("*`").strip()
    return re.sub(r"\s+", " ", text)
