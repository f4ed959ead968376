"""Texts → token ids with a prefix in front. Knows tokenizers, not models or labels.

Texts are tokenised once, and their ids kept in one array, of two bytes each for most vocabularies. The ids of a
prefix and the special tokens are put around them row by row, as rows are used. An exported model's tokenizer does so by
itself; that both give the same is looked at when it is written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing

from gpta_local.errors import ModelError

PREFIX_TOKEN = "[GPTA-PREFIX]"
"""Name of the prefix inside the post-processor; never a token of the vocabulary."""


CHUNK = 4096
"""Texts that are tokenised at once: what the library keeps of each is fifty times its ids."""

RowTokens = tuple[list[int], ...]
"""Token ids of the one or two texts of a row."""


class Tokens(Sequence[RowTokens]):
    """Token ids of n rows of one or two texts, all in one array: two bytes a token where the ids are that small.

    Args:
        columns: of each column of texts the ids, text after text (t,), and where each text begins (n + 1,).
    """

    def __init__(self, columns: Sequence[tuple[NDArray[Any], NDArray[np.int64]]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0][1]) - 1 if self._columns else 0

    @overload
    def __getitem__(self, index: int) -> RowTokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowTokens]: ...
    def __getitem__(self, index: int | slice) -> RowTokens | list[RowTokens]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = index % len(self)
        return tuple(ids[starts[row] : starts[row + 1]].tolist() for ids, starts in self._columns)

    @property
    def nbytes(self) -> int:
        return sum(ids.nbytes + starts.nbytes for ids, starts in self._columns)


@dataclass(frozen=True, slots=True)
class TokenisedTexts:
    """n rows of one or two texts, tokenised without special tokens, for use after a prefix
    (`following`) and without one (`alone`); the two are the same unless a word's tokens depend on
    the space before it (byte-level BPE). Both texts of a pair get that space, because the saved
    tokenizer cannot tell them apart."""

    alone: Sequence[RowTokens]
    following: Sequence[RowTokens]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """s token ids with their segment ids, ready for padding."""

    input_ids: list[int]
    token_type_ids: list[int]


class EncodedRows(Sequence[EncodedRow]):
    """Rows that are put together as they are asked for: only their texts' ids are held."""

    def __init__(self, tokenizer: PrefixTokenizer, texts: Sequence[RowTokens], prefix_ids: list[int]) -> None:
        self._tokenizer, self._texts, self._prefix_ids = tokenizer, texts, prefix_ids

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._tokenizer.put_together(self._texts[index], self._prefix_ids)


