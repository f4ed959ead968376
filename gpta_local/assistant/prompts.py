"""Card + history → messages; completion → prefix or label texts.

Knows the wording of requests and how replies are read. Does not know rows, models or files: it is
given a card and scored prefixes, and nothing here imports `data`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from gpta_local.schema import DatasetCard, Message, Request, ScoredPrefix

SYSTEM = "You help to train a small text classifier. You read a description of the data, never the data."
ASK_PREFIX = (
    "Write one new prefix: a short text that is put before every input and makes the labels easier "
    "to tell apart. Answer with the prefix alone, on one line."
)
ASK_LABEL_TEXTS = (
    "Write a short phrase for each label: what an input with this label is or says. "
    "Answer with one line for each label, as label: phrase"
)
LABELS = "Labels:"
TRIED = "Tried prefixes with their gain, worst to best:"
FIELDS = {"Data set": "card.name", "Description": "card.description"}
"""How a line of the card starts, and the key of the configuration that it comes from."""


LONGEST_REPLY, LONGEST_LINE = 50_000, 1_000
"""Characters of a reply, thoughts aside, and of a line of it; what is longer is no prefix and no phrase, and would
take long to read."""


class UnusableReply(ValueError):
    """A completion that cannot be read as what was asked for; the message says why."""


def describe(card: DatasetCard) -> str:
    """The card as the assistant reads it. Each label has a line of its own, as in the reply that is
    asked for: a small model copies best what stands at the same place of a line."""
    labels = "\n".join(f"{label.name}: {label.meaning}" if label.meaning else label.name for label in card.labels)
    rows = f"{card.training_rows} training, {card.validation_rows} validation, {card.test_rows} test"
    return (
        f"Data set: {card.name}\nTask: {card.task}\nRows: {rows}\nDescription: {card.description}\n{LABELS}\n{labels}"
    )


def label_texts_request(card: DatasetCard) -> Request:
    """Ask for a phrase for each label."""
    return Request("label-texts", _chat(f"{describe(card)}\n\n{ASK_LABEL_TEXTS}"), card.labels)


def prefix_request(card: DatasetCard, history: Sequence[ScoredPrefix]) -> Request:
    """Ask for one prefix, showing what was tried, worst to best."""
    parts = [describe(card)]
    if history:
        ranked = sorted(history, key=lambda scored: scored.gain)
        tried = "\n".join(f"{scored.gain:+.3f} {scored.text or '(no prefix)'}" for scored in ranked)
        parts.append(f"{TRIED}\n{tried}")
    parts.append(ASK_PREFIX)
    return Request("prefix", _chat("\n\n".join(parts)))


def named_lines(request: Request) -> list[tuple[str, str]]:
    """Every line of a request, with the name of the field it comes from. The name of a label comes before
    its line, alone: what is said of the line names it. The gains of the history are left out."""
    lines: list[tuple[str, str]] = []
    for message in request.messages:
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


def reply_room(request: Request, card: DatasetCard) -> int:
    """Tokens that are enough for a plain reply, in any tokenizer."""
    return 48 if request.kind == "prefix" else 32 + 24 * len(card.labels)


def read_prefix(text: str) -> str:
    """The prefix in a completion: one line, without quotes, list marks or the word "prefix".

    Raises:
        UnusableReply: if nothing is left, the reply has several lines of its own, or is far too long.
    """
    lines = [line.strip() for line in _plain(text).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":") and re.match(r"(?i)(here|sure|prefix|new prefix|answer)\b", lines[0]):
        lines = lines[1:]
    if not lines:
        raise UnusableReply("empty reply")
    if len(lines) > 1:
        raise UnusableReply(f"{len(lines)} lines where one was asked for")
    if len(lines[0]) > LONGEST_LINE:
        raise UnusableReply(f"{len(lines[0])} characters")
    line = re.sub(r"^(?:[-*•]|\d{1,2}[.)])\s+", "", lines[0])
    line = _unquote(re.sub(r"(?i)^(?:new )?prefix\**\s*[:=]\**\s*(?=\S)", "", _unquote(line)))
    if not re.search(r"\w", line):
        raise UnusableReply("no word in the reply")
    return line


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
    for line in (line for line in _plain(text).splitlines() if len(line) <= LONGEST_LINE):
        line = re.sub(r"^(?:[-*•]|\d{1,2}[.)])\s+(?=\S)", "", line.strip())
        name, phrase = _split_label(line, by_key)
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


def _chat(content: str) -> tuple[Message, ...]:
    return Message("system", SYSTEM), Message("user", content)


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


def _plain(text: str) -> str:
    """Without reasoning blocks, code fences and control characters."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]  # a template may open it, a limit cut it
    if len(text) > LONGEST_REPLY:
        raise UnusableReply(f"{len(text)} characters")
    text = re.sub(r"(?m)^[^\S\n]*```\w*[^\S\n]*$", "", text)
    return "".join(c for c in text if c == "\n" or c == "\t" or unicodedata.category(c)[0] != "C").replace("\t", " ")


def _unquote(text: str) -> str:
    """Without marks and quotes around the whole; '"a" or "b"' keeps its own."""
    text = text.strip().strip("*`").strip()
    while len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("'", "'"), ("“", "”"), ("«", "»"), ("‘", "’")}:
        inner = sum(c in (text[0], text[-1]) for c in text[1:-1])
        if inner and inner % 2 == 0:
            break
        text = text[1:-1].strip().strip("*`").strip()
    return re.sub(r"\s+", " ", text)
