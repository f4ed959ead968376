"""Adapter folders, and how they get into a server that behaves as vLLM, or does not."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_server import FakeVLLM, Json, Reply, error, failed, model_list
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from tiny_models import SHAPE
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.errors import AdapterRefused, EndpointError, ModelError
from gpta_local.record.history import History
from gpta_local.schema import Message, Request, Sampling
from gpta_local.system.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_digest, adapter_rank, check_adapter

KEY = "sk-very-secret-0123456789"
REQUEST = Request("prefix", (Message("user", "Write one prefix."),))
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
RANK = 4
Damage = Callable[[Path], object]


def save_adapter(config: Any, folder: Path, **lora: Any) -> Path:
    """An untrained adapter for a model of this configuration."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config) if isinstance(config, GPT2Config) else LlamaForCausalLM(config)
    settings = {"r": RANK, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and an adapter for it, `fits`; `wide` and `deep` for models of other shapes."""
    folder = tmp_path_factory.mktemp("adapters")
    LlamaConfig(**SHAPE).save_pretrained(folder / "base")
    save_adapter(LlamaConfig(**SHAPE), folder / "fits")
    save_adapter(LlamaConfig(**SHAPE | {"hidden_size": 64}), folder / "wide")
    save_adapter(LlamaConfig(**SHAPE | {"num_hidden_layers": 3}), folder / "deep")
    return folder


@pytest.fixture
def base(folders: Path) -> Path:
    return folders / "base"


@pytest.fixture
def adapter(folders: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folders / "fits", tmp_path / "001"))


# What an adapter folder is


def test_adapter_as_peft_saves_it_fits_its_base(folders: Path, base: Path, tmp_path: Path) -> None:
    check_adapter(folders / "fits", base)
    assert adapter_rank(folders / "fits") == RANK
    check_adapter(save_adapter(LlamaConfig(**SHAPE), tmp_path / "some layers", target_modules=["v_proj"]), base)


def test_adapter_fits_layers_whose_weights_are_transposed(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    config.save_pretrained(tmp_path / "gpt2")
    check_adapter(save_adapter(config, tmp_path / "001", fan_in_fan_out=True), tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("name", "message"),
    [("wide", r"has the shape \(64, 4\); rank 4 on this base needs \(32, 4\)"), ("deep", r"layers\.2\..* not have")],
)
def test_adapter_of_another_base_is_refused(folders: Path, base: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"adapter \(.*{name}\): .*{message}.*trained on another model"):
        check_adapter(folders / name, base)


def configured(**changes: Any) -> Damage:
    def change(adapter: Path) -> None:
        content = json.loads((adapter / ADAPTER_CONFIG).read_text()) | changes
        (adapter / ADAPTER_CONFIG).write_text(json.dumps(content))

    return change


def written(content: str) -> Damage:
    return lambda adapter: (adapter / ADAPTER_CONFIG).write_text(content, errors="surrogateescape")


def cut_off(kept: int) -> Damage:
    return lambda adapter: (adapter / ADAPTER_WEIGHTS).write_bytes((adapter / ADAPTER_WEIGHTS).read_bytes()[:kept])


def without(name: str) -> Damage:
    return lambda adapter: (adapter / name).unlink()


def beside(name: str) -> Damage:
    return lambda adapter: (adapter / name).write_bytes(b"")


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(adapter: Path) -> None:
        content = load_file(adapter / ADAPTER_WEIGHTS)
        change(content)
        save_file(content, adapter / ADAPTER_WEIGHTS)

    return damage


NOT_PLAIN = rf"{ADAPTER_CONFIG} (says|asks for) %s.* Train a plain LoRA"
UNREADABLE = rf"{ADAPTER_CONFIG} (cannot be read as JSON|holds no JSON object)"
DAMAGES: dict[str, tuple[Damage, str]] = {
    **{f"rank {rank!r}": (configured(r=rank), "which is no rank") for rank in (0, "4", True, None)},
    "another kind": (configured(peft_type="IA3"), NOT_PLAIN % "peft_type"),
    "no kind": (configured(peft_type=None), NOT_PLAIN % "peft_type"),
    "DoRA": (configured(use_dora=True), NOT_PLAIN % "use_dora"),
    "whole modules": (configured(modules_to_save=["lm_head"]), NOT_PLAIN % "modules_to_save"),
    "bias": (configured(bias="all"), NOT_PLAIN % "bias"),
    "bias of its own": (configured(lora_bias=True), NOT_PLAIN % "lora_bias"),
    "several ranks": (configured(rank_pattern={"q_proj": 8}), NOT_PLAIN % "rank_pattern"),
    "a changed base": (configured(init_lora_weights="pissa"), NOT_PLAIN % "init_lora_weights"),
    "half a configuration": (written("{"), UNREADABLE),
    "a list for a configuration": (written("[]"), UNREADABLE),
    "no UTF-8": (written("\udcff"), UNREADABLE),
    "nested too deep": (written("[" * 100_000), UNREADABLE),
    "no configuration": (without(ADAPTER_CONFIG), rf"there is no {ADAPTER_CONFIG}\. .*save_pretrained"),
    "no weights": (without(ADAPTER_WEIGHTS), rf"there is no {ADAPTER_WEIGHTS}\. .*save_pretrained"),
    "pickled weights": (beside("adapter_model.bin"), "it holds adapter_model.bin; formats other than safetensors"),
    "pickled settings": (beside("training_args.PT"), "it holds training_args.PT; formats other than safetensors"),
    **{f"{kept} bytes": (cut_off(kept), f"{ADAPTER_WEIGHTS} is damaged or cut off") for kept in (0, 200, -1)},
    "no tensor": (tensors(dict.clear), "holds no tensor"),
    "half a pair": (
        tensors(lambda content: content.pop(f"{LAYER}.lora_B.weight")),
        r"only one of the two matrices for model\.layers\.0\.self_attn\.q_proj",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_adapter_that_is_damaged_or_more_than_plain_lora_is_refused(adapter: Path, base: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(adapter)
    with pytest.raises(ModelError, match=rf"adapter \({adapter}\): .*{message}"):
        check_adapter(adapter, base)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_tensor_that_is_no_matrix_of_a_linear_layer_is_refused(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(LlamaConfig(**SHAPE), tmp_path / "001", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ModelError, match=r"embed_tokens.* is no LoRA matrix of a linear layer"):
        check_adapter(folder, base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no config.json"),
        ('{"model_type": "bert_of_mars"}', "describes no language model known here: .*bert_of_mars"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "describes no language model known here"),
    ],
)
def test_base_that_is_none_is_named(adapter: Path, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"base model \({tmp_path}\): .*{message}"):
        check_adapter(adapter, tmp_path)


def test_code_in_the_folder_of_the_base_is_not_run(adapter: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="describes no language model known here"):
        check_adapter(adapter, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_digest_is_that_of_the_weights_file(adapter: Path) -> None:
    assert adapter_digest(adapter) == hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    (adapter / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=rf"adapter \({adapter}\): {ADAPTER_WEIGHTS} cannot be read"):
        adapter_digest(adapter)


# Into a server


Connect = Callable[..., VLLMAssistant]


@pytest.fixture
def server(base: Path) -> Iterator[FakeVLLM]:
    with FakeVLLM(base) as server:
        yield server


@pytest.fixture
def connect_fake(connect: Connect, server: FakeVLLM) -> Connect:
    """Make a client that has checked the server."""

    def make(**changes: Any) -> VLLMAssistant:
        assistant = connect(server.base_url, VLLMAssistant, **{"max_retries": 3, **changes})
        assistant.check()
        return assistant

    return make


@pytest.fixture
def other(adapter: Path) -> Path:
    return Path(shutil.copytree(adapter, adapter.with_name("002")))


def answer(assistant: OpenAIAssistant) -> tuple[str, str]:
    (only,) = assistant.complete(REQUEST, 1, Sampling())
    return only.text, only.model


BASE = ("by base", "m")


CANNOT = {
    "run-time loading is off": (Reply(404, {"detail": "Not Found"}), "does not load adapters while it runs (404)"),
    "LoRA is off": (
        failed("LoRA is not enabled. Use --enable-lora to enable LoRA."),
        "takes no adapters (500): LoRA is not enabled. Use --enable-lora to enable LoRA. Restart it with --enable-lora",
    ),
    "a failure": (Reply(500, "oops"), "the server fails (500): oops"),
    "a success": (Reply(200, "Success"), "says that it loaded an adapter that does not exist"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_check_says_why_a_server_takes_no_adapters(server: FakeVLLM, connect_fake: Connect, case: str) -> None:
    reply, message = CANNOT[case]
    server.on_load = lambda body: reply
    assistant = connect_fake()
    assert not assistant.takes_adapters
    assert message in assistant.adapters_refused
    (asked,) = server.sent("load")
    assert asked["lora_path"].startswith("/"), "any other would be looked for on the network"


@pytest.mark.parametrize("root", ["someone/model", "/no/such/folder", 7])
def test_adapters_are_refused_where_the_weights_are_not_known(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, root: object
) -> None:
    server._models = model_list("m", max_model_len=2048, root=root)
    assistant = connect_fake()
    assert not assistant.takes_adapters
    assert assistant.adapters_refused.endswith("Set assistant.weights to the model's folder")
    with pytest.raises(AdapterRefused, match=r"not known here.*assistant\.weights"):
        assistant.use_adapter(adapter)
    assert len(server.sent("load")) == 1


def test_given_weights_are_believed_over_the_servers(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, base: Path, tmp_path: Path
) -> None:
    server._models = model_list("m", max_model_len=2048, root="someone/model")
    weights = Path(shutil.copytree(base, tmp_path / "weights"))
    (weights / "model.safetensors").write_bytes(b"")
    assistant = connect_fake(weights=weights)
    assistant.use_adapter(adapter)
    assert assistant.weights == weights


def test_given_weights_that_are_no_model_are_refused_at_once(server: FakeVLLM, connect_fake: Connect) -> None:
    with pytest.raises(ModelError, match=r"assistant\.weights \(/no/such/folder\): no such model folder"):
        connect_fake(weights=Path("/no/such/folder"))
    assert server.received == []


def test_adapter_in_use_answers_and_is_recorded_and_loaded_once(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, other: Path
) -> None:
    assistant = connect_fake()
    answers = []
    for folder in (adapter, other, adapter, None):
        assistant.use_adapter(folder)
        answers.append(answer(assistant))
    assert answers == [("by 001", "m+001"), ("by 002", "m+002"), ("by 001", "m+001"), BASE]
    assert [body["lora_path"] for body in server.sent("load")[1:]] == [str(adapter), str(other)]


def test_adapter_in_use_cannot_be_dropped(connect_fake: Connect, adapter: Path) -> None:
    assistant = connect_fake()
    assistant.use_adapter(adapter)
    with pytest.raises(ValueError, match="001 is in use"):
        assistant.drop_adapter(adapter)
    assert answer(assistant) == ("by 001", "m+001")


def test_adapter_that_the_server_does_not_have_is_dropped_already(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, other: Path
) -> None:
    assistant = connect_fake()
    assistant.drop_adapter(other)
    assert server.sent("unload") == []
    assistant.use_adapter(adapter)
    assistant.use_adapter(None)
    server.adapters.clear()
    assistant.drop_adapter(adapter)


def test_close_unloads_what_is_loaded(server: FakeVLLM, connect_fake: Connect, adapter: Path, other: Path) -> None:
    assistant = connect_fake()
    for folder in (adapter, other):
        assistant.use_adapter(folder)
    assistant.close()
    assistant.close()
    assert server.adapters == {}


def test_close_does_not_mind_a_server_that_is_gone(base: Path, adapter: Path) -> None:
    with FakeVLLM(base) as server:
        settings: dict[str, Any] = {"api_key": None, "timeout": 10.0, "max_retries": 3, "concurrency": 4}
        assistant = VLLMAssistant("m", base_url=server.base_url, **settings)
        assistant.check()
        assistant.use_adapter(adapter)
    start = time.monotonic()
    assistant.close()
    assert time.monotonic() - start < 2


def test_adapter_of_another_base_is_refused_before_anything_is_sent(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, folders: Path
) -> None:
    assistant = connect_fake()
    assistant.use_adapter(adapter)
    sent = len(server.received)
    with pytest.raises(ModelError, match="trained on another model"):
        assistant.use_adapter(folders / "wide")
    assert len(server.received) == sent
    assert answer(assistant) == ("by 001", "m+001")


REFUSALS = {
    "rank": (
        failed("LoRA rank 20 is greater than max_lora_rank 16."),
        AdapterRefused,
        "the server refuses the adapter (500): LoRA rank 20 is greater than max_lora_rank 16. "
        "Restart it with --max-lora-rank 32 or `gpta-local assistant serve --max-lora-rank 32`",
    ),
    "rank without a worker": (
        error(500, "Call to add_lora method failed: LoRA rank 600 is greater than max_lora_rank 8."),
        AdapterRefused,
        "the server refuses the adapter (500): LoRA rank 600 is greater than max_lora_rank 8. Restart it",
    ),
    "DoRA": (failed(f"{KEY} brings DoRA."), AdapterRefused, "(500): *** brings DoRA. Look"),
    "name": (error(400, "has already been loaded"), AdapterRefused, "refuses the adapter (400): has already been"),
    "path": (
        error(404, "Loading lora m-1 failed: No adapter found for /x"),
        AdapterRefused,
        "does not see the adapter's folder (404): Loading lora m-1 failed: No adapter found for /x. It must run on",
    ),
    "run-time loading": (
        Reply(404, {"detail": "Not Found"}),
        AdapterRefused,
        "does not load adapters while it runs (404): Not Found. Restart it with --enable-lora and the environment "
        "variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or start it with `gpta-local assistant serve`",
    ),
    "LoRA": (failed("LoRA is not enabled."), AdapterRefused, "takes no adapters (500): LoRA is not enabled. Restart"),
    "dying": (
        error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause."),
        EndpointError,
        "the server fails (500): EngineCore encountered an issue",
    ),
    "gateway": (Reply(503, "<h1>down</h1>"), EndpointError, "the server fails (503): down"),
    "key": (error(401, "Unauthorized"), EndpointError, "refuses the key (401): Unauthorized"),
    "rate": (error(429, "slow down"), EndpointError, "refuses further requests for now (429): slow down"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_adapter_is_one_message_and_the_one_before_answers_on(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, other: Path, case: str
) -> None:
    reply, kind, message = REFUSALS[case]
    assistant = connect_fake(api_key=KEY)
    assistant.use_adapter(adapter)
    server.on_load = lambda body: reply
    with pytest.raises(kind, match=re.escape(message)) as caught:
        assistant.use_adapter(other)
    assert "\n" not in str(caught.value)
    assert answer(assistant) == ("by 001", "m+001")
    assert len(server.sent("load")) == 3  # the check's and one for each: nothing is sent twice
    server.on_load = None
    assistant.use_adapter(other)
    assert answer(assistant) == ("by 002", "m+002")


def test_load_that_takes_too_long_is_taken_back(server: FakeVLLM, connect_fake: Connect, adapter: Path) -> None:
    assistant = connect_fake(timeout=0.3)

    def late(body: Json) -> Reply:
        reply = server._load(body)
        time.sleep(0.8)
        return reply

    server.on_load = late
    with pytest.raises(EndpointError, match=r"no answer within 0.3 s"):
        assistant.use_adapter(adapter)
    assert server.adapters == {}
    assert answer(assistant) == BASE


def test_interrupted_load_is_taken_back(
    server: FakeVLLM, connect_fake: Connect, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = connect_fake()
    post = assistant._client.post

    def interrupted(path: str, **options: Any) -> object:
        reply = post(path, **options)
        if path == "/load_lora_adapter":
            raise KeyboardInterrupt
        return reply

    monkeypatch.setattr(assistant._client, "post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assistant.use_adapter(adapter)
    assert len(server.sent("load")) == 2
    assert server.adapters == {}


def test_adapter_lost_by_a_restart_is_loaded_once_more_or_its_refusal_explained(
    server: FakeVLLM, connect_fake: Connect, adapter: Path
) -> None:
    assistant = connect_fake()
    assistant.use_adapter(adapter)
    server.adapters.clear()
    assert answer(assistant) == ("by 001", "m+001")
    server.adapters.clear()
    server.on_load = lambda body: failed("no room for it")
    with pytest.raises(AdapterRefused, match="no room for it"):
        answer(assistant)


def test_adapters_go_to_the_server_with_the_key_and_nothing_else(
    server: FakeVLLM, connect_fake: Connect, adapter: Path
) -> None:
    assistant = connect_fake(api_key=KEY, extra_body={"top_k": 5})
    assistant.use_adapter(adapter)
    assistant.use_adapter(None)
    assistant.drop_adapter(adapter)
    assert server.sent("load")[-1].keys() == {"lora_name", "lora_path"}
    assert server.sent("unload")[-1].keys() == {"lora_name"}
    assert {request.headers["authorization"] for request in server.received} == {f"Bearer {KEY}"}


# Where there are no adapters


@pytest.fixture(params=["openai", "replay"])
def unteachable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenAIAssistant | ReplayAssistant]:
    if request.param == "replay":
        History(tmp_path / "history.sqlite").close()
        yield ReplayAssistant(tmp_path)
        return
    settings: dict[str, Any] = {"api_key": None, "timeout": 1.0, "max_retries": 0, "concurrency": 1}
    assistant = OpenAIAssistant("m", base_url="http://127.0.0.1:9/v1", **settings)
    yield assistant
    assistant.close()


def test_assistants_without_adapters_say_so_and_go_on_with_the_base(
    unteachable: OpenAIAssistant | ReplayAssistant,
) -> None:
    assert not unteachable.takes_adapters
    assert unteachable.adapters_refused
    with pytest.raises(AdapterRefused, match=re.escape(unteachable.adapters_refused)):
        unteachable.use_adapter(Path("001"))
    unteachable.use_adapter(None)
    unteachable.drop_adapter(Path("001"))
