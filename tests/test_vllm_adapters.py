"""Adapters that go into a real vLLM server on the CPU and out again while it runs.

The last tests of this file kill the server that the others use.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from servers import VLLM_PYTHON, require_vllm
from tiny_models import SHAPE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.assistant.vllm_server import VLLMServer, find_interpreter, is_healthy
from gpta_local.errors import AdapterRefused, EndpointError, ModelError
from gpta_local.schema import Message, Request, Sampling

pytestmark = pytest.mark.vllm

KEY = "key-of-the-test-server"
STEPS = 25
SENTENCES = {"harbour": "The harbour is calm today:", "orchard": "An orchard in the north,"}
# longer than a block of vLLM's prefix cache: what it keeps of one adapter must not serve another
REQUEST = Request("prefix", (Message("system", "You write prefixes. " * 30), Message("user", "Write one prefix.")))
GREEDY = Sampling(max_new_tokens=24, temperature=0.0)

Connect = Callable[..., VLLMAssistant]


@pytest.fixture(scope="module")
def adapters(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`harbour` and `orchard` have learnt to say their sentences; `large` and `foreign` nothing."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, sentence in SENTENCES.items():
        teach(nano_assistant, sentence, folder / name)
    base = AutoModelForCausalLM.from_pretrained(nano_assistant, dtype=torch.float32)
    get_peft_model(base, plain_lora(rank=32)).save_pretrained(folder / "large")
    get_peft_model(LlamaForCausalLM(LlamaConfig(**SHAPE)), plain_lora()).save_pretrained(folder / "foreign")
    return folder


def teach(base: Path, sentence: str, folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), plain_lora())
    messages = [{"role": message.role, "content": message.content} for message in REQUEST.messages]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    reply = tokenizer(f"{sentence}{tokenizer.eos_token}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs = torch.cat([start, reply], dim=1)
    labels = torch.cat([torch.full_like(start, -100), reply], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def plain_lora(rank: int = 8) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def server(nano_assistant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """One that takes adapters up to rank 16; the file's own, as it is killed in the end."""
    require_vllm()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        settings: dict[str, Any] = {"interpreter": find_interpreter(VLLM_PYTHON), "max_model_len": 2048}
        log = tmp_path_factory.mktemp("vllm") / "server.log"
        server = VLLMServer(nano_assistant, "nano-assistant", api_key=KEY, log=log, lora_rank=16, **settings)
    with server:
        server.wait_until_healthy(240)
        yield server


@pytest.fixture
def connect(server: VLLMServer) -> Iterator[Connect]:
    """Make a client that has checked the server."""
    with ExitStack() as stack:

        def make() -> VLLMAssistant:
            settings: dict[str, Any] = {"api_key": KEY, "timeout": 60.0, "max_retries": 1, "concurrency": 4}
            assistant = VLLMAssistant(server.name, base_url=server.base_url, **settings)
            stack.callback(assistant.close)
            assistant.check()
            return assistant

        yield make


def said(assistant: VLLMAssistant) -> str:
    (only,) = assistant.complete(REQUEST, 1, GREEDY)
    return only.text


def served(assistant: VLLMAssistant) -> list[str]:
    """Names and folders of the adapters that the server lists."""
    models = assistant._list_models()
    return [f"{name} {facts['root']}" for name, facts in models.items() if facts["parent"] is not None]


def test_check_finds_that_the_server_takes_adapters_and_on_which_weights(
    connect: Connect, nano_assistant: Path
) -> None:
    assistant = connect()
    assert (assistant.takes_adapters, assistant.adapters_refused) == (True, "")
    assert assistant.weights == nano_assistant
    assert served(assistant) == []


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
    drawn = assistant.complete(REQUEST, 20, Sampling(max_new_tokens=24, temperature=0.5, seed=1))
    assert {completion.text for completion in drawn} == {SENTENCES["harbour"]}
    assert {completion.model for completion in drawn} == {"nano-assistant+harbour"}


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


def test_runs_on_one_server_do_not_meet(connect: Connect, adapters: Path) -> None:
    one, two = connect(), connect()
    one.use_adapter(adapters / "harbour")
    two.use_adapter(adapters / "orchard")
    assert (said(one), said(two)) == (SENTENCES["harbour"], SENTENCES["orchard"])
    one.close()
    assert said(two) == SENTENCES["orchard"]


def test_close_unloads_what_is_loaded(connect: Connect, adapters: Path) -> None:
    assistant = connect()
    assistant.use_adapter(adapters / "harbour")
    assistant.close()
    assert served(connect()) == []


def test_adapter_of_another_base_never_reaches_the_server(connect: Connect, adapters: Path) -> None:
    assistant = connect()
    assistant.use_adapter(adapters / "harbour")
    with pytest.raises(ModelError, match="trained on another model"):
        assistant.use_adapter(adapters / "foreign")
    assert len(served(assistant)) == 1
    assert said(assistant) == SENTENCES["harbour"]


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


# From here on the server is dying


@pytest.fixture(scope="module")
def dying(server: VLLMServer, adapters: Path) -> Iterator[VLLMAssistant]:
    """With the harbour in use when the engine is killed; the API before it lives a little longer."""
    settings: dict[str, Any] = {"api_key": KEY, "timeout": 60.0, "max_retries": 1, "concurrency": 4}
    assistant = VLLMAssistant(server.name, base_url=server.base_url, **settings)
    assistant.check()
    assistant.use_adapter(adapters / "harbour")
    leader = server._process.pid
    for child in Path(f"/proc/{leader}/task/{leader}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    while is_healthy(server.port):  # a load in this moment is never answered
        time.sleep(0.05)
    yield assistant
    assistant.close()


def test_load_into_a_dying_server_is_a_failure_of_the_server_not_of_the_adapter(
    dying: VLLMAssistant, adapters: Path
) -> None:
    with pytest.raises(EndpointError, match=r"the server fails \(500\): EngineCore |nothing listens|connection broke"):
        dying.use_adapter(adapters / "orchard")


def test_request_to_a_dying_server_is_one_message(dying: VLLMAssistant) -> None:
    with pytest.raises(EndpointError, match=r"the server fails \(500\)|nothing listens on port|the connection broke"):
        said(dying)


def test_request_to_a_server_that_was_killed_is_one_message(dying: VLLMAssistant, server: VLLMServer) -> None:
    os.killpg(server._process.pid, signal.SIGKILL)
    server._process.wait()
    with pytest.raises(EndpointError, match=r"nothing listens on port \d+ .*Is the server running"):
        said(dying)


def test_close_does_not_mind_a_server_that_was_killed(dying: VLLMAssistant) -> None:
    start = time.monotonic()
    dying.close()
    assert time.monotonic() - start < 3