class PrefixTokenizer:
    """Wraps a fast tokenizer (`transformers.PreTrainedTokenizerFast`).

    Args:
        tokenizer: the backbone's own.
        max_length: tokens of an input, prefix and special tokens included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._single = self._special_tokens(self._backend.encode("a"), texts=1)
        self._pair = self._special_tokens(self._backend.encode("a", "b"), texts=2)
        self._spaced = self._needs_space()

    def tokenise(self, texts: Sequence[tuple[str, ...]]) -> TokenisedTexts:
        """Tokenise each row's one or two texts, once for all prefixes."""
        alone = self._tokens(self._backend, texts)
        return TokenisedTexts(alone, self._tokens(self._following(), texts) if self._spaced else alone)

    def encode(self, texts: TokenisedTexts, prefix: str) -> Sequence[EncodedRow]:
        """Put the prefix and special tokens in, truncated to `max_length` (the longest text of a
        row is cut first; the prefix never)."""
        return EncodedRows(self, texts.following if prefix else texts.alone, self.prefix_ids(prefix) if prefix else [])

    def put_together(self, texts: RowTokens, prefix_ids: list[int]) -> EncodedRow:
        """One row out of the ids of its texts."""
        around = self._pair if len(texts) == 2 else [self._single[0], self._single[-1]]
        room = self.max_length - len(prefix_ids) - sum(map(len, around))
        ids = [number for _, number, _ in around[0]] + prefix_ids
        segments = [segment for _, _, segment in around[0]] + [0] * len(prefix_ids)
        for text, length, segment, after in zip(
            texts, _cut([len(text) for text in texts], max(0, room)), (0, self._pair_segment), around[1:], strict=False
        ):
            ids += text[:length] + [number for _, number, _ in after]
            segments += [segment] * length + [of_token for _, _, of_token in after]
        return EncodedRow(ids, segments)

    def cut_and_unknown(self, texts: Sequence[tuple[str, ...]]) -> tuple[float, float]:
        """The share of rows that `max_length` cuts, without a prefix, and the share of their tokens that stand for what
        the tokenizer does not know."""
        rows = self._tokens(self._backend, texts)
        lengths = [sum(map(len, row)) for row in rows]
        special = sum(map(len, self._pair if len(rows[0]) == 2 else (self._single[0], self._single[-1])))
        unknown = sum(ids.count(self.tokenizer.unk_token_id) for row in rows for ids in row)
        cut = sum(length + special > self.max_length for length in lengths)
        return cut / len(rows), unknown / max(1, sum(lengths))

    def words_in_pieces(self, texts: Sequence[tuple[str, ...]]) -> float:
        """The share of the words of four letters or more that are no token of their own; 0.0 where there are too few to
        tell. Scripts without spaces are left out."""
        found = Counter(word for row in texts for text in row for word in WORD.findall(text))
        if found.total() < LEAST_WORDS:
            return 0.0
        encodings = self._following().encode_batch(list(found), add_special_tokens=False)
        pieces = sum(count for count, encoding in zip(found.values(), encodings, strict=True) if len(encoding.ids) > 1)
        return pieces / found.total()

    def prefix_ids(self, prefix: str) -> list[int]:
        """Token ids of the prefix alone."""
        ids: list[int] = self._backend.encode(prefix, add_special_tokens=False).ids
        return ids

    def room_for_prefix(self) -> int:
        """Tokens that a prefix may have so that at least half of the input is left for the text."""
        return self.max_length // 2 - len(self._pair[0]) - len(self._pair[1]) - len(self._pair[2])

    def save(self, folder: Path, prefix: str) -> None:
        """Save a stock tokenizer that puts the prefix in by itself.

        Reloaded as the generic `PreTrainedTokenizerFast`: transformers 5 overwrites the saved
        post-processor when it loads a model-specific class such as BertTokenizer.
        """
        self.tokenizer.save_pretrained(folder)
        backend = self._following() if prefix else self._backend
        if prefix:
            backend.post_processor = self._template(self.prefix_ids(prefix))
        backend.save(str(folder / "tokenizer.json"))
        config_file = folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_max_length"] = self.max_length
        config["model_input_names"] = list(self.tokenizer.model_input_names)
        for key in ("add_bos_token", "add_eos_token", "backend"):
            config.pop(key, None)
        config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _following(self) -> Tokenizer:
        """A copy of the tokenizer for texts that follow a prefix: with a space before them if needed."""
        backend = Tokenizer.from_str(self._backend.to_str())
        if self._spaced:
            space = normalizers.Prepend(" ")
            backend.normalizer = normalizers.Sequence([backend.normalizer, space]) if backend.normalizer else space
        return backend

    def _tokens(self, backend: Tokenizer, texts: Sequence[tuple[str, ...]]) -> Tokens:
        width = len(texts[0]) if texts else 0
        return Tokens([_ids(backend, (row[column] for row in texts), len(texts)) for column in range(width)])

    def _template(self, prefix_ids: list[int]) -> TemplateProcessing:
        def pieces(groups: list[list[tuple[str, int, int]]], slots: list[str]) -> list[str]:
            out: list[str] = []
            for group, slot in zip(groups, [*slots, ""], strict=True):
                out += [f"{token}:{segment}" for token, _, segment in group]
                out += slot.split()
            return out

        first, second = f"{PREFIX_TOKEN}:0 $A:0", f"$B:{self._pair_segment}"
        specials = {token: number for group in (*self._single, *self._pair) for token, number, _ in group}
        return TemplateProcessing(
            single=pieces([self._single[0], self._single[-1]], [first]),
            pair=pieces(self._pair, [first, second]),
            special_tokens=[
                *specials.items(),
                {"id": PREFIX_TOKEN, "ids": prefix_ids, "tokens": [self._backend.id_to_token(i) for i in prefix_ids]},
            ],
        )

    def _special_tokens(self, encoding: Encoding, texts: int) -> list[list[tuple[str, int, int]]]:
        """The special tokens before, between and after the texts, as (token, id, segment)."""
        groups: list[list[tuple[str, int, int]]] = [[]]
        inside = False
        for token, number, segment, special in zip(
            encoding.tokens, encoding.ids, encoding.type_ids, encoding.special_tokens_mask, strict=True
        ):
            if special:
                if inside:
                    groups.append([])
                groups[-1].append((token, number, segment))
            inside = not special
        if inside:
            groups.append([])
        self._pair_segment = max(encoding.type_ids, default=0)
        if len(groups) != texts + 1:
            raise ModelError("the tokenizer's special tokens are of no known form", where="downstream.backbone")
        return groups

    def _needs_space(self) -> bool:
        """Whether a text's tokens differ after another text (byte-level BPE marks the space)."""
        whole = self.prefix_ids("one two")
        if whole == self.prefix_ids("one") + self.prefix_ids("two"):
            return False
        if whole == self.prefix_ids("one") + self.prefix_ids(" two"):
            return True
        raise ModelError(
            "the tokenizer joins words across a space, so no prefix can be spliced in", where="downstream.backbone"
        )


