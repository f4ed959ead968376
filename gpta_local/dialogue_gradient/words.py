"""Which words of an English text say what it is about. Knows words, nothing else."""

from __future__ import annotations

import re

_STOP_WORDS = """
a about above after all also always an and another any are as at be because been before being between both but
by can could did do does done each either english every few first for from given gives had has have having
here how if in input inputs into is it its itself just kind label labelled labels less like mainly make many
may mean means might more most mostly much must neither no none nor not of off often on one only or other
others our out over own part per people person rather row rows said same say says see should since single so
some somebody someone something such task text texts than that the their them then there these they thing
things this those through to too two type under up us use used using value very was we were what when where
whether which while who whom whose why will with within without word words would written writes wrote yet you
your class classes data set sets mark marked tagged three four five six seven eight collection collected
dataset classification classify
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def stem(word: str) -> str:
    """A rough stem, enough to match "reviews" with "review" and "rating" with "ratings"."""
    word = word.lower()
    for ending, keep in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("ly", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not (ending == "s" and word.endswith("ss")):
            word = word[: -len(ending)] + keep
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def content_words(text: str) -> list[str]:
    """The words of a text that say what it is about, lower-cased, in order of appearance."""
    words = re.findall(r"[A-Za-z][A-Za-z']*[A-Za-z]", text.replace("_", " "))
    return [word.lower() for word in words if word.lower() not in STOP_WORDS]


def content_stems(text: str) -> set[str]:
    return {stem(word) for word in content_words(text)}
