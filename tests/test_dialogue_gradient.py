"""Dialogues → an adapter, by real steps of the library on a small model: what is learnt, and what stays as it was."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import DIALOGUES, TEMPLATE, dialogue, greedy, settings, tiny_chat_llama
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from gpta_local.assistant.local import LocalAssistant
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.dialogue_gradient.train import CONTRAST, IMITATED, METHOD, _Losses, train_adapter
from gpta_local.errors import ModelError, TrainingError
from gpta_local.schema import DialogueGradientStep, Message, Request
from gpta_local.system.adapters import check_adapter
from gpta_local.system.manifests import verify_manifest

FILES = {"SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "dialogues.jsonl", "step.json"}
SENTENCE = "What the guest wrote of us:"
LEARN = {"steps": 60, "learning_rate": 1e-2, "rank": 16}
GROWTH = 24 * 2**20
"""Bytes that ten fine-tunings may add to a process that has done two."""


@pytest.fixture
def assistant(chat_model: Path) -> LocalAssistant:
    return LocalAssistant(str(chat_model), "cpu")


def teach(
    assistant: LocalAssistant,
    target: Path,
    dialogues: Sequence[Dialogue] = DIALOGUES,
    *,
    seed: int = 3,
    start: Path | None = None,
    on_step: Callable[[], None] = lambda: None,
    **changes: Any,
) -> DialogueGradientStep:
    config = settings(**changes)
    return train_adapter(*assistant.base(), dialogues, config, target, seed=seed, start=start, on_step=on_step)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


class TestStep:
    def test_adapter_for_the_base_is_written_whole_and_all_else_is_as_before(
        self, assistant: LocalAssistant, chat_model: Path, tmp_path: Path
    ) -> None:
        def state() -> tuple[Any, ...]:
            generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
            return (*generators, dict(os.environ))

        model, _ = assistant.base()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        words, attributes, told = greedy(assistant), set(vars(model)), []
        state_before = state()
        step = teach(assistant, tmp_path / "001", on_step=lambda: told.append(1))
        assert state() == state_before
        assert {path.name for path in (tmp_path / "001").iterdir()} == FILES
        assert [path.name for path in tmp_path.iterdir()] == ["001"]
        check_adapter(tmp_path / "001", chat_model)
        assert (step.adapter, step.method, step.dialogues, len(step.losses)) == ("001", METHOD, 3, 2)
        assert all(map(math.isfinite, step.losses)) and len(told) == 2
        learnt = load_file(tmp_path / "001" / "adapter_model.safetensors")
        assert any(tensor.any() for name, tensor in learnt.items() if ".lora_B." in name)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
        assert not {"forward", "peft_config"} & (set(vars(model)) - attributes)
        assert not model.training
        assert greedy(assistant) == words

    def test_same_seed_gives_the_same_bytes_without_a_dialogue_longer_than_the_context(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        teach(assistant, tmp_path / "first")
        step = teach(assistant, tmp_path / "again", [too_long(), *DIALOGUES])
        teach(assistant, tmp_path / "other", seed=4)
        assert step.dialogues == 3
        assert weights(tmp_path / "first") == weights(tmp_path / "again")
        assert weights(tmp_path / "first") != weights(tmp_path / "other")

    def test_only_too_long_dialogues_are_an_error(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no dialogue fits into the context of 2048 tokens"):
            teach(assistant, tmp_path / "001", [too_long()])
        assert not list(tmp_path.iterdir())


class TestWhatIsLearnt:
    def test_taught_sentence_is_said_with_the_adapter_and_only_with_it(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        own_words = greedy(assistant)
        teach(assistant, tmp_path / "001", [dialogue(SENTENCE)], **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == SENTENCE
        assistant.use_adapter(None)
        assert greedy(assistant) == own_words != SENTENCE

    @pytest.mark.parametrize(("said", "silent"), [("Menu:", "Guest book:"), ("Guest book:", "Menu:")])
    def test_reply_without_weight_is_not_learnt(
        self, assistant: LocalAssistant, tmp_path: Path, said: str, silent: str
    ) -> None:
        both = [dialogue(said, weight=2.0), dialogue(silent, weight=0.0)]
        teach(assistant, tmp_path / "001", both, **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == said

    def test_loss_is_that_of_replies_that_are_read_alone(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        known = tmp_path / "known"  # it says different things of different requests
        teach(assistant, known, steps=20, learning_rate=1e-2, batch_size=3)
        step = teach(assistant, tmp_path / "001", start=known, steps=1, batch_size=3)
        assistant.use_adapter(known)
        loss = 0.0
        for entry in DIALOGUES:
            said = log_likelihood(assistant, f"{entry.reply}</s>", entry.request)
            loss -= entry.weight * said / tokens_of(assistant, f"{entry.reply}</s>") / len(DIALOGUES)
        assert loss < 8, "the requests must matter"
        assert step.losses[0] == pytest.approx(loss, rel=0.01)

    def test_reply_becomes_less_probable_to_its_rival_than_to_its_request(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        said, other = dialogue(SENTENCE), dialogue("My visit was", shown=0).request
        before = advantage(assistant, other)
        teach(assistant, tmp_path / "alone", [said], steps=20, learning_rate=3e-3)
        teach(assistant, tmp_path / "rival", [replace(said, rival=other)], steps=20, learning_rate=3e-3)
        assistant.use_adapter(tmp_path / "alone")
        alone = advantage(assistant, other)
        assistant.use_adapter(tmp_path / "rival")
        assert advantage(assistant, other) > alone + 5 > before

    def test_loss_of_a_reply_with_a_rival_is_imitation_and_contrast(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        known = tmp_path / "known"  # it says different things of different requests
        teach(assistant, known, steps=20, learning_rate=1e-2, batch_size=3)
        first, second, third = DIALOGUES
        taught = [first, replace(second, rival=third.request), replace(third, rival=first.request)]
        step = teach(assistant, tmp_path / "001", taught, start=known, steps=1, batch_size=3)
        assistant.use_adapter(known)
        loss = 0.0
        for entry in taught:
            tokens = tokens_of(assistant, f"{entry.reply}</s>")
            said = log_likelihood(assistant, f"{entry.reply}</s>", entry.request)
            loss -= entry.weight * (IMITATED if entry.rival else 1.0) * said / tokens / len(taught)
            if entry.rival:
                ahead = (said - log_likelihood(assistant, f"{entry.reply}</s>", entry.rival)) / tokens
                loss += entry.weight * math.log1p(math.exp(-CONTRAST * ahead)) / len(taught)
        assert step.losses[0] == pytest.approx(loss, rel=0.01)

    def test_adapter_to_start_from_is_gone_on_with(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "first", [dialogue(SENTENCE)], **LEARN)
        before = weights(tmp_path / "first")
        step = teach(assistant, tmp_path / "more", [dialogue(SENTENCE)], start=tmp_path / "first")
        fresh = teach(assistant, tmp_path / "fresh", [dialogue(SENTENCE)])
        assert step.losses[0] < 1 < fresh.losses[0]
        assert before == weights(tmp_path / "first") != weights(tmp_path / "more")
        assistant.use_adapter(tmp_path / "more")
        assert greedy(assistant) == SENTENCE


def test_losses_of_tokens_and_their_gradient_are_those_of_torch() -> None:
    torch.manual_seed(0)
    logits, targets, outer = torch.randn(150, 7, requires_grad=True), torch.randint(7, (150,)), torch.rand(150)
    ours, theirs = _Losses.apply(logits, targets), torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(ours, theirs, atol=1e-6)
    (mine,), (wanted,) = (torch.autograd.grad(losses, logits, outer) for losses in (ours, theirs))
    assert torch.allclose(mine, wanted, atol=1e-6)


def tokens_of(assistant: LocalAssistant, reply: str) -> int:
    request = DIALOGUES[0].request
    return len(assistant._prompt(request, 1, reply)) - len(assistant._prompt(request, 1))


def advantage(assistant: LocalAssistant, other: Request) -> float:
    """How much more probable the sentence is to its own request, in nats."""
    return log_likelihood(assistant, SENTENCE) - log_likelihood(assistant, SENTENCE, other)


def log_likelihood(assistant: LocalAssistant, reply: str, request: Request = DIALOGUES[0].request) -> float:
    model = assistant._adapted or assistant._load()[0]
    start = len(assistant._prompt(request, 1))
    ids = torch.tensor([assistant._prompt(request, 1, reply)])
    with torch.inference_mode():
        log_probabilities = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return float(log_probabilities.gather(1, ids[0, 1:, None])[start - 1 :].sum())


class TestRecord:
    def test_what_was_taught_and_how_is_recorded_without_a_path_of_the_machine(
        self, assistant: LocalAssistant, chat_model: Path, tmp_path: Path
    ) -> None:
        step = teach(assistant, tmp_path / "001", seed=9, learning_rate=2e-3)
        lines = (tmp_path / "001" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
        for row, entry in zip(map(json.loads, lines), DIALOGUES, strict=True):
            assert (row["reply"], row["weight"]) == (entry.reply, entry.weight)
            assert row["messages"][-1]["content"] == entry.request.messages[-1].content
            assert row["rival"] is None
        record = json.loads((tmp_path / "001" / "step.json").read_text())
        assert record.items() >= {"method": METHOD, "seed": 9, "learning_rate": 2e-3, "rank": 4, "steps": 2}.items()
        assert record["losses"] == pytest.approx(step.losses, abs=1e-4)
        assert {"torch", "transformers", "trl", "peft"} == set(record["versions"])
        for path in (tmp_path / "001").iterdir():
            text = path.read_bytes().decode("latin-1").replace(str(chat_model), "")
            assert str(tmp_path) not in text and str(Path.home()) + "/" not in text

    def test_adapter_stays_whole_without_what_was_taught(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "001")
        (tmp_path / "001" / "dialogues.jsonl").unlink()
        verify_manifest(tmp_path / "001")
        (tmp_path / "001" / "step.json").unlink()
        with pytest.raises(ModelError, match=r"'step.json' is listed"):
            verify_manifest(tmp_path / "001")

    def test_folder_that_is_there_is_not_written_over(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        (tmp_path / "001").mkdir()
        with pytest.raises(FileExistsError):
            teach(assistant, tmp_path / "001")
        assert not list((tmp_path / "001").iterdir())


class TestWhatCannotBeTaught:
    @pytest.mark.parametrize(
        "absurd",
        [
            {"steps": 4, "learning_rate": 1e30},
            {"learning_rate": 1e39},  # the losses are numbers, the weights after the last step are not
        ],
    )
    def test_absurd_learning_rate_is_an_error_and_leaves_nothing(
        self, assistant: LocalAssistant, tmp_path: Path, absurd: dict[str, Any]
    ) -> None:
        with pytest.raises(TrainingError, match=r"not a number.*learning_rate"):
            teach(assistant, tmp_path / "001", **absurd)
        assert not list(tmp_path.iterdir())
        teach(assistant, tmp_path / "001")
        teach(LocalAssistant(assistant.name, "cpu"), tmp_path / "002")
        assert weights(tmp_path / "001") == weights(tmp_path / "002"), "the failure has changed nothing"

    def test_poisoned_weight_is_an_error_and_leaves_nothing(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="not a number"):
            teach(assistant, tmp_path / "001", [dialogue("a", weight=math.nan)] * 2)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("error", "words_of_it"),
        [
            (RuntimeError("CUDA out of memory"), r"failed \(RuntimeError: CUDA out of memory\).*batch_size"),
            (ValueError("a library\nfailed"), r"failed \(ValueError: a library\)"),
        ],
        ids=["memory", "library"],
    )
    def test_library_that_fails_ends_the_step_and_leaves_nothing(
        self, assistant: LocalAssistant, tmp_path: Path, error: Exception, words_of_it: str
    ) -> None:
        def fail() -> None:
            raise error

        words = greedy(assistant)
        with pytest.raises(TrainingError, match=words_of_it):
            teach(assistant, tmp_path / "001", on_step=fail)
        assert not list(tmp_path.iterdir())
        assert greedy(assistant) == words

    def test_template_without_a_system_role_is_taught(self, tmp_path: Path) -> None:
        folder = tiny_chat_llama(tmp_path / "models" / "chat")
        refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        (folder / "chat_template.jinja").write_text(refuse + TEMPLATE, encoding="utf-8")
        assistant = LocalAssistant(str(folder), "cpu")
        teach(assistant, tmp_path / "001", [dialogue(SENTENCE)], **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == SENTENCE


def too_long() -> Dialogue:
    return replace(DIALOGUES[0], request=asking("word " * 3000))


def asking(content: str) -> Request:
    return Request("prefix", (Message("system", "You help."), Message("user", content)))


@pytest.mark.slow
def test_memory_does_not_grow_from_step_to_step(assistant: LocalAssistant, tmp_path: Path) -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    sizes = []
    for number in range(12):
        teach(assistant, tmp_path / f"{number:03d}")
        assistant.use_adapter(tmp_path / f"{number:03d}")
        greedy(assistant)
        sizes.append(resident())
    assert sizes[-1] - sizes[1] < GROWTH
