"""Whether words of a private row, or personal data, are in a text that is about to leave.

Knows texts, as it is given them, and requests. Does not know files, columns, splits or models, and
keeps no row: of the rows it holds salted hashes of n words in a row, in memory only. What it says of
a hit is the field and the kind, never the words.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpta_local.assistant.prompts import named_lines, parts_of, prefix_request
from gpta_local.config import Config, EndpointConfig, LeakScanConfig
from gpta_local.errors import PrivacyError
from gpta_local.privacy import personal_data
from gpta_local.schema import DatasetCard, Request

SHORTEST = 4
"""Words of a row from which on it is looked for, as a whole where it has fewer than n words."""
COMMON = 10
"""Words in a row that are in so many different rows are a phrase of the language or of a form."""
CHUNK = 1 << 18
"""Words that are hashed at once."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")

Hashes = NDArray[np.uint64]


def words(text: str) -> list[str]:
    """The words of a text without what a rewriting changes: case, accents, punctuation, white space,
    characters that are not seen, and forms that Unicode holds compatible (full width, ligatures).
    Each character of a script without spaces is a word."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    text = unicodedata.normalize("NFKD", text)
    unseen = {ord(c): None for c in set(text) if unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf")}
    return _WORD.findall(text.translate(unseen).upper().casefold())  # first upper: the dotless i is an i


def scan_of(config: Config, texts: Iterable[str], card: DatasetCard) -> LeakScan:
    """The scan that a configuration asks for, once nothing is found in what every request holds.

    Raises:
        PrivacyError: private words or personal data are in the card or in `assistant.extra_body`.
    """
    scan = LeakScan(config.privacy.leak_scan, texts, card.label_names)
    for part in parts_of(card):
        scan.check(prefix_request(part, []))
    if isinstance(config.assistant, EndpointConfig):
        for name, value in config.assistant.extra_body.items():
            scan.check_text(f"assistant.extra_body.{name}", json.dumps(value, ensure_ascii=False))
    return scan


def weaker_than_default(config: LeakScanConfig) -> str:
    """In words for the user, how the scan is weaker than it is unless told otherwise; "" if it is not."""
    usual = LeakScanConfig()
    if not config.enabled:
        return "privacy.leak_scan is off: nothing looks for private rows in what goes to the assistant"
    if config.words > usual.words or config.threshold > usual.threshold:
        found = f"{config.words} words in a row, {config.threshold} times"
        return f"privacy.leak_scan is set weaker than usual: private words go to the assistant below {found}"
    return ""


class LeakScan:
    """Looks for the words of `texts`, and for personal data.

    Memory: 8 bytes for each distinct run of n words, twice that and 0.1 KB for each text while the index is made.

    Args:
        texts: of all private rows; read once, in a stream.
        label_names: what is in one of them may be said, also where a row says it.
    """

    def __init__(self, config: LeakScanConfig, texts: Iterable[str], label_names: Sequence[str]) -> None:
        self._config = config
        self._factor = np.uint64(secrets.randbits(64) | 1)
        self.texts = 0
        """Different texts of at least `SHORTEST` words."""
        said = [self._runs(_hashes(words(name)), size) for name in label_names for size in self._sizes]
        index = self._index(texts) if config.enabled else np.empty(0, np.uint64)
        may_be_said = np.unique(np.concatenate([*said, np.empty(0, np.uint64)]))
        self._known = np.delete(index, _places(index, may_be_said))

    def __str__(self) -> str:
        if not self._config.enabled:
            return "off"
        return f"{len(self._known):,} runs of {self._config.words} words, of {self.texts:,} texts, are looked for"

    def find(self, text: str) -> str:
        """What of a private row or a person is in a text, in words for the user; "" for nothing."""
        if not self._config.enabled:
            return ""
        hashes = _hashes(words(text))
        for size in self._sizes:
            runs = np.unique(self._runs(hashes, size))
            found = len(_places(self._known, runs))
            if found and size < self._config.words:
                return f"a private row of {size} words"
            if found >= self._config.threshold:
                return f"{size} words in a row of a private row"
        return personal_data.find(text)

    def find_personal(self, text: str) -> str:
        """As `find`, without looking for words of rows: of a reply that is not sent again. Its author has seen no row,
        and what test rows happen to say must not decide what a model is made of."""
        return personal_data.find(text) if self._config.enabled else ""

    def check(self, request: Request) -> None:
        """
        Raises:
            PrivacyError: a line of the request must not leave; names its field and the kind of hit.
        """
        for field, line in named_lines(request):
            self.check_text(field, line)

    def check_dialogue(self, request: Request, reply: str) -> None:
        """As `check`, for the request and the reply that the assistant would be taught."""
        self.check(request)
        for line in reply.splitlines():
            self.check_text("a reply that the assistant would be taught", line)

    def check_text(self, field: str, text: str) -> None:
        """
        Raises:
            PrivacyError: the text must not leave.
        """
        if kind := self.find(text):
            raise PrivacyError(
                f"{kind} would go to the assistant",
                where=field,
                fix="Say it in other words; if this is no private text, see privacy.leak_scan",
            )

    @property
    def _sizes(self) -> range:
        return range(SHORTEST, self._config.words + 1)

    def _index(self, texts: Iterable[str]) -> Hashes:
        """Sorted hashes of the runs of n words of each text, and of the short texts as a whole, that
        are in fewer than `COMMON` different texts."""
        parts = list(self._runs_of_texts(texts))
        runs = np.empty(sum(map(len, parts)), np.uint64)
        end = len(runs)
        while parts:  # each is given back as soon as it is copied
            part = parts.pop()
            runs[end - len(part) : end] = part
            end -= len(part)
        runs.sort()
        first = np.ones(len(runs), bool)
        first[1:] = runs[1:] != runs[:-1]
        common = np.zeros(len(runs), bool)  # first of COMMON or more that are the same
        common[: 1 - COMMON] = runs[COMMON - 1 :] == runs[: 1 - COMMON]
        return runs[first & ~common]

    def _runs_of_texts(self, texts: Iterable[str]) -> Iterator[Hashes]:
        """Chunk by chunk, the runs of each different text, none twice of one text."""
        seen: set[int] = set()
        hashes, lengths = array("q"), array("q")
        for text in texts:
            of_text = words(text)
            whole = hash(tuple(of_text))
            if len(of_text) < SHORTEST or whole in seen:
                continue
            seen.add(whole)
            hashes.extend(map(hash, of_text))
            lengths.append(len(of_text))
            if len(hashes) >= CHUNK:
                yield self._runs_of_chunk(np.array(hashes).view(np.uint64), np.array(lengths))
                hashes, lengths = array("q"), array("q")
        yield self._runs_of_chunk(np.array(hashes).view(np.uint64), np.array(lengths))
        self.texts = len(seen)

    def _runs_of_chunk(self, hashes: Hashes, lengths: NDArray[np.int64]) -> Hashes:
        """Args: hashes (w,) of the words of texts, one after the other; lengths (t,) of the texts."""
        starts = np.cumsum(lengths) - lengths  # (t,)
        text = np.repeat(np.arange(len(lengths)), lengths)  # (w,)
        size = self._config.words
        runs = self._runs(hashes, size)
        inside = text[: len(runs)] == text[size - 1 :] if len(runs) else np.empty(0, bool)
        runs, text = runs[inside], text[: len(runs)][inside]
        order = np.lexsort((runs, text))
        runs, text = runs[order], text[order]
        again = np.zeros(len(runs), bool)
        again[1:] = (runs[1:] == runs[:-1]) & (text[1:] == text[:-1])
        short = [self._runs(hashes, size)[starts[lengths == size]] for size in self._sizes[:-1]]
        return np.concatenate([runs[~again], *short])

    def _runs(self, hashes: Hashes, size: int) -> Hashes:
        """A hash for each `size` words in a row: (w,) → (w - size + 1,)."""
        number = max(0, len(hashes) - size + 1)
        runs = np.zeros(number, np.uint64)
        for offset in range(size):
            runs *= self._factor
            runs += hashes[offset : offset + number]
        return runs


def _places(index: Hashes, runs: Hashes) -> NDArray[np.intp]:
    """Where in the sorted index those of the runs stand that are in it."""
    if not len(index):
        return np.empty(0, np.intp)
    places = np.searchsorted(index, runs)
    found: NDArray[np.intp] = places[index[np.minimum(places, len(index) - 1)] == runs]
    return found


def _hashes(of_text: Sequence[str]) -> Hashes:
    """Python salts the hash of a string anew in each process."""
    return np.fromiter(map(hash, of_text), np.int64, len(of_text)).view(np.uint64)
