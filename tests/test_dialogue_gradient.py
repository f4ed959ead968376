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
from tiny_models import CHAT_POSITIONS

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import read_prefixes
from gpta_local.dialogue_gradient import train
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.dialogue_gradient.train import REPLY_TOKENS, Reward, train_adapter
from gpta_local.errors import ModelError, TrainingError
from gpta_local.knowledge.prefixes import GainReward
from gpta_local.schema import DialogueGradientStep, Message, Request
from gpta_local.system.adapters import check_adapter
from gpta_local.system.manifests import verify_manifest

METHODS = ("sft", "weighted-sft", "dpo", "kto", "grpo")
FILES = {"SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "dialogues.jsonl", "step.json"}
SENTENCE = "What the guest wrote of us:"
LEARN = {"steps": 60, "learning_rate": 1e-2, "rank": 16}
GROWTH = 24 * 2**20
"""Bytes that ten fine-tunings may add to a process that has done two."""


def count_letters(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


@pytest.fixture
def assistant(chat_model: Path) -> LocalAssistant:
    return LocalAssistant(str(chat_model), "cpu")


def teach(
    assistant: LocalAssistant,
    target: Path,
    method: str = "sft",
    dialogues: Sequence[Dialogue] = DIALOGUES,
    *,
    seed: int = 3,
    start: Path | None = None,
    reward: Reward = count_letters,
    on_step: Callable[[], None] = lambda: None,
    **changes: Any,
) -> DialogueGradientStep:
    config = settings(method, **changes)
    return train_adapter(
        *assistant.base(), dialogues, config, target, seed=seed, start=start, reward=reward, on_step=on_step
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_adapter_for_the_base_is_written_whole_and_all_else_is_as_before(
        self, assistant: LocalAssistant, chat_model: Path, tmp_path: Path, method: str
    ) -> None:
        def state() -> tuple[Any, ...]:
            generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
            return (*generators, dict(os.environ))

        model, _ = assistant.base()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        words, attributes, told = greedy(assistant), set(vars(model)), []
        state_before = state()
        step = teach(assistant, tmp_path / "001", method, on_step=lambda: told.append(1))
        assert state() == state_before
        assert {path.name for path in (tmp_path / "001").iterdir()} == FILES
        assert [path.name for path in tmp_path.iterdir()] == ["001"]
        check_adapter(tmp_path / "001", chat_model)
        assert (step.adapter, step.method, step.dialogues, len(step.losses)) == ("001", method, 3, 2)
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
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        teach(assistant, tmp_path / "first", method)
        step = teach(assistant, tmp_path / "again", method, [too_long(), *DIALOGUES])
        teach(assistant, tmp_path / "other", method, seed=4)
        assert step.dialogues == 3
        assert weights(tmp_path / "first") == weights(tmp_path / "again")
        assert weights(tmp_path / "first") != weights(tmp_path / "other")

    def test_only_too_long_dialogues_are_an_error(self, assistant: LocalAssistant, tmp_path: Path, method: str) -> None:
        with pytest.raises(ModelError, match="no dialogue fits into the context of 2048 tokens"):
            teach(assistant, tmp_path / "001", method, [too_long()])
        assert not list(tmp_path.iterdir())


class TestWhatIsLearnt:
    def test_taught_sentence_is_said_with_the_adapter_and_only_with_it(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        own_words = greedy(assistant)
        teach(assistant, tmp_path / "001", "sft", [dialogue(SENTENCE)], **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == SENTENCE
        assistant.use_adapter(None)
        assert greedy(assistant) == own_words != SENTENCE

    @pytest.mark.parametrize(("said", "silent"), [("Menu:", "Guest book:"), ("Guest book:", "Menu:")])
    def test_reply_without_weight_is_not_learnt(
        self, assistant: LocalAssistant, tmp_path: Path, said: str, silent: str
    ) -> None:
        both = [dialogue(said, weight=2.0), dialogue(silent, weight=0.0)]
        teach(assistant, tmp_path / "001", "weighted-sft", both, **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == said

    def test_weighted_with_equal_weights_has_the_losses_of_the_unweighted(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        equal = [replace(entry, weight=1.0) for entry in DIALOGUES]
        plain, weighted = (teach(assistant, tmp_path / method, method, equal) for method in ("sft", "weighted-sft"))
        assert weighted.losses == pytest.approx(plain.losses, rel=1e-5)

    def test_loss_is_that_of_replies_that_are_read_alone(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        known = tmp_path / "known"  # it says different things of different requests
        teach(assistant, known, "sft", steps=20, learning_rate=1e-2, batch_size=3)
        step = teach(assistant, tmp_path / "001", "weighted-sft", start=known, steps=1, batch_size=3)
        assistant.use_adapter(known)
        losses, tokens = 0.0, 0
        for entry in DIALOGUES:
            reply = f"{entry.reply}</s>"
            tokens += len(assistant._prompt(entry.request, 1, reply)) - len(assistant._prompt(entry.request, 1))
            losses -= entry.weight * log_likelihood(assistant, reply, entry.request)
        assert losses / tokens < 8, "the requests must matter"
        assert step.losses[0] == pytest.approx(losses / tokens, rel=0.01)

    @pytest.mark.parametrize("method", ["dpo", "kto"])
    def test_better_reply_becomes_likelier_than_the_worse(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        def preference(folder: Path | None) -> float:
            assistant.use_adapter(folder)
            return log_likelihood(assistant, "Menu:") - log_likelihood(assistant, "Guest book:")

        before = preference(None)
        pair = [dialogue("Menu:", worse="Guest book:")]
        teach(assistant, tmp_path / "001", method, pair, steps=20, learning_rate=1e-2)
        assert preference(tmp_path / "001") > before + 1

    def test_equal_rewards_teach_nothing(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        def equal(texts: list[str]) -> list[float]:
            return [0.5] * len(texts)

        teach(assistant, tmp_path / "001", "grpo", reward=equal, steps=3, learning_rate=1e-2)
        learnt = load_file(tmp_path / "001" / "adapter_model.safetensors")
        assert not any(tensor.any() for name, tensor in learnt.items() if ".lora_B." in name)

    @pytest.mark.slow
    def test_what_is_rewarded_becomes_likelier(
        self, assistant: LocalAssistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # with few tokens each has a large part in the reward: of seeds 3 to 8 all reach 0.78 or less
        monkeypatch.setattr(train, "REPLY_TOKENS", 4)
        means: list[float] = []

        def few_letters(texts: list[str]) -> list[float]:
            means.append(sum(count_letters(texts)) / len(texts))
            return [-letters for letters in count_letters(texts)]

        steps = {"steps": 60, "batch_size": 16, "learning_rate": 3e-2}
        teach(assistant, tmp_path / "001", "grpo", reward=few_letters, **steps)
        assert sum(means[-10:]) < 0.9 * sum(means[:10])

    def test_adapter_to_start_from_is_gone_on_with(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "first", "sft", [dialogue(SENTENCE)], **LEARN)
        before = weights(tmp_path / "first")
        step = teach(assistant, tmp_path / "more", "sft", [dialogue(SENTENCE)], start=tmp_path / "first")
        fresh = teach(assistant, tmp_path / "fresh", "sft", [dialogue(SENTENCE)])
        assert step.losses[0] < 1 < fresh.losses[0]
        assert before == weights(tmp_path / "first") != weights(tmp_path / "more")
        assistant.use_adapter(tmp_path / "more")
        assert greedy(assistant) == SENTENCE


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
        step = teach(assistant, tmp_path / "001", "dpo", seed=9, learning_rate=2e-3)
        lines = (tmp_path / "001" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
        for row, entry in zip(map(json.loads, lines), DIALOGUES, strict=True):
            assert (row["reply"], row["worse"], row["weight"]) == (entry.reply, entry.worse, entry.weight)
            assert row["messages"][-1]["content"] == entry.request.messages[-1].content
        record = json.loads((tmp_path / "001" / "step.json").read_text())
        assert record.items() >= {"method": "dpo", "seed": 9, "learning_rate": 2e-3, "rank": 4, "steps": 2}.items()
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
        ("method", "absurd"),
        [
            ("sft", {"steps": 4, "learning_rate": 1e30}),
            ("dpo", {"steps": 4, "learning_rate": 1e30}),
            ("sft", {"learning_rate": 1e39}),  # the losses are numbers, the weights after the last step are not
        ],
    )
    def test_absurd_learning_rate_is_an_error_and_leaves_nothing(
        self, assistant: LocalAssistant, tmp_path: Path, method: str, absurd: dict[str, Any]
    ) -> None:
        with pytest.raises(TrainingError, match=r"not a number.*learning_rate"):
            teach(assistant, tmp_path / "001", method, **absurd)
        assert not list(tmp_path.iterdir())
        teach(assistant, tmp_path / "001")
        teach(LocalAssistant(assistant.name, "cpu"), tmp_path / "002")
        assert weights(tmp_path / "001") == weights(tmp_path / "002"), "the failure has changed nothing"

    def test_poisoned_weight_is_an_error_and_leaves_nothing(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="not a number"):
            teach(assistant, tmp_path / "001", "weighted-sft", [dialogue("a", weight=math.nan)] * 2)
        assert not list(tmp_path.iterdir())

    def test_request_that_leaves_no_room_to_sample_a_reply_is_left_out(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        request, words = asking("a"), 0
        while len(assistant._prompt(request, 1)) < CHAT_POSITIONS - REPLY_TOKENS // 2:
            words += 4
            request = asking(" a" * words)
        teach(assistant, tmp_path / "sft", "sft", [replace(DIALOGUES[0], request=request, reply="a")])
        with pytest.raises(ModelError, match="no dialogue fits"):
            teach(assistant, tmp_path / "grpo", "grpo", [replace(DIALOGUES[0], request=request)])

    def test_template_without_a_system_role_is_taught(self, tmp_path: Path) -> None:
        folder = tiny_chat_llama(tmp_path / "models" / "chat")
        refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        (folder / "chat_template.jinja").write_text(refuse + TEMPLATE, encoding="utf-8")
        assistant = LocalAssistant(str(folder), "cpu")
        teach(assistant, tmp_path / "001", "sft", [dialogue(SENTENCE)], **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == SENTENCE


def too_long() -> Dialogue:
    return replace(DIALOGUES[0], request=asking("word " * 3000))


def asking(content: str) -> Request:
    return Request("prefix", (Message("system", "You help."), Message("user", content)))


class TestReward:
    def test_reward_is_asked_with_the_texts_that_were_sampled(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        batches: list[list[str]] = []

        def reward(texts: list[str]) -> list[float]:
            batches.append(list(texts))
            return count_letters(texts)

        teach(assistant, tmp_path / "001", "grpo", reward=reward, steps=3, batch_size=4)
        assert [len(texts) for texts in batches] == [4, 4, 4]
        for text in (text for texts in batches for text in texts):
            assert isinstance(text, str)
            assert "</s>" not in text and "assistant:\n" not in text and "Data set: restaurant" not in text

    def test_what_training_found_is_scored_once(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        scored: list[str] = []

        def losses(prefix: str, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
            scored.append(prefix)
            return np.array([1.0 - len(prefix) / 100 + row / 10 for row in rows])

        reward = GainReward([], losses, [0, 1, 2], read=read_prefixes)
        teach(assistant, tmp_path / "001", "grpo", reward=reward, steps=3, batch_size=8)
        found = [entry.text for entry in reward.found]
        assert found and [*found] == scored[1:] and scored[0] == ""
        assert all(entry.gain == pytest.approx(len(entry.text) / 100) and entry.rows == 3 for entry in reward.found)

    @pytest.mark.parametrize(
        ("error", "words_of_it"),
        [
            (TrainingError("a scoring loss is not a number"), "^a scoring loss"),
            (RuntimeError("CUDA out of memory"), r"failed \(RuntimeError: CUDA out of memory\).*batch_size"),
            (ValueError("a library\nfailed"), r"failed \(ValueError: a library\)"),
        ],
        ids=["ours", "memory", "library"],
    )
    def test_reward_or_library_that_fails_ends_the_step_and_leaves_nothing(
        self, assistant: LocalAssistant, tmp_path: Path, error: Exception, words_of_it: str
    ) -> None:
        def reward(texts: list[str]) -> list[float]:
            raise error

        words = greedy(assistant)
        with pytest.raises(TrainingError, match=words_of_it):
            teach(assistant, tmp_path / "001", "grpo", reward=reward)
        assert not list(tmp_path.iterdir())
        assert greedy(assistant) == words


@pytest.mark.slow
def test_memory_does_not_grow_from_step_to_step(assistant: LocalAssistant, tmp_path: Path) -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    sizes = []
    for number in range(12):
        teach(assistant, tmp_path / f"{number:03d}", "dpo")
        assistant.use_adapter(tmp_path / f"{number:03d}")
        greedy(assistant)
        sizes.append(resident())
    assert sizes[-1] - sizes[1] < GROWTH
