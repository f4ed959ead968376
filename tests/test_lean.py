"""A network that trains at less cost: the same outside training but for last digits, the same in the mean within it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from gpta_local.config import TrainingConfig
from gpta_local.data.examples import Example
from gpta_local.downstream.lean import Dropout, Linear, attention, kept
from gpta_local.downstream.model import SentenceClassifier
from gpta_local.downstream.training import Training


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_has_its_share_of_zeros_and_keeps_the_mean(dropout: float) -> None:
    torch.manual_seed(0)
    drawn = kept(torch.empty(1001, 1003), dropout)
    assert (drawn == 0).float().mean().item() == pytest.approx(dropout, abs=0.002)
    assert drawn.mean().item() == pytest.approx(1, abs=0.003)
    assert len(drawn.unique()) == 2


def test_dropout_draws_each_element_by_itself() -> None:
    torch.manual_seed(0)
    zeros = (kept(torch.empty(200_000), 0.5) == 0).float()
    together = [(zeros[:-shift] * zeros[shift:]).mean().item() for shift in (1, 2, 3, 4, 8)]
    assert together == pytest.approx([0.25] * 5, abs=0.005)


def test_dropout_outside_training_changes_nothing() -> None:
    x = torch.randn(8)
    assert Dropout(0.1).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch_in_the_mean(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 4)  # (b, h, s, d) each
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool).view(2, 1, 1, 5).expand(2, 1, 5, 5)

    def of(dropout: float) -> Tensor:
        module: Any = SimpleNamespace(is_causal=False)
        return attention(module, query, key, value, mask if masked else None, dropout)[0]

    mean = torch.stack([of(0.1) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, of(0.0), atol=0.05, rtol=0)
    assert not of(0.1).equal(of(0.1))


def test_model_outside_training_is_that_of_transformers(sentence: Path) -> None:
    model, stock = SentenceClassifier(sentence, 2, None).eval(), AutoModel.from_pretrained(sentence).eval()
    inputs = model.collate(model.tokenizer.encode(model.tokenizer.tokenise([("a fine film",), ("dull",)]), ""))
    with torch.inference_mode():
        ours, theirs = model.network(**inputs).last_hidden_state, stock(**inputs).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_products_outside_training_are_those_of_torch(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    stock = nn.Linear(24, 7, bias=bias).to(dtype)
    lean, rows = Linear(24, 7, bias=bias).to(dtype), torch.randn(2, 5, 24, dtype=dtype)
    lean.load_state_dict(stock.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(lean(rows), stock(rows))
    assert lean(rows).equal(stock(rows)) and lean(rows).requires_grad


def test_saved_folder_knows_nothing_of_it(sentence: Path, tmp_path: Path) -> None:
    model = SentenceClassifier(sentence, 2, None)
    model.save(tmp_path, "", ["bad", "good"])
    assert all("lean" not in file.read_text(encoding="utf-8") for file in tmp_path.rglob("config.json"))


def test_frozen_weights_stay_and_others_keep_their_precision_in_bfloat16(sentence: Path) -> None:
    model = SentenceClassifier(sentence, 2, None)
    words = model.input_embeddings().weight.detach().clone()  # type: ignore[union-attr, operator]
    rows = [Example(("a fine film",), 1), Example(("dull",), 0)]
    Training(model, rows, TrainingConfig(precision="bf16", steps=2), seed=0).run("", 2)
    assert model.input_embeddings().weight.equal(words)  # type: ignore[arg-type]
    learnt = [p for p in model.network.parameters() if p.requires_grad and p.grad is None and p.ndim > 1]
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert any(not p.bfloat16().float().equal(p) for p in learnt), "of full precision between the steps"
    assert isinstance(model.network, nn.Module)
