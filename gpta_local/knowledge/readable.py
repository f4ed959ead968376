"""What makes a text of the assistant unfit to be used, whatever it was asked for. Knows words and the card, no rows."""

from __future__ import annotations

import re
import unicodedata

from gpta_local.schema import DatasetCard

LEAST_LETTERS = 0.7
"""Share of letters and spaces of a text that is not garbled."""
LONGEST_WORD = 40
"""Characters."""
LEAST_DIFFERENT = 0.55
"""Different words as a share of all, of a text of eight words or more that does not repeat itself."""
OF_THE_TASK = re.compile(
    r"(?i)\b(label(l?ed)?\b|data ?set|example texts?|classif|as an ai\b|tried before"
    r"|here (are|is) |style:|subject:|sure[,!] )"
)
"""Words that speak of the request instead of answering it."""
OF_A_TEMPLATE = re.compile(r"<\|?\w+\|?>|\[/?\w+\]|\{\w*\}")
"""Marks of a chat template, tags, and places to fill in."""
IS_NO_SCRIPT = {"MODIFIER", "FEMININE", "MASCULINE", "MICRO"}
"""First words of the Unicode names of letters that stand in texts of any script."""
JAPANESE = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC")
"""Those that stand beside the CJK ideographs, and count as one script with them."""
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and ideographs, which have no spaces between words."""
WORD = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")


def words_of(card: DatasetCard) -> str:
    """All that a person wrote in the card."""
    labels = " ".join(f"{label.name} {label.meaning}" for label in card.labels)
    return f"{card.name} {card.description} {labels}"


def scripts(text: str) -> set[str]:
    """LATIN, CYRILLIC, CJK …: of the letters of a text."""
    found = {unicodedata.name(c, "UNKNOWN").partition(" ")[0] for c in set(text) if c.isalpha()} - IS_NO_SCRIPT
    return {"CJK" if script in JAPANESE else script for script in found}


def words(text: str) -> list[str]:
    """The words of a text, folded; where no spaces stand between them, pairs of characters."""
    letters = (c if unicodedata.category(c)[0] in "LMN" or c in "'’" else " " for c in text.casefold())
    return WORD.findall("".join(letters))


def fault(text: str, allowed: set[str]) -> str:
    """Why a text cannot be used; "" if it can.

    Args:
        allowed: scripts that it may use.
    """
    own = words(text)
    letters = sum(unicodedata.category(c)[0] in "LMZ" for c in text)
    if scripts(text) - allowed:
        return "another script"
    if letters < LEAST_LETTERS * len(text) or any(len(word) > LONGEST_WORD for word in own):
        return "garbled"
    if len(own) >= 8 and len(set(own)) < LEAST_DIFFERENT * len(own):
        return "repeats itself"
    if any(a == b == c for a, b, c in zip(own, own[1:], own[2:], strict=False)):
        return "repeats itself"
    if OF_THE_TASK.search(text) or OF_A_TEMPLATE.search(text):
        return "speaks of the task"
    return ""
