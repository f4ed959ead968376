"""The embedded assistant as it is shipped: it loads without a word, and answers what the program asks."""

from __future__ import annotations

import json
import struct
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "models" / "nano-assistant"
FORBIDDEN_IN_TRAINING = ("movie", "tweet", "twitter", "cinema", "newswire", "patient portal")


@pytest.fixture(scope="module")
def tools() -> Any:
    """The scripts beside the weights, imported from there and forgotten afterwards."""
    names = ("corpus", "card", "measure")
    sys.path.insert(0, str(FOLDER))
    try:
        modules: dict[str, ModuleType] = {name: __import__(name) for name in names}
        yield modules
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def assistant(tools: dict[str, Any]) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tools["measure"].Assistant.load(FOLDER)
    torch.set_num_threads(threads)


def test_weights_are_small_bf16_safetensors() -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size <= 25 * 1024 * 1024
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def test_loads_without_warnings(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = AutoModelForCausalLM.from_pretrained(FOLDER)
            tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    finally:
        logging.disable_propagation()
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    assert "warning" not in capfd.readouterr().err.casefold()
    assert 3_000_000 <= sum(p.numel() for p in model.parameters()) <= 15_000_000
    assert model.config.model_type == "llama" and model.config.head_dim == 64
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_tokens_read_back_as_the_same_text(assistant: Any) -> None:
    text = "Ünusual  text, 12 €\n\tand \u4f60\u597d 🙂 <tag>"
    assert assistant.tokenizer.decode(assistant.tokenizer(text)["input_ids"]) == text


def test_chat_template_marks_roles_and_end(assistant: Any) -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    template = assistant.tokenizer.apply_chat_template
    assert template(chat, tokenize=False) == "<|system|>a<|end|><|user|>b<|end|><|assistant|>c<|end|>"
    prompt = template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>a<|end|><|user|>b<|end|><|assistant|>"


def test_heldout_cards_do_not_overlap_the_corpus(tools: dict[str, Any]) -> None:
    corpus = tools["corpus"]
    heldout, training = corpus.heldout_cards(), corpus.training_cards()
    assert len(heldout) == 30 and sum(card.explained for card in heldout) == 15
    for field in ("name", "input", "domain"):
        assert not {getattr(card, field) for card in heldout} & {getattr(card, field) for card in training}
    seen = {description for card in training for description in card.descriptions}
    assert not seen & {description for card in heldout for description in card.descriptions}
    for card in training:
        words = " ".join([card.input, card.domain, *card.descriptions]).casefold()
        assert not [word for word in FORBIDDEN_IN_TRAINING if word in words], card.name


def test_proposals_follow_seed_and_description(assistant: Any, tools: dict[str, Any]) -> None:
    measure, cards = tools["measure"], tools["corpus"].heldout_cards()
    request = measure.prefix_request(measure.shown(cards[0]), ())
    other = measure.prefix_request(measure.shown(cards[1]), ())
    (first,), (again,) = (assistant.replies([request], 8, seed=3) for _ in range(2))
    (different_seed,) = assistant.replies([request], 8, seed=4)
    (different_card,) = assistant.replies([other], 8, seed=3)
    assert first == again
    assert len({tuple(sorted(texts)) for texts in (first, different_seed, different_card)}) == 3


def test_proposals_for_unseen_cards_are_on_topic_and_varied(assistant: Any, tools: dict[str, Any]) -> None:
    cards = tools["corpus"].heldout_cards()[::-1][:24]
    figures = tools["measure"].prefix_figures(assistant, cards, 6, seed=0)
    assert figures["parsable"] >= 0.95
    assert figures["on topic"] >= 0.6
    assert figures["distinct"] >= 0.8


def test_label_texts_for_unseen_cards(assistant: Any, tools: dict[str, Any]) -> None:
    figures = tools["measure"].label_figures(assistant, tools["corpus"].heldout_cards(), 2, seed=0)
    assert figures["parsable"] >= 0.45
    assert figures["nearest to its label"] >= figures["chance"] + 0.05


def test_shown_prefixes_are_not_repeated(assistant: Any, tools: dict[str, Any]) -> None:
    figures = tools["measure"].history_figures(assistant, tools["corpus"].heldout_cards()[:12], 2, seed=0)
    assert figures["repeats a shown prefix"] <= 0.25
