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
def test_shipped_configuration_loads_and_names_data_that_is_shipped(shipped: Path) -> None:
    data = load(shipped).data
    if "quickstart" in shipped.parts:
        assert all(Path(split).is_file() for split in (data.train, data.validation, data.test) if split)


def test_defaults_need_only_train_rows_and_a_description(path: Path) -> None:
    config = load(path)
    assert config.task == "text-classification"
    assert isinstance(config.assistant, LocalAssistantConfig)
    assert config.assistant.model == EMBEDDED_ASSISTANT
    assert config.downstream.backbone == DEMO_BACKBONE
    assert config.dialogue_gradient is None
    assert config.card.name == "restaurant", "as the file"


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"trainig": {"steps": 3}}, "trainig", "training"),
        ({"training": {"step": 3}}, "training.step", "steps"),
        ({"data": {"lable": "y"}}, "data.lable", "label"),
        ({"assistant": {"temprature": 1}}, "assistant.temprature", "temperature"),
        ({"assistant": {"backend": "vllm", "model": "m", "baseurl": "x"}}, "assistant.baseurl", "base_url"),
        ({"search": {"proposal": 4}}, "search.proposal", "proposals"),
        ({"dialogue_gradient": {"stps": 2}}, "dialogue_gradient.stps", "steps"),
        ({"privacy": {"leak_scan": {"treshold": 2}}}, "privacy.leak_scan.treshold", "threshold"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, changes: dict[str, Any], key: str, nearest: str) -> None:
    message = refusal(changed(tmp_path, changes))
    assert f"unknown key '{key}'" in message
    assert f"did you mean '{nearest}'?" in message


def test_unknown_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"data": {"zzzzzz": 1}}))
    assert "train, validation, test, text" in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(changed(tmp_path, {"training": {"steps": "many"}, "seed": "x", "sead": 1}))
    assert len(message.splitlines()) == 3


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


def test_quoted_labels_stay_words(tmp_path: Path) -> None:
    path = write_config(tmp_path / "labels.yaml", {"card": {"labels": ["yes", "no"]}})
    assert load(path).card.labels == ["yes", "no"]


class TestOverrides:
    @pytest.mark.parametrize(
        ("overrides", "section", "key", "value"),
        [
            (["training.steps=7"], "training", "steps", 7),
            (["training.steps=null"], "training", "steps", None),
            (["training.encoder_learning_rate=1e-4"], "training", "encoder_learning_rate", 1e-4),
            (["finish.plain_control=false"], "finish", "plain_control", False),
            (["card.labels=[a, b]"], "card", "labels", ["a", "b"]),
            (["card.description=accuracy = hits / rows"], "card", "description", "accuracy = hits / rows"),
            (["search.rounds=1", "search.rounds=2"], "search", "rounds", 2),
            (["downstream.max_length=64"], "downstream", "max_length", 64),
            (["dialogue_gradient.rank=8"], "dialogue_gradient", "rank", 8),
        ],
    )
    def test_value_is_read_as_yaml_and_the_last_one_wins(
        self, path: Path, overrides: list[str], section: str, key: str, value: Any
    ) -> None:
        assert getattr(getattr(load(path, overrides), section), key) == value

    def test_section_that_is_switched_off_is_switched_on_by_a_key(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\ndialogue_gradient: null\n", encoding="utf-8")
        section = load(path, ["dialogue_gradient.rank=8"]).dialogue_gradient
        assert section is not None and section.rank == 8

    @pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "training.=3", ".seed=1", ""])
    def test_bad_form_is_told(self, path: Path, override: str) -> None:
        assert "is not of the form a.b=c" in refusal(path, override)

    @pytest.mark.parametrize("override", ["seed=[1", "card.name=2024-13-45", "seed=" + "[" * 5000])
    def test_value_that_is_not_yaml_is_told(self, path: Path, override: str) -> None:
        assert "is not valid YAML" in refusal(path, override)

    def test_value_in_place_of_a_section_is_told(self, path: Path) -> None:
        assert "'train' in 'data.train.x' is a value, not a section" in refusal(path, "data.train.x=1")


class TestPaths:
    def test_paths_are_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "inner").mkdir()
        path = write_config(
            tmp_path / "inner" / "c.yaml",
            {
                "data": {"train": "../rows.csv", "validation": "/srv/rows.csv", "test": "t.jsonl"},
                "downstream": {"backbone": "encoder"},
                "assistant": {"model": "chat-model"},
            },
        )
        monkeypatch.chdir("/")
        config = load(path)
        assert config.data.train == str(tmp_path / "rows.csv")
        assert config.data.test == str(tmp_path / "inner" / "t.jsonl")
        assert config.data.validation == "/srv/rows.csv"
        assert config.downstream.backbone == str(tmp_path / "inner" / "encoder")
        assert isinstance(config.assistant, LocalAssistantConfig)
        assert config.assistant.model == str(tmp_path / "inner" / "chat-model")

    def test_home_is_expanded(self, tmp_path: Path) -> None:
        assert load(changed(tmp_path, {"data": {"train": "~/rows.csv"}})).data.train == str(Path.home() / "rows.csv")

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
        {"training": {"encoder_learning_rate": 1e-7}, "dialogue_gradient": {"rank": 4}},
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


def test_empty_section_of_the_dialogue_gradient_is_its_defaults(path: Path) -> None:
    assert load(path, ["dialogue_gradient={}"]).dialogue_gradient == DialogueGradientConfig()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"backend": "replay", "run": "a/001"}, "run"),
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

    def test_hosts_are_kept_in_one_way_of_writing(self, tmp_path: Path) -> None:
        config = load(changed(tmp_path, {"privacy": {"allow_hosts": ["LLM.example.org.", "2001:0DB8::5"]}}))
        assert config.privacy.allow_hosts == ["llm.example.org", "2001:db8::5"]
