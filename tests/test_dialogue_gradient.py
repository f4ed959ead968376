"""Dialogues → an adapter, by real steps of the library on a small model: what is learnt, and what stays as it was."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
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
from gpta_local.dialogue_gradient import train
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.dialogue_gradient.train import REPLY_TOKENS, train_adapter
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_llama(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
def assistant(folder: Path) -> LocalAssistant:
    return LocalAssistant(str(folder), "cpu")


def teach(
    assistant: LocalAssistant,
    target: Path,
    method: str = "sft",
    dialogues: Sequence[Dialogue] = DIALOGUES,
    *,
    seed: int = 3,
    start: Path | None = None,
    **changes: Any,
) -> DialogueGradientStep:
    return train_adapter(
        *assistant.base(),
        dialogues,
        settings(method, **changes),
        target,
        seed=seed,
        start=start,
        reward=count_letters if method == "grpo" else None,
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_step_writes_an_adapter_for_the_base_and_its_record(
        self, assistant: LocalAssistant, folder: Path, tmp_path: Path, method: str
    ) -> None:
        step = teach(assistant, tmp_path / "001", method)
        assert {path.name for path in (tmp_path / "001").iterdir()} == FILES
        assert [path.name for path in tmp_path.iterdir()] == ["001"]
        check_adapter(tmp_path / "001", folder)
        assert (step.adapter, step.method, step.dialogues, len(step.losses)) == ("001", method, 3, 2)
        assert all(map(math.isfinite, step.losses))

    def test_adapter_has_learnt_and_the_base_is_as_before(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        model, _ = assistant.base()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        words, attributes = greedy(assistant), set(vars(model))
        teach(assistant, tmp_path / "001", method)
        learnt = load_file(tmp_path / "001" / "adapter_model.safetensors")
        assert any(tensor.any() for name, tensor in learnt.items() if ".lora_B." in name)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
        assert not {"forward", "peft_config"} & (set(vars(model)) - attributes)
        assert not model.training
        assert greedy(assistant) == words

    def test_same_seed_gives_the_same_bytes_and_another_seed_others(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        for name, seed in (("first", 3), ("again", 3), ("other", 4)):
            teach(assistant, tmp_path / name, method, seed=seed)
        assert weights(tmp_path / "first") == weights(tmp_path / "again")
        assert weights(tmp_path / "first") != weights(tmp_path / "other")

    def test_random_state_and_environment_are_left_alone(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        def state() -> tuple[Any, ...]:
            return (
                random.getstate(),
                np.random.get_state()[1].tolist(),
                torch.get_rng_state().tolist(),
                dict(os.environ),
            )

        before = state()
        teach(assistant, tmp_path / "001", method)
        assert state() == before

    def test_steps_are_told_as_they_are_taken(self, assistant: LocalAssistant, tmp_path: Path, method: str) -> None:
        told: list[int] = []
        train_adapter(
            *assistant.base(),
            DIALOGUES,
            settings(method, steps=3),
            tmp_path / "001",
            seed=3,
            reward=count_letters,
            on_step=lambda: told.append(1),
        )
        assert len(told) == 3


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

    def test_weights_do_not_count_without_weighting(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        for name, weight in (("light", 0.1), ("heavy", 7.0)):
            teach(assistant, tmp_path / name, "sft", [replace(entry, weight=weight) for entry in DIALOGUES])
        assert weights(tmp_path / "light") == weights(tmp_path / "heavy")

    def test_weighted_with_equal_weights_has_the_losses_of_the_unweighted(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        equal = [replace(entry, weight=1.0) for entry in DIALOGUES]
        plain, weighted = (teach(assistant, tmp_path / method, method, equal) for method in ("sft", "weighted-sft"))
        assert weighted.losses == pytest.approx(plain.losses, rel=1e-5)

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
        config = settings("grpo", steps=3, learning_rate=1e-2)

        def equal(texts: list[str]) -> list[float]:
            return [0.5] * len(texts)

        train_adapter(*assistant.base(), DIALOGUES, config, tmp_path / "001", seed=3, reward=equal)
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

        config = settings("grpo", steps=60, batch_size=16, learning_rate=3e-2)
        train_adapter(*assistant.base(), DIALOGUES, config, tmp_path / "001", seed=3, reward=few_letters)
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


def log_likelihood(assistant: LocalAssistant, reply: str) -> float:
    _, tokenizer = assistant._load()
    model = assistant._adapted or assistant._load()[0]
    text = assistant._render(tokenizer, DIALOGUES[0].request)
    start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = tokenizer(text + reply, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(log_probabilities.gather(1, ids[0, 1:, None])[start - 1 :].sum())


class TestRecord:
    def test_what_was_taught_is_recorded(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "001")
        lines = (tmp_path / "001" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["reply"] for row in rows] == [entry.reply for entry in DIALOGUES]
        assert [row["worse"] for row in rows] == [entry.worse for entry in DIALOGUES]
        assert [row["weight"] for row in rows] == [entry.weight for entry in DIALOGUES]
        assert [row["messages"][-1]["content"] for row in rows] == [
            entry.request.messages[-1].content for entry in DIALOGUES
        ]

    def test_adapter_stays_whole_without_what_was_taught(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "001")
        (tmp_path / "001" / "dialogues.jsonl").unlink()
        verify_manifest(tmp_path / "001")
        (tmp_path / "001" / "step.json").unlink()
        with pytest.raises(ModelError, match=r"'step.json' is listed"):
            verify_manifest(tmp_path / "001")

    def test_how_it_was_taught_is_recorded(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        step = teach(assistant, tmp_path / "001", "dpo", seed=9, learning_rate=2e-3)
        record = json.loads((tmp_path / "001" / "step.json").read_text())
        assert record.items() >= {"method": "dpo", "seed": 9, "learning_rate": 2e-3, "rank": 4, "steps": 2}.items()
        assert record["losses"] == pytest.approx(step.losses, abs=1e-4)
        assert {"torch", "transformers", "trl", "peft"} == set(record["versions"])

    def test_no_path_of_the_machine_but_the_base_is_recorded(
        self, assistant: LocalAssistant, folder: Path, tmp_path: Path
    ) -> None:
        teach(assistant, tmp_path / "001")
        for path in (tmp_path / "001").iterdir():
            text = path.read_bytes().decode("latin-1").replace(str(folder), "")
            assert str(tmp_path) not in text and str(Path.home()) + "/" not in text

    def test_folder_that_is_there_is_not_written_over(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        teach(assistant, tmp_path / "001")
        before = weights(tmp_path / "001")
        with pytest.raises(FileExistsError):
            teach(assistant, tmp_path / "001", seed=4)
        assert weights(tmp_path / "001") == before


class TestWhatCannotBeTaught:
    @pytest.mark.parametrize("method", ["sft", "dpo"])
    def test_absurd_learning_rate_is_an_error_and_leaves_nothing(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        words = greedy(assistant)
        with pytest.raises(TrainingError, match=r"not a number.*learning_rate"):
            teach(assistant, tmp_path / "001", method, steps=4, learning_rate=1e30)
        assert not list(tmp_path.iterdir())
        assert greedy(assistant) == words

    def test_weights_that_are_no_numbers_after_the_last_step_are_an_error(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        with pytest.raises(TrainingError, match="not a number"):
            teach(assistant, tmp_path / "001", learning_rate=1e39)
        assert not list(tmp_path.iterdir())

    def test_poisoned_weight_is_an_error_and_leaves_nothing(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="not a number"):
            teach(assistant, tmp_path / "001", "weighted-sft", [dialogue("a", weight=math.nan)] * 2)
        assert not list(tmp_path.iterdir())

    def test_assistant_can_be_taught_after_a_failure(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        with pytest.raises(TrainingError):
            teach(assistant, tmp_path / "001", steps=4, learning_rate=1e30)
        teach(assistant, tmp_path / "001")
        teach(LocalAssistant(assistant.name, "cpu"), tmp_path / "002")
        assert weights(tmp_path / "001") == weights(tmp_path / "002")

    @pytest.mark.parametrize("method", METHODS)
    def test_dialogue_longer_than_the_context_is_left_out(
        self, assistant: LocalAssistant, tmp_path: Path, method: str
    ) -> None:
        step = teach(assistant, tmp_path / "001", method, [too_long(), *DIALOGUES])
        teach(assistant, tmp_path / "002", method, DIALOGUES)
        assert step.dialogues == 3
        assert weights(tmp_path / "001") == weights(tmp_path / "002")
        assert (tmp_path / "001" / "dialogues.jsonl").read_text() == (tmp_path / "002" / "dialogues.jsonl").read_text()

    @pytest.mark.parametrize("method", METHODS)
    def test_only_too_long_dialogues_are_an_error(self, assistant: LocalAssistant, tmp_path: Path, method: str) -> None:
        with pytest.raises(ModelError, match="no dialogue fits into the context of 1024 tokens"):
            teach(assistant, tmp_path / "001", method, [too_long()])
        assert not list(tmp_path.iterdir())

    def test_request_that_leaves_no_room_to_sample_a_reply_is_left_out(
        self, assistant: LocalAssistant, tmp_path: Path
    ) -> None:
        _, tokenizer = assistant.base()
        request, words = Request("prefix", (Message("user", "a"),)), 0
        while len(tokenizer(assistant._render(tokenizer, request))["input_ids"]) < 1024 - REPLY_TOKENS // 2:
            words += 4
            request = Request("prefix", (Message("user", " a" * words),))
        teach(assistant, tmp_path / "sft", "sft", [replace(DIALOGUES[0], request=request, reply="a")])
        with pytest.raises(ModelError, match="no dialogue fits"):
            teach(assistant, tmp_path / "grpo", "grpo", [replace(DIALOGUES[0], request=request)])

    def test_template_without_a_system_role_is_taught(self, tmp_path: Path) -> None:
        folder = tiny_chat_llama(tmp_path / "chat")
        refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        (folder / "chat_template.jinja").write_text(refuse + TEMPLATE, encoding="utf-8")
        assistant = LocalAssistant(str(folder), "cpu")
        teach(assistant, tmp_path / "001", "sft", [dialogue(SENTENCE)], **LEARN)
        assistant.use_adapter(tmp_path / "001")
        assert greedy(assistant) == SENTENCE


def too_long() -> Dialogue:
    return replace(DIALOGUES[0], request=Request("prefix", (Message("user", "word " * 2000),)))


class TestReward:
    def test_reward_is_asked_with_the_texts_that_were_sampled(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        batches: list[list[str]] = []

        def reward(texts: list[str]) -> list[float]:
            batches.append(list(texts))
            return count_letters(texts)

        config = settings("grpo", steps=3, batch_size=4)
        train_adapter(*assistant.base(), DIALOGUES, config, tmp_path / "001", seed=3, reward=reward)
        assert [len(texts) for texts in batches] == [4, 4, 4]
        for text in (text for texts in batches for text in texts):
            assert isinstance(text, str)
            assert "</s>" not in text and "assistant:\n" not in text and "Data set: restaurant" not in text

    def test_what_training_found_is_scored_once(self, assistant: LocalAssistant, tmp_path: Path) -> None:
        scored: list[str] = []

        def losses(prefix: str, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
            scored.append(prefix)
            return np.array([1.0 - len(prefix) / 100 + row / 10 for row in rows])

        reward = GainReward([], losses, [0, 1, 2], tokens=len, max_tokens=1000, leak=lambda text: "")
        config = settings("grpo", steps=3, batch_size=8)
        train_adapter(*assistant.base(), DIALOGUES, config, tmp_path / "001", seed=3, reward=reward)
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
            train_adapter(*assistant.base(), DIALOGUES, settings("grpo"), tmp_path / "001", seed=3, reward=reward)
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
