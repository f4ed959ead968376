"""Continuations of many prompts at once, against those of transformers; and what a local assistant makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import tiny_chat_llama
from samples import CARD, scored

from gpta_local.assistant.decoding import NAME, continuations, fast_attention, grouped_attention
from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import example_texts_request, label_texts_request, prefix_request
from gpta_local.schema import Ask, Message, Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=20)
SHARED = list(range(40, 70))
PROMPTS = {
    "one": [[5, 6, 7]],
    "of different lengths": [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17]],
    "with a shared beginning": [[*SHARED, 5, 6, 7], [*SHARED, 9], [*SHARED, 11, 12, 13, 14]],
    "one the beginning of the others": [SHARED, [*SHARED, 9], [*SHARED, 9, 10, 11]],
    "all alike": [SHARED, SHARED],
}


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> LocalAssistant:
    """A small model whose queries share keys and values in pairs, in float32."""
    folder = tiny_chat_llama(
        tmp_path_factory.mktemp("models") / "grouped", num_attention_heads=4, num_key_value_heads=2
    )
    assistant = LocalAssistant(str(folder), "cpu")
    model, _ = assistant.base()
    model.float()
    return assistant


@pytest.fixture(scope="module")
def model(assistant: LocalAssistant) -> Any:
    return assistant.base()[0]


def drawn(model: Any, prompts: list[list[int]], repeats: int = 1, **changes: Any) -> list[list[int]]:
    settings = {"ends": {1}, "pad": 1, "max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0} | changes
    return continuations(model, prompts, repeats, **settings)


def generated(model: Any, prompt: list[int], tokens: int = 12) -> list[int]:
    """The greedy continuation that transformers gives."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=1, pad_token_id=1
    )
    found: list[int] = output[0, len(prompt) :].tolist()
    return [token for token in found if token != 1]


class TestContinuations:
    @pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
    def test_greedy_ones_are_those_of_transformers(self, model: Any, prompts: list[list[int]]) -> None:
        wanted = [generated(model, prompt) for prompt in prompts]
        assert drawn(model, prompts, repeats=3) == [text for text in wanted for _ in range(3)]

    def test_each_ends_at_its_own_end_and_the_others_go_on(self, model: Any) -> None:
        whole = drawn(model, PROMPTS["of different lengths"])
        end = whole[0][3]
        cut = drawn(model, PROMPTS["of different lengths"], ends={1, end})
        assert cut == [text[: text.index(end)] if end in text else text for text in whole]
        assert len(set(map(len, cut))) > 1

    def test_same_seed_draws_the_same_and_repeats_differ(self, model: Any) -> None:
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append(drawn(model, PROMPTS["one"], repeats=4, temperature=1.0))
        assert runs[0] == runs[1] and len(set(map(tuple, runs[0]))) > 1

    def test_tiny_share_of_the_probability_is_the_most_probable_token(self, model: Any) -> None:
        prompts = PROMPTS["with a shared beginning"]
        assert drawn(model, prompts, temperature=1.0, top_p=1e-6) == drawn(model, prompts)

    def test_model_has_its_own_attention_again(self, model: Any) -> None:
        drawn(model, PROMPTS["one"])
        assert model.config._attn_implementation == "sdpa"
        with fast_attention(model):
            assert model.config._attn_implementation == NAME


