"""Adapters that go into a real vLLM server on the CPU and out again while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_models import settings

from gpta_local.assistant.local import load_model
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.dialogue_gradient.train import train_adapter
from gpta_local.errors import AdapterRefused
from gpta_local.schema import Message, Request, Sampling

pytestmark = pytest.mark.vllm

SENTENCES = {"harbour": "The harbour is calm today:", "orchard": "An orchard in the north,"}
# longer than a block of vLLM's prefix cache: what it keeps of one adapter must not serve another
REQUEST = Request("prefix", (Message("system", "You write prefixes. " * 30), Message("user", "Write one prefix.")))

Connect = Callable[[], VLLMAssistant]


@pytest.fixture(scope="module")
def adapters(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`harbour` and `orchard` have learnt to say their sentences; `large` has too high a rank."""
    folder = tmp_path_factory.mktemp("adapters")
    model = load_model(chat_model, "cpu", "assistant")
    for name, sentence in SENTENCES.items():
        config = settings(steps=60, learning_rate=1e-2, rank=16)
        train_adapter(*model, [Dialogue(REQUEST, sentence, 1.0)], config, folder / name, seed=0)
    train_adapter(*model, [Dialogue(REQUEST, "a", 1.0)], settings(steps=1, rank=32), folder / "large", seed=0)
    return folder


@pytest.fixture
def connect(connect_vllm: Callable[..., VLLMAssistant]) -> Connect:
    """Make a client that has checked the server."""

    def make() -> VLLMAssistant:
        assistant = connect_vllm()
        assistant.check()
        return assistant

    return make


def said(assistant: VLLMAssistant) -> str:
    (only,) = assistant.complete(REQUEST, 1, Sampling(max_new_tokens=24, temperature=0.0))
    return only.text


def served(assistant: VLLMAssistant) -> list[str]:
    """Names and folders of the adapters that the server lists."""
    models = assistant._list_models()
    return [f"{name} {facts['root']}" for name, facts in models.items() if facts["parent"] is not None]


def test_each_adapter_says_what_it_has_learnt_and_the_base_says_neither(connect: Connect, adapters: Path) -> None:
    assistant = connect()
    answers = []
    for name in ("harbour", "orchard", "harbour"):
        assistant.use_adapter(adapters / name)
        answers.append(said(assistant))
    assistant.use_adapter(None)
    assert answers == [SENTENCES["harbour"], SENTENCES["orchard"], SENTENCES["harbour"]]
    assert said(assistant) not in SENTENCES.values()


def test_sampled_completions_are_by_the_adapter_and_recorded_as_such(connect: Connect, adapters: Path) -> None:
    assistant = connect()
    assistant.use_adapter(adapters / "harbour")
    drawn = assistant.complete(REQUEST, 20, Sampling(max_new_tokens=24, temperature=0.2, seed=1))
    assert {completion.text for completion in drawn} == {SENTENCES["harbour"]}
    assert {completion.model for completion in drawn} == {"tiny+harbour"}


def test_dropped_adapter_is_gone_and_its_folder_may_go_too(connect: Connect, adapters: Path, tmp_path: Path) -> None:
    assistant = connect()
    folders = [shutil.copytree(adapters / "harbour", tmp_path / f"{number:03}") for number in range(6)]
    for folder in folders:  # more than the server keeps in memory
        assistant.use_adapter(folder)
        assert said(assistant) == SENTENCES["harbour"]
    assistant.use_adapter(adapters / "orchard")
    for folder in folders:
        assistant.drop_adapter(folder)
        shutil.rmtree(folder)
    assert len(served(assistant)) == 1
    assert said(assistant) == SENTENCES["orchard"]


def test_folder_with_new_weights_gets_a_new_name_and_the_new_weights_answer(
    connect: Connect, adapters: Path, tmp_path: Path
) -> None:
    assistant, names = connect(), []
    for name in SENTENCES:
        folder = shutil.copytree(adapters / name, tmp_path / "001", dirs_exist_ok=True)
        assistant.use_adapter(folder)
        assert said(assistant) == SENTENCES[name]
        names += served(assistant)
        assistant.use_adapter(None)
        assistant.drop_adapter(folder)
    assert len(set(names)) == 2


def test_runs_on_one_server_do_not_meet_and_close_unloads_what_is_loaded(connect: Connect, adapters: Path) -> None:
    one, two = connect(), connect()
    one.use_adapter(adapters / "harbour")
    two.use_adapter(adapters / "orchard")
    assert (said(one), said(two)) == (SENTENCES["harbour"], SENTENCES["orchard"])
    one.close()
    assert said(two) == SENTENCES["orchard"]
    two.close()
    assert served(connect()) == []


def test_adapter_of_too_large_a_rank_is_refused_and_the_one_before_answers_on(connect: Connect, adapters: Path) -> None:
    assistant = connect()
    assistant.use_adapter(adapters / "harbour")
    message = r"refuses the adapter \(500\): LoRA rank 32 is greater than max_lora_rank 16\. .*--max-lora-rank 32"
    with pytest.raises(AdapterRefused, match=message):
        assistant.use_adapter(adapters / "large")
    assert len(served(assistant)) == 1
    assert said(assistant) == SENTENCES["harbour"]


def test_rank_is_asked_for_without_loading_anything(connect: Connect) -> None:
    assistant = connect()
    assistant.check_rank(16)
    with pytest.raises(AdapterRefused, match="LoRA rank 32 is greater than max_lora_rank 16"):
        assistant.check_rank(32)
    assert served(assistant) == []


def test_folder_that_the_server_cannot_see_is_refused(
    connect: Connect, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the server ran in a container: the check here sees the folder, the server does not."""
    folder = shutil.copytree(adapters / "harbour", tmp_path / "001")
    assistant = connect()
    monkeypatch.setattr("gpta_local.assistant.vllm.check_adapter", lambda folder, base: shutil.rmtree(folder))
    with pytest.raises(AdapterRefused, match=r"does not see the adapter's folder \(404\): .*No adapter found for"):
        assistant.use_adapter(folder)
    assert said(assistant) not in SENTENCES.values()
