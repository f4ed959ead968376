"""The configuration: what loads, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from samples import write_config

from gpta_local.config import (
    DialogueGradientConfig,
    LocalAssistantConfig,
    OpenAIAssistantConfig,
    ReplayAssistantConfig,
    VLLMAssistantConfig,
    dump,
    load,
)
from gpta_local.errors import ConfigError
from gpta_local.system.models import DEMO_BACKBONE, EMBEDDED_ASSISTANT

SUITES = {"suite.yaml", "quick.yaml", "benchmark.yaml"}  # of `gpta-local benchmark`
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name not in SUITES)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "restaurant.yaml", {})


def changed(tmp_path: Path, changes: dict[str, Any]) -> Path:
    return write_config(tmp_path / "changed.yaml", changes)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configuration_loads(shipped: Path) -> None:
    load(shipped)


def test_there_are_shipped_configurations() -> None:
    assert SHIPPED


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configuration_names_data_that_is_shipped(shipped: Path) -> None:
    config = load(shipped)
    if "quickstart" in shipped.parts:
        for split in (config.data.train, config.data.validation, config.data.test):
            assert split is None or Path(split).is_file()


def test_defaults_need_only_train_rows_and_a_description(path: Path) -> None:
    config = load(path)
    assert config.task == "text-classification"
    assert isinstance(config.assistant, LocalAssistantConfig)
    assert config.assistant.model == EMBEDDED_ASSISTANT
    assert config.downstream.backbone == DEMO_BACKBONE


def test_card_name_defaults_to_the_name_of_the_file(path: Path) -> None:
    assert load(path).card.name == "restaurant"


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"trainig": {"steps": 3}}, "trainig", "training"),
        ({"training": {"step": 3}}, "training.step", "steps"),
        ({"data": {"lable": "y"}}, "data.lable", "label"),
        ({"assistant": {"temprature": 1}}, "assistant.temprature", "temperature"),
        ({"assistant": {"backend": "vllm", "model": "m", "baseurl": "x"}}, "assistant.baseurl", "base_url"),
        ({"search": {"proposal": 4}}, "search.proposal", "proposals"),
        ({"dialogue_gradient": {"methd": "sft"}}, "dialogue_gradient.methd", "method"),
        ({"privacy": {"leak_scan": {"treshold": 2}}}, "privacy.leak_scan.treshold", "threshold"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, changes: dict[str, Any], key: str, nearest: str) -> None:
    message = refusal(changed(tmp_path, changes))
    assert f"unknown key '{key}'" in message
    assert f"did you mean '{nearest}'?" in message


def test_unknown_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"data": {"zzzzzz": 1}}))
    assert "known here: train, validation, test, text" in message


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {"train": None, "test": "test.jsonl"}}, "data.train"),
        ({"card": None}, "card"),
        ({"assistant": {"backend": "openai", "model": "m"}}, "assistant.base_url"),
        ({"assistant": {"backend": "vllm"}}, "assistant.model"),
        ({"assistant": {"backend": "replay"}}, "assistant.run"),
    ],
)
def test_missing_key_is_named(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    assert f"the key '{key}' is missing" in refusal(changed(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"data": {"shots": 0}}, "data.shots"),
        ({"data": "train.jsonl"}, "data"),
        ({"search": {"regime": "fast"}}, "search.regime"),
        ({"task": "regression"}, "task"),
        ({"seed": -1}, "seed"),
        ({"assistant": {"backend": "vllm", "model": "m", "base_url": "127.0.0.1:8000"}}, "assistant.base_url"),
        ({"assistant": {"top_p": 0}}, "assistant.top_p"),
        ({"card": {"description": "short"}}, "card.description"),
        ({"assistant": "local"}, "assistant"),
        ({"assistant": ["local"]}, "assistant"),
        ({"dialogue_gradient": {"method": "ppo"}}, "dialogue_gradient.method"),
        ({"dialogue_gradient": {"batch_size": 1}}, "dialogue_gradient.batch_size"),
        ({"dialogue_gradient": {"learning_rate": 0}}, "dialogue_gradient.learning_rate"),
        ({"dialogue_gradient": "sft"}, "dialogue_gradient"),
    ],
)
def test_wrong_value_is_told_with_its_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    message = refusal(changed(tmp_path, changes))
    assert f": {key} " in message
    assert len(message.splitlines()) == 1


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"training": {"steps": "many"}, "seed": "x", "sead": 1}))
    assert len(message.splitlines()) == 3


def test_unknown_backend_names_the_known_ones(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"assistant": {"backend": "opneai"}}))
    assert "assistant.backend must be one of local, openai, vllm, replay" in message


@pytest.mark.parametrize(
    ("backend", "needed", "foreign"),
    [
        ("local", {}, {"base_url": "http://127.0.0.1/v1"}),
        ("local", {}, {"run": "runs/x"}),
        ("openai", {"model": "m", "base_url": "http://127.0.0.1/v1"}, {"device": "cpu"}),
        ("vllm", {"model": "m"}, {"run": "runs/x"}),
        ("replay", {"run": "runs/x"}, {"model": "m"}),
    ],
)
def test_backend_refuses_keys_of_another(
    tmp_path: Path, backend: str, needed: dict[str, Any], foreign: dict[str, Any]
) -> None:
    load(changed(tmp_path, {"assistant": {"backend": backend, **needed}}))
    message = refusal(changed(tmp_path, {"assistant": {"backend": backend, **needed, **foreign}}))
    assert f"unknown key 'assistant.{next(iter(foreign))}'" in message


def test_text_pair_is_refused_for_a_task_of_single_texts(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"data": {"text_pair": "b"}}))
    assert "data.text_pair is only for task: text-pair-classification" in message


def test_pair_task_has_a_default_second_column(tmp_path: Path) -> None:
    assert load(changed(tmp_path, {"task": "text-pair-classification"})).data.text_pair == "text_pair"


def test_missing_file_is_told(tmp_path: Path) -> None:
    assert "no such configuration file" in refusal(tmp_path / "none.yaml")


def test_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    assert "a folder, not a configuration file" in refusal(tmp_path)


def test_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("card: {description: Gäste}".encode("latin-1"))
    assert "cannot be read as UTF-8" in refusal(path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("seed: 0\ndata:\n  train: [a\n", 4, "not valid YAML"),
        ("seed: 0\ndata:\n\ttrain: a\n", 3, "not valid YAML"),
        ("seed: 0\ndata: {}\nseed: 1\n", 3, "the key 'seed' is given twice"),
        ("data:\n  train: a\n  text: b\n  train: c\n", 4, "the key 'train' is given twice"),
        ("? [a, b]\n: c\n", 1, "a key must be a word"),
        ("seed: !!python/object/apply:os.getcwd []\n", 1, "could not determine a constructor"),
    ],
)
def test_broken_yaml_is_told_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- b\n", "seed: 2024-13-45\n"])
def test_yaml_of_another_kind_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text, encoding="utf-8")
    assert refusal(path).startswith(str(path))


@pytest.mark.parametrize("labels", ["[yes, no]", "[on, off]", "{yes: agrees, no: refuses}", "[1, 2]"])
def test_labels_that_yaml_reads_as_other_than_words_give_the_hint(tmp_path: Path, labels: str) -> None:
    path = write_config(tmp_path / "labels.yaml", {})
    path.write_text(path.read_text().replace("card:\n", f"card:\n  labels: {labels}\n"), encoding="utf-8")
    message = refusal(path)
    assert "card.labels" in message
    assert "(put it in quotes)" in message
    assert "list[str]" not in message
    assert "dict[str" not in message


def test_quoted_labels_stay_words(tmp_path: Path) -> None:
    path = write_config(tmp_path / "labels.yaml", {"card": {"labels": ["yes", "no"]}})
    assert load(path).card.labels == ["yes", "no"]


class TestOverrides:
    def test_nested_value_is_read_as_yaml(self, path: Path) -> None:
        config = load(path, ["training.steps=7", "finish.plain_control=false", "training.encoder_learning_rate=1e-4"])
        assert (config.training.steps, config.finish.plain_control) == (7, False)
        assert config.training.encoder_learning_rate == 1e-4

    def test_list_can_be_set(self, path: Path) -> None:
        assert load(path, ["card.labels=[a, b]"]).card.labels == ["a", "b"]

    def test_null_can_be_set(self, path: Path) -> None:
        assert load(path, ["training.steps=null"]).training.steps is None

    def test_value_may_hold_an_equals_sign(self, path: Path) -> None:
        assert load(path, ["card.description=accuracy = hits / rows"]).card.description == "accuracy = hits / rows"

    def test_last_one_wins(self, path: Path) -> None:
        assert load(path, ["seed=1", "seed=2"]).seed == 2

    def test_section_that_the_file_leaves_out_is_made(self, path: Path) -> None:
        assert load(path, ["downstream.max_length=64"]).downstream.max_length == 64

    def test_section_that_is_switched_off_is_switched_on_by_a_key(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\ndialogue_gradient: null\n", encoding="utf-8")
        section = load(path, ["dialogue_gradient.method=dpo"]).dialogue_gradient
        assert section is not None and section.method == "dpo"

    @pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "training.=3", ".seed=1", ""])
    def test_bad_form_is_told(self, path: Path, override: str) -> None:
        assert "is not of the form a.b=c" in refusal(path, override)

    @pytest.mark.parametrize("override", ["seed=[1", "card.name=2024-13-45", "seed=" + "[" * 5000])
    def test_value_that_is_not_yaml_is_told(self, path: Path, override: str) -> None:
        assert "is not valid YAML" in refusal(path, override)

    def test_value_in_place_of_a_section_is_told(self, path: Path) -> None:
        assert "'train' in 'data.train.x' is a value, not a section" in refusal(path, "data.train.x=1")

    def test_unknown_key_is_told(self, path: Path) -> None:
        assert "did you mean 'steps'?" in refusal(path, "training.stepps=4")


class TestPaths:
    def test_paths_are_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "inner").mkdir()
        path = write_config(
            tmp_path / "inner" / "c.yaml",
            {
                "data": {"train": "../rows.csv", "test": "t.jsonl"},
                "downstream": {"backbone": "encoder"},
                "assistant": {"model": "chat-model"},
            },
        )
        monkeypatch.chdir("/")
        config = load(path)
        assert config.data.train == str(tmp_path / "rows.csv")
        assert config.data.test == str(tmp_path / "inner" / "t.jsonl")
        assert config.data.validation is None
        assert config.downstream.backbone == str(tmp_path / "inner" / "encoder")
        assert isinstance(config.assistant, LocalAssistantConfig)
        assert config.assistant.model == str(tmp_path / "inner" / "chat-model")

    def test_absolute_path_stays(self, tmp_path: Path) -> None:
        assert load(changed(tmp_path, {"data": {"train": "/srv/rows.csv"}})).data.train == "/srv/rows.csv"

    def test_home_is_expanded(self, tmp_path: Path) -> None:
        assert load(changed(tmp_path, {"data": {"train": "~/rows.csv"}})).data.train == str(Path.home() / "rows.csv")

    def test_home_of_nobody_is_told(self, tmp_path: Path) -> None:
        assert "~no-such-user" in refusal(changed(tmp_path, {"data": {"train": "~no-such-user/rows.csv"}}))

    def test_replayed_run_is_relative_to_the_file(self, tmp_path: Path) -> None:
        config = load(changed(tmp_path, {"assistant": {"backend": "replay", "run": "runs/a"}}))
        assert isinstance(config.assistant, ReplayAssistantConfig)
        assert config.assistant.run == str(tmp_path / "runs" / "a")

    @pytest.mark.parametrize("backend", ["openai", "vllm"])
    def test_name_of_a_served_model_is_no_path(self, tmp_path: Path, backend: str) -> None:
        assistant = {"backend": backend, "model": "org/model", "base_url": "http://127.0.0.1:1/v1"}
        config = load(changed(tmp_path, {"assistant": assistant}))
        assert isinstance(config.assistant, OpenAIAssistantConfig | VLLMAssistantConfig)
        assert config.assistant.model == "org/model"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": "text-pair-classification", "data": {"text_pair": "b", "shots": 4, "test": "t.csv"}},
        {"assistant": {"backend": "replay", "run": "runs/a"}, "card": {"labels": {"yes": "agrees", "no": "refuses"}}},
        {
            "assistant": {"backend": "openai", "model": "m", "base_url": "http://h/v1", "api_key_env": "KEY"},
            "privacy": {"allow_hosts": ["h"]},
        },
        {"card": {"name": "1", "labels": ["on", "off", "1e3", "null", "ü: x"]}},
        {"training": {"encoder_learning_rate": 1e-7}},
    ],
)
def test_dump_reloads_to_the_same_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = load(changed(tmp_path, changes))
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "config.yaml"
    copy.write_text(dump(config), encoding="utf-8")
    assert load(copy) == config


def test_dump_names_the_key_variable_and_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret-value")
    assistant = {"backend": "vllm", "model": "m", "api_key_env": "THE_KEY"}
    text = dump(load(changed(tmp_path, {"assistant": assistant})))
    assert "THE_KEY" in text
    assert "sk-secret-value" not in text


def test_dialogue_gradient_is_off_unless_asked_for(path: Path) -> None:
    assert load(path).dialogue_gradient is None


def test_empty_section_of_the_dialogue_gradient_is_its_defaults(path: Path) -> None:
    assert load(path, ["dialogue_gradient={}"]).dialogue_gradient == DialogueGradientConfig()


def test_key_of_the_dialogue_gradient_can_be_overridden(path: Path) -> None:
    section = load(path, ["dialogue_gradient.method=dpo", "dialogue_gradient.steps=3"]).dialogue_gradient
    assert section is not None and (section.method, section.steps) == ("dpo", 3)


def test_dialogue_gradient_comes_back_from_its_dump(path: Path, tmp_path: Path) -> None:
    config = load(path, ["dialogue_gradient.method=grpo"])
    (tmp_path / "dumped.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"backend": "local", "adapter": "a/001"}, "adapter"),
        ({"backend": "vllm", "model": "m", "adapter": "a/001"}, "adapter"),
        ({"backend": "vllm", "model": "m", "weights": "a/001"}, "weights"),
        ({"backend": "openai", "model": "m", "base_url": "http://[::1]/v1", "weights": "a/001"}, "weights"),
    ],
)
def test_folders_of_the_assistant_are_relative_to_the_file(tmp_path: Path, section: dict[str, Any], key: str) -> None:
    config = load(changed(tmp_path, {"assistant": section}))
    assert getattr(config.assistant, key) == str(tmp_path / "a" / "001")


def endpoint(base_url: str, backend: str = "openai", **privacy: Any) -> dict[str, Any]:
    return {"assistant": {"backend": backend, "model": "m", "base_url": base_url}, "privacy": privacy}


@pytest.mark.parametrize("field", ["messages", "model", "n", "stream"])
def test_what_is_sent_cannot_be_replaced_behind_the_scan(tmp_path: Path, field: str) -> None:
    section = {"backend": "openai", "model": "m", "base_url": "http://[::1]/v1", "extra_body": {field: 1}}
    assert f"assistant.extra_body: {field!r} is set by gpta-local" in refusal(changed(tmp_path, {"assistant": section}))


def test_override_that_is_no_yaml_is_not_repeated(path: Path) -> None:
    assert refusal(path, "assistant.model=[sk-0123456789") == "--set: the value of 'assistant.model' is not valid YAML"


class TestHosts:
    @pytest.mark.parametrize("backend", ["openai", "vllm"])
    def test_endpoint_elsewhere_is_refused_with_both_keys(self, tmp_path: Path, backend: str) -> None:
        assert refusal(changed(tmp_path, endpoint("https://llm.example.org/v1", backend))).endswith(
            ": assistant.base_url goes to llm.example.org, which is not this machine. "
            "If it may see your description and gains, add it to privacy.allow_hosts"
        )

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.8.8.8", "0.0.0.0"])
    def test_endpoint_on_this_machine_needs_no_permission(self, tmp_path: Path, host: str) -> None:
        load(changed(tmp_path, endpoint(f"http://{host}:8000/v1")))

    @pytest.mark.parametrize(
        ("url", "allowed"),
        [
            ("https://llm.example.org/v1", "LLM.example.org"),
            ("https://LLM.example.org.:8443/v1", "llm.example.org"),
            ("http://10.0.0.5:8000/v1", "10.0.0.5"),
            ("http://[2001:db8::5]:8000/v1", "2001:0db8::5"),
        ],
    )
    def test_endpoint_whose_host_is_named_is_allowed(self, tmp_path: Path, url: str, allowed: str) -> None:
        load(changed(tmp_path, endpoint(url, allow_hosts=["other.example.org", allowed])))

    @pytest.mark.parametrize(
        "host", ["example.org", "llm.example.org.example.com", "127.0.0.1.example.org", "10.0.0.6"]
    )
    def test_host_that_only_looks_like_a_named_one_is_refused(self, tmp_path: Path, host: str) -> None:
        allowed = {"allow_hosts": ["llm.example.org", "10.0.0.5"]}
        assert f"goes to {host}," in refusal(changed(tmp_path, endpoint(f"http://{host}/v1", **allowed)))

    def test_user_name_that_looks_like_this_machine_does_not_deceive(self, tmp_path: Path) -> None:
        assert "goes to example.org," in refusal(changed(tmp_path, endpoint("http://127.0.0.1:80@example.org/v1")))

    @pytest.mark.parametrize(
        "entry", ["https://llm.example.org/v1", "llm.example.org:8000", "*.example.org", "10.0.0.0/8"]
    )
    def test_entry_that_is_no_host_is_told(self, tmp_path: Path, entry: str) -> None:
        told = refusal(changed(tmp_path, {"privacy": {"allow_hosts": [entry]}}))
        assert f"privacy.allow_hosts: {entry!r} is no name or address of a host" in told

    def test_hosts_are_kept_in_one_way_of_writing(self, tmp_path: Path) -> None:
        config = load(changed(tmp_path, {"privacy": {"allow_hosts": ["LLM.example.org.", "2001:0DB8::5"]}}))
        assert config.privacy.allow_hosts == ["llm.example.org", "2001:db8::5"]
