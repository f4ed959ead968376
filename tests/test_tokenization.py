"""Splicing a prefix into token ids: the same ids as the stock tokenizer on the joined text."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import PAIRS, read_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from gpta_local.downstream import tokenization
from gpta_local.downstream.model import load_tokenizer
from gpta_local.downstream.tokenization import PrefixTokenizer, unfit_texts
from gpta_local.errors import ModelError

PREFIX = "Department for this message:"
TEXTS = [row["text"] for row in read_rows("validation")[:30]] + [
    "a",
    "Ünïcödé – 12,5 % (brackets)!",
    "  spaces before and after  ",
    "two\nlines\tand a tab",
    "漢字とかな",
    "emoji 😀 in it",
    "[SEP] </s> <mask> [MASK]",
    "x" * 300,
]
SINGLES = [(text,) for text in TEXTS]
TWOS = [(first, second) for first, second, _ in PAIRS] + [("a b " * 40, "c"), ("a", "b c " * 40)]


def unigram(folder: Path) -> Path:
    """A tokenizer as of XLM-R: Unigram, the space is part of the word's token."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    texts = [row["text"] for row in read_rows("train")]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=96, **names).save_pretrained(folder)
    return folder


def plain(tokenizer: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


@pytest.fixture(scope="module", params=["wordpiece", "byte-level", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "unigram":
        return unigram(tmp_path_factory.mktemp("unigram"))
    path: Path = request.getfixturevalue({"wordpiece": "bert", "byte-level": "roberta"}[request.param])
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PrefixTokenizer:
    return PrefixTokenizer(AutoTokenizer.from_pretrained(folder), max_length=96)


def spliced(tokenizer: PrefixTokenizer, rows: list[tuple[str, ...]], prefix: str) -> list[list[int]]:
    return [row.input_ids for row in tokenizer.encode(tokenizer.tokenise(rows), prefix)]


def stock(tokenizer: PrefixTokenizer, rows: list[tuple[str, ...]], max_length: int) -> list[list[int]]:
    return [tokenizer.tokenizer(*row, truncation=True, max_length=max_length)["input_ids"] for row in rows]


def space_before(tokenizer: PrefixTokenizer, text: str) -> str:
    """The second text of a pair gets the space that the exported tokenizer puts before both."""
    return f" {text}" if tokenizer.tokenizer.backend_tokenizer.pre_tokenizer.__class__.__name__ == "ByteLevel" else text


class TestSplicing:
    def test_text_gets_the_ids_of_the_joined_text(self, tokenizer: PrefixTokenizer) -> None:
        texts = [text for text in TEXTS if not text.startswith(" ") and "</s>" not in text]
        joined = [(f"{PREFIX} {text}",) for text in texts]
        assert spliced(tokenizer, [(text,) for text in texts], PREFIX) == stock(tokenizer, joined, 96)

    def test_pair_gets_the_ids_of_the_joined_first_text(self, tokenizer: PrefixTokenizer) -> None:
        rows = [row for row in TWOS if len(" ".join(row)) < 150]
        joined = [(f"{PREFIX} {first}", space_before(tokenizer, second)) for first, second in rows]
        assert spliced(tokenizer, rows, PREFIX) == stock(tokenizer, joined, 96)

    def test_empty_prefix_gives_the_ids_of_the_stock_tokenizer(self, tokenizer: PrefixTokenizer) -> None:
        assert spliced(tokenizer, SINGLES, "") == stock(tokenizer, SINGLES, 96)
        assert spliced(tokenizer, TWOS, "") == stock(tokenizer, TWOS, 96)

    @pytest.mark.parametrize("prefix", ["Q", "Ünïcödé, 12 %", "no colon", "?!", "漢字:", "[MASK] </s>"])
    def test_prefix_of_any_form_gets_the_ids_of_the_joined_text(self, tokenizer: PrefixTokenizer, prefix: str) -> None:
        joined = [(f"{prefix} {text}",) for text in TEXTS[:8]]
        assert spliced(tokenizer, SINGLES[:8], prefix) == stock(tokenizer, joined, 96)

    def test_texts_tokenised_once_serve_every_prefix(self, tokenizer: PrefixTokenizer) -> None:
        before = tokenizer.tokenizer.backend_tokenizer.to_str()
        texts = tokenizer.tokenise(TWOS)
        first = list(tokenizer.encode(texts, PREFIX))
        for prefix in ("Another:", ""):
            assert list(tokenizer.encode(texts, prefix)) != first
        assert list(tokenizer.encode(texts, PREFIX)) == first
        assert tokenizer.tokenizer.backend_tokenizer.to_str() == before, "the wrapped tokenizer stays as it was"

    def test_segments_of_a_pair_are_those_of_the_stock_tokenizer(self, bert: Path) -> None:
        tokenizer = PrefixTokenizer(AutoTokenizer.from_pretrained(bert), max_length=96)
        row = tokenizer.encode(tokenizer.tokenise([TWOS[0]]), PREFIX)[0]
        assert row.token_type_ids == tokenizer.tokenizer(f"{PREFIX} {TWOS[0][0]}", TWOS[0][1])["token_type_ids"]

    def test_more_rows_than_are_tokenised_at_once_get_the_ids_of_each_alone(self, tokenizer: PrefixTokenizer) -> None:
        rows = [(f"{number} {second}",) for number, (_, second) in enumerate(TWOS * 2) for _ in range(3)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenization, "CHUNK", 7)
            assert spliced(tokenizer, rows, PREFIX) == [spliced(tokenizer, [row], PREFIX)[0] for row in rows]

    def test_tokens_take_two_bytes_each(self, tokenizer: PrefixTokenizer) -> None:
        tokens = tokenizer.tokenise(SINGLES).alone
        assert isinstance(tokens, tokenization.Tokens)
        assert tokens.nbytes <= 2 * sum(len(ids) for (ids,) in tokens) + 8 * (len(SINGLES) + 1)


class TestTruncation:
    def test_pairs_of_all_lengths_are_cut_as_the_stock_tokenizer_cuts_them(self, folder: Path) -> None:
        tokenizer = PrefixTokenizer(AutoTokenizer.from_pretrained(folder), max_length=12)
        rows = [("a " * first, "b " * second) for first in range(1, 14) for second in range(1, 14)]
        assert spliced(tokenizer, rows, "") == stock(tokenizer, rows, 12)

    def test_rows_fill_the_length_and_keep_the_whole_prefix(self, tokenizer: PrefixTokenizer) -> None:
        prefix_ids = tokenizer.prefix_ids(PREFIX)
        pairs = spliced(tokenizer, [("a " * 200, "b"), ("a", "b " * 200)], PREFIX)
        for row in [*spliced(tokenizer, [("word " * 200,)], PREFIX), *pairs]:
            assert len(row) == 96
            assert row[1 : 1 + len(prefix_ids)] == prefix_ids

    def test_text_is_cut_at_its_end(self, tokenizer: PrefixTokenizer) -> None:
        long, short = "one two three " * 60, "one two three"
        row, beginning = spliced(tokenizer, [(long,), (short,)], PREFIX)
        assert row[: len(beginning) - 1] == beginning[:-1]
        assert row[-1] == beginning[-1]

    def test_longest_text_of_a_pair_is_cut_first(self, tokenizer: PrefixTokenizer) -> None:
        whole = spliced(tokenizer, [("a", "stays whole")], PREFIX)[0]
        cut = spliced(tokenizer, [("a " * 200, "stays whole")], PREFIX)[0]
        assert cut[-4:] == whole[-4:]

    def test_prefix_has_room_for_as_much_as_half_of_the_input(self, tokenizer: PrefixTokenizer) -> None:
        room = tokenizer.room_for_prefix()
        assert 96 // 2 - 5 <= room <= 96 // 2
        prefix = "a" + " a" * (room - 1)
        assert len(tokenizer.prefix_ids(prefix)) <= room + 1
        assert len(spliced(tokenizer, [("b " * 200, "c " * 200)], prefix)[0]) == 96


class TestSaving:
    @pytest.mark.parametrize("prefix", ["", PREFIX, "Ünïcödé, 12 %"])
    @pytest.mark.parametrize("rows", [SINGLES, TWOS], ids=["single", "pair"])
    def test_saved_tokenizer_gives_the_spliced_ids(
        self, tokenizer: PrefixTokenizer, tmp_path: Path, prefix: str, rows: list[tuple[str, ...]]
    ) -> None:
        tokenizer.save(tmp_path, prefix)
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        assert [reloaded(*row, truncation=True)["input_ids"] for row in rows] == spliced(tokenizer, rows, prefix)

    def test_saved_tokenizer_gives_the_same_inputs(self, tokenizer: PrefixTokenizer, tmp_path: Path) -> None:
        tokenizer.save(tmp_path, PREFIX)
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        assert set(reloaded("a")) == set(tokenizer.tokenizer("a"))
        assert reloaded.model_max_length == 96
        assert reloaded.pad_token_id == tokenizer.tokenizer.pad_token_id
        assert len(reloaded) == len(tokenizer.tokenizer), "the prefix is no token of the vocabulary"

    def test_saving_twice_puts_the_prefix_in_once(self, tokenizer: PrefixTokenizer, tmp_path: Path) -> None:
        tokenizer.save(tmp_path, PREFIX)
        tokenizer.save(tmp_path, PREFIX)
        reloaded = AutoTokenizer.from_pretrained(tmp_path)
        assert reloaded("text")["input_ids"] == spliced(tokenizer, [("text",)], PREFIX)[0]


class TestLengthLimit:
    def test_positions_of_roberta_begin_after_its_padding(self, roberta: Path) -> None:
        config = AutoConfig.from_pretrained(roberta)
        assert config.max_position_embeddings == 98
        assert load_tokenizer(roberta, config, None).max_length == 96

    def test_smallest_of_all_limits_holds(self, bert: Path) -> None:
        config = AutoConfig.from_pretrained(bert)
        assert load_tokenizer(bert, config, 64).max_length == 64
        assert load_tokenizer(bert, config, 512).max_length == 96


class TestUnsupported:
    def test_tokenizer_that_joins_words_is_refused(self) -> None:
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"], show_progress=False)
        tokenizer.train_from_iterator(["one two"] * 20 + ["abc"], trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        with pytest.raises(ModelError, match="joins words across a space"):
            PrefixTokenizer(plain(tokenizer, pad_token="<s>"), 64)

    def test_tokenizer_without_special_tokens_is_refused(self) -> None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(["one two"], trainer)
        with pytest.raises(ModelError, match="special tokens are of no known form"):
            PrefixTokenizer(plain(tokenizer), 64)

    def test_slow_or_unpadded_tokenizer_is_refused(self, tmp_path: Path, bert: Path) -> None:
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        plain(tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="with a padding token"):
            load_tokenizer(tmp_path, AutoConfig.from_pretrained(bert), None)


def test_share_of_rows_that_are_cut_and_of_unknown_tokens_is_told(bert: Path) -> None:
    tokenizer = PrefixTokenizer(AutoTokenizer.from_pretrained(bert), 16)
    short, long, foreign = ("good soup",), ("good soup " * 20,), ("\u6f22\u5b57 \u4ed6",)
    assert list(unfit_texts(tokenizer, [short] * 4)) == []
    assert "25% of the training rows are longer than 16 tokens" in next(unfit_texts(tokenizer, [short] * 3 + [long]))
    assert "does not know 100% of the training rows' tokens" in next(unfit_texts(tokenizer, [foreign]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("My parcel has not arrived yet, and the number that you sent me yesterday does not work.", False),
        ("Meine Bestellung ist noch nicht angekommen, und die Nummer, die Sie geschickt haben, ist falsch.", True),
        ("Мой заказ ещё не пришёл, а номер посылки, который вы мне прислали, не работает.", True),
    ],
)
def test_language_that_the_backbone_hardly_knows_is_told(backbone: Path, text: str, told: bool) -> None:
    tokenizer = PrefixTokenizer(AutoTokenizer.from_pretrained(backbone), 128)
    warnings = list(unfit_texts(tokenizer, [(text,)] * 30))
    assert ["hardly knows their language" in warning for warning in warnings] == [True] * told


def test_few_words_say_nothing_of_the_language(backbone: Path) -> None:
    tokenizer = PrefixTokenizer(AutoTokenizer.from_pretrained(backbone), 128)
    assert list(unfit_texts(tokenizer, [("Meine Bestellung ist noch nicht angekommen",)])) == []