class TestGroupedAttention:
    @pytest.mark.parametrize("mask", ["none", "seen", "added"])
    def test_it_is_that_of_torch(self, mask: str) -> None:
        torch.manual_seed(0)
        query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 8)
        seen = torch.rand(3, 1, 1, 11) > 0.4
        seen[..., -1] = True
        masks = {"none": None, "seen": seen, "added": torch.zeros(3, 1, 1, 11).masked_fill(~seen, -1e9)}
        ours, _ = grouped_attention(None, query, key, value, masks[mask])
        theirs = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=masks[mask], enable_gqa=True
        )
        assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-4)

    @pytest.mark.parametrize("mask", ["seen", "added"])
    def test_where_there_are_gradients_they_are_those_of_torch(self, mask: str) -> None:
        torch.manual_seed(0)
        given = [torch.randn(3, heads, 5 if heads == 6 else 11, 8, requires_grad=True) for heads in (6, 2, 2)]
        seen = (torch.rand(3, 1, 1, 11) > 0.4) & torch.ones(5, 11, dtype=torch.bool).tril(6)
        seen[..., 0] = True
        masks = {"seen": seen, "added": torch.zeros(3, 1, 5, 11).masked_fill(~seen, -1e9)}
        outer = torch.randn(3, 5, 6, 8)
        ours, _ = grouped_attention(None, *given, masks[mask])
        theirs = torch.nn.functional.scaled_dot_product_attention(*given, attn_mask=masks[mask], enable_gqa=True)
        for mine, wanted in zip(
            (ours, *torch.autograd.grad(ours, given, outer)),
            (theirs.transpose(1, 2), *torch.autograd.grad(theirs.transpose(1, 2), given, outer)),
            strict=True,
        ):
            assert torch.allclose(mine, wanted, atol=1e-4)


class TestSeveralRequests:
    ASKS = (
        Ask(prefix_request(CARD, []), 2, GREEDY),
        Ask(label_texts_request(CARD), 3, GREEDY),
        Ask(example_texts_request(CARD, CARD.labels[0]), 2, GREEDY),
        Ask(prefix_request(CARD, [scored("Text:", 0.1)]), 2, GREEDY),
        Ask(example_texts_request(CARD, CARD.labels[1]), 1, GREEDY),
    )

    def test_together_they_are_answered_as_one_by_one(self, assistant: LocalAssistant) -> None:
        together = assistant.complete_all(self.ASKS)
        assert together == [assistant.complete(ask.request, ask.n, ask.sampling) for ask in self.ASKS]
        assert [len(completions) for completions in together] == [2, 3, 2, 2, 1]

    def test_more_than_a_batch_holds_are_all_answered(
        self, assistant: LocalAssistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = assistant.complete_all(self.ASKS)
        monkeypatch.setattr("gpta_local.assistant.local.GENERATION_BATCH", 2)
        assert assistant.complete_all(self.ASKS) == whole

    def test_random_numbers_of_the_process_are_left_alone(self, assistant: LocalAssistant) -> None:
        torch.manual_seed(5)
        wanted = torch.rand(1)
        torch.manual_seed(5)
        assistant.complete(prefix_request(CARD, []), 2, replace(GREEDY, temperature=1.0))
        assert torch.rand(1) == wanted

    def test_line_that_would_not_fit_is_cut_to_the_models_positions(
        self, assistant: LocalAssistant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = label_texts_request(CARD)
        length = max(len(assistant._prompt(request, 1, start)) for start in request.line_starts)
        model, _ = assistant.base()
        monkeypatch.setattr(model.config, "max_position_embeddings", length + 12)
        (completion,) = assistant.complete(request, 1, replace(GREEDY, max_new_tokens=400))
        assert completion.completion_tokens is not None and completion.completion_tokens <= 2 * 12


def test_template_without_a_system_role_gets_its_text_in_the_first_message(tmp_path: Path) -> None:
    folder = tiny_chat_llama(tmp_path / "models" / "chat")
    template = (folder / "chat_template.jinja").read_text("utf-8")
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuse + template, encoding="utf-8")
    strict, free = LocalAssistant(str(folder), "cpu"), LocalAssistant(str(tiny_chat_llama(tmp_path / "free")), "cpu")
    request = prefix_request(CARD, [])
    system, user, *rest = request.messages
    joined = replace(request, messages=(Message("user", f"{system.content}\n\n{user.content}"), *rest))
    texts = [a.base()[1].decode(a._prompt(r, 1)) for a, r in ((strict, request), (free, joined))]
    assert texts[0] == texts[1]