def _ids(backend: Tokenizer, texts: Iterable[str], count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The ids of so many texts, one after the other, and where each begins."""
    starts, parts, texts = np.zeros(count + 1, np.int64), list[NDArray[Any]](), iter(texts)
    for begin in range(0, count, CHUNK):
        found = backend.encode_batch([*islice(texts, CHUNK)], add_special_tokens=False)
        part = np.fromiter(chain.from_iterable(encoding.ids for encoding in found), np.uint32)
        parts.append(part.astype(np.min_scalar_type(int(part.max(initial=0)))))
        starts[begin + 1 : begin + 1 + len(found)] = [len(encoding.ids) for encoding in found]
    return np.concatenate(parts), starts.cumsum()


def _cut(lengths: list[int], room: int) -> list[int]:
    """As many tokens of one or two texts as there is room for: the longer is cut first, then both to halves, as the
    library `tokenizers` does it ("longest first")."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    shorter = min(lengths)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


WORD = re.compile(r"[^\W\d_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4,}")
"""Four letters or more; none of Thai, Lao, Burmese, Khmer, kana, ideographs and Hangul, whose words are otherwise."""
LEAST_WORDS = 100
CUT_ROWS, UNKNOWN_TOKENS, WORDS_IN_PIECES = 0.02, 0.1, 0.6
"""Shares from which on a person is told. Of words in pieces English sets have 0.00 to 0.14 with an English backbone,
German, French or Russian texts 0.8 to 1.0."""


def unfit_texts(tokenizer: PrefixTokenizer, texts: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A sentence for the user if `max_length` cuts rows, or the backbone does not know their language or signs."""
    cut, unknown = tokenizer.cut_and_unknown(texts) if texts else (0.0, 0.0)
    if cut >= CUT_ROWS:
        yield (
            f"{cut:.0%} of the training rows are longer than {tokenizer.max_length} tokens and are cut: raise "
            "downstream.max_length if the backbone allows, or shorten the rows"
        )
    if unknown >= UNKNOWN_TOKENS:
        yield f"the backbone does not know {unknown:.0%} of the training rows' tokens: take one for their language"
    elif (pieces := tokenizer.words_in_pieces(texts)) >= WORDS_IN_PIECES:
        yield (
            f"the backbone cuts {pieces:.0%} of the training rows' words into pieces, so it hardly knows their "
            "language: take one for it"
        )
