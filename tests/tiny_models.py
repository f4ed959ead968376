"""Makes small random models with real tokenizers, as folders with safetensors weights."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from samples import read_rows
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

VOCABULARY = 600
POSITIONS = 96
CHAT_POSITIONS = 2048
WIDTH = 32
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
"""Weights large enough that outputs of different inputs differ well."""
CHAT_SHAPE = SHAPE | {
    "head_dim": 32,  # the least that vLLM takes
    "max_position_embeddings": CHAT_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def tiny_bert(folder: Path) -> Path:
    """BERT with a WordPiece tokenizer."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(_word_pieces(specials), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    _save_tokenizer(tokenizer, folder, names, ["input_ids", "token_type_ids", "attention_mask"])
    torch.manual_seed(0)
    config = BertConfig(**SHAPE, max_position_embeddings=POSITIONS, pad_token_id=0)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def _word_pieces(specials: list[str]) -> dict[str, int]:
    """Every character of the texts, at the start of a word and within, and the most frequent words. (The trainer
    of the library gives ties to whichever comes first in a hash table, in each process another one.)"""
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(_texts()).lower()))
    characters = sorted(set("".join(words)))
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces = [*specials, *characters, *(f"##{c}" for c in characters), *frequent][:VOCABULARY]
    return {piece: number for number, piece in enumerate(pieces)}


def tiny_roberta(folder: Path) -> Path:
    """RoBERTa with a byte-level BPE tokenizer, which marks the space before a word."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _byte_level_bpe(specials)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), specials, strict=True))
    _save_tokenizer(
        tokenizer, folder, {**names, "cls_token": "<s>", "sep_token": "</s>"}, ["input_ids", "attention_mask"]
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        **SHAPE,
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def sentence_folder(encoder: Path, folder: Path) -> Path:
    """An encoder's folder as sentence-transformers saves it, with mean pooling."""
    shutil.copytree(encoder, folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir()
    contents = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def tiny_llama(folder: Path, **changes: Any) -> Path:
    """A causal language model whose tokenizer has no chat template."""
    specials = ["<s>", "</s>"]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    _save_tokenizer(_byte_level_bpe(specials), folder, names, ["input_ids"], CHAT_POSITIONS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CHAT_SHAPE | changes))
    model.generation_config.do_sample = True  # or `transformers serve` would always answer the same
    model.save_pretrained(folder)
    return folder


def tiny_qwen2(folder: Path) -> Path:
    """A model of the kind of Qwen2.5, whose tokenizer has no chat template."""
    specials = ["<s>", "</s>"]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    _save_tokenizer(_byte_level_bpe(specials), folder, names, ["input_ids"], CHAT_POSITIONS)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**CHAT_SHAPE | {"head_dim": WIDTH // 2, "num_key_value_heads": 2})).save_pretrained(
        folder
    )
    return folder


def _byte_level_bpe(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _save_tokenizer(
    tokenizer: Tokenizer, folder: Path, names: dict[str, str], inputs: list[str], positions: int = POSITIONS
) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=positions, model_input_names=inputs, **names
    ).save_pretrained(folder)


def _texts() -> list[str]:
    return [row["text"] for name in ("train", "validation") for row in read_rows(name)]
