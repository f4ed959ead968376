"""Which adapter answers: half of a round for one on trial, then the better one, and the other is let go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from chat_models import DIALOGUES, dialogue, greedy, settings
from samples import CARD, OneByOne
from servers import ROOT

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import example_texts_request, label_texts_request, prefix_request
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.config import Config, load
from gpta_local.dialogue_gradient.trial import AdapterTrials
from gpta_local.errors import AdapterRefused, ConfigError, ModelError
from gpta_local.run.search import Search
from gpta_local.schema import Ask, Completion, ProposalFigures, Request, Sampling

QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"
LEARN = {"steps": 60, "learning_rate": 1e-2, "rank": 16}
OLD, NEW = Path("adapters/001"), Path("adapters/002")


class Recorder(OneByOne):
    """An assistant that notes what is done with its adapters."""

    name = "recorder"
    takes_adapters = True
    adapters_refused = ""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path | None]] = []

    def check(self, ask: Ask, tell: Callable[[str], None]) -> str:
        return self.name

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        return [Completion("a", self.name)] * n

    def use_adapter(self, folder: Path | None) -> None:
        self.calls.append(("use", folder))

    def drop_adapter(self, folder: Path) -> None:
        self.calls.append(("drop", folder))

    def close(self) -> None: ...


class Refusing(LocalAssistant):
    """A model in this process whose adapters are refused, as some servers do."""

    def use_adapter(self, folder: Path | None) -> None:
        if folder is not None:
            raise AdapterRefused("adapters are switched off")
        super().use_adapter(folder)


def configured(assistant: dict[str, Any] | None = None, **overrides: Any) -> Config:
    """The quickstart's configuration with the dialogue gradient."""
    section = settings(**overrides).model_dump(mode="json")
    given = {"backend": "local", **(assistant or {})}
    return load(QUICKSTART, [f"dialogue_gradient={yaml.safe_dump(section)}", f"assistant={yaml.safe_dump(given)}"])


def figures(hits: int = 0, fresh: int = 8, asked: int = 8, mean_gain: float | None = 0.0) -> ProposalFigures:
    return ProposalFigures("", asked, fresh, hits, mean_gain)


def on_trial(trusted: Path | None = OLD) -> tuple[AdapterTrials, Recorder]:
    assistant = Recorder()
    trials = AdapterTrials(assistant, configured())
    trials.trusted, trials.trial = trusted, NEW
    assistant.calls.clear()
    return trials, assistant


KEPT = {
    "more hits": (figures(hits=1), figures(hits=2)),
    "a higher hit rate of fewer": (figures(hits=2), figures(hits=1, fresh=3, asked=3)),
    "equal hits, a higher mean gain": (figures(hits=1, mean_gain=0.01), figures(hits=1, mean_gain=0.02)),
    "no hits, a higher mean gain": (figures(mean_gain=-0.02), figures(mean_gain=-0.01)),
    "all the same": (figures(hits=1, mean_gain=0.01), figures(hits=1, mean_gain=0.01)),
    "something new where there was nothing": (figures(fresh=0, mean_gain=None), figures()),
    "a third as many new ones": (figures(hits=1), figures(hits=2, fresh=3)),
}
ROLLED_BACK = {
    "fewer hits": (figures(hits=2), figures(hits=1)),
    "fewer hits at a higher mean gain": (figures(hits=2, mean_gain=0.0), figures(hits=1, mean_gain=0.5)),
    "equal hits, a lower mean gain": (figures(hits=1, mean_gain=0.02), figures(hits=1, mean_gain=0.01)),
    "nothing new": (figures(), figures(fresh=0, mean_gain=None)),
    "too few new ones, though all are hits": (figures(hits=1), figures(hits=2, fresh=2)),
    "too few new ones of unequal numbers": (figures(hits=0, fresh=9, asked=9), figures(hits=2, fresh=2, asked=8)),
}


@pytest.mark.parametrize("case", KEPT)
def test_adapter_is_kept_for(case: str) -> None:
    trials, assistant = on_trial()
    assert trials.judge(KEPT[case]) == "kept"
    assert (trials.trusted, trials.trial) == (NEW, None)
    assert assistant.calls == [("use", NEW), ("drop", OLD)]


@pytest.mark.parametrize("case", ROLLED_BACK)
def test_adapter_is_rolled_back_for(case: str) -> None:
    trials, assistant = on_trial()
    assert trials.judge(ROLLED_BACK[case]) == "rolled back"
    assert (trials.trusted, trials.trial) == (OLD, None)
    assert assistant.calls == [("use", OLD), ("drop", NEW)]


def test_base_model_is_gone_back_to_and_never_dropped() -> None:
    trials, assistant = on_trial(trusted=None)
    assert trials.judge(ROLLED_BACK["fewer hits"]) == "rolled back"
    assert assistant.calls == [("use", None), ("drop", NEW)]
    trials, assistant = on_trial(trusted=None)
    assert trials.judge(KEPT["more hits"]) == "kept"
    assert assistant.calls == [("use", NEW)]


@pytest.mark.parametrize(("proposals", "halves"), [(16, (8, 8)), (7, (4, 3)), (1, (1, 0))])
def test_adapter_on_trial_gets_half_of_the_proposals_until_the_verdict(proposals: int, halves: tuple[int, int]) -> None:
    trials, _ = on_trial()
    assert trials.shares(proposals) == [(OLD, halves[0]), (NEW, halves[1])]
    trials.judge(KEPT["more hits"])
    assert trials.shares(16) == [(NEW, 16)]


def test_configured_adapter_answers_first(tmp_path: Path) -> None:
    assistant = Recorder()
    trials = AdapterTrials(assistant, configured({"adapter": str(tmp_path / "given")}))
    assert assistant.calls == [("use", tmp_path / "given")]
    assert trials.shares(4) == [(tmp_path / "given", 4)]


def test_configured_adapter_that_was_taught_example_texts_alone_writes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text(json.dumps({"taught": ["example-texts"]}))
    assistant = Recorder()
    trials = AdapterTrials(assistant, configured({"adapter": str(tmp_path)}))
    assert assistant.calls == [("use", tmp_path), ("use", None)]
    assert trials.shares(4) == [(None, 4)]
    assert [trials.start(kind) for kind in ("label-texts", "example-texts")] == [None, tmp_path]


class TestStep:
    def step(self, trials: AdapterTrials, folder: Path, dialogues: Sequence[Any] = DIALOGUES) -> tuple[Any, str]:
        trials.folder = folder
        return trials.step(dialogues, "prefix", lambda: None)

    def test_each_step_has_a_folder_and_a_seed_of_its_own(self, chat_model: Path, tmp_path: Path) -> None:
        trials = AdapterTrials(LocalAssistant(str(chat_model), "cpu"), configured())
        names = []
        for _ in range(2):
            step, _ = self.step(trials, tmp_path)
            names.append(step.adapter)
            trials.judge((figures(), figures()))
        assert names == ["001", "002"] == sorted(path.name for path in tmp_path.iterdir())
        first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in names)
        assert first != second

    def test_new_adapter_is_put_on_trial_and_a_later_step_can_go_on_from_it(
        self, chat_model: Path, tmp_path: Path
    ) -> None:
        assistant = LocalAssistant(str(chat_model), "cpu")
        trials = AdapterTrials(assistant, configured(**LEARN))
        first, refused = self.step(trials, tmp_path, [dialogue("Menu:")])
        assert refused == ""
        assert (trials.trusted, trials.trial) == (None, tmp_path / "001")
        said = []
        for adapter, _ in trials.shares(2):
            assistant.use_adapter(adapter)
            said.append(greedy(assistant))
        assert said[1] == "Menu:" != said[0]
        going_on = AdapterTrials(LocalAssistant(str(chat_model), "cpu"), configured({"adapter": str(tmp_path / "001")}))
        more, _ = self.step(going_on, tmp_path / "more", [dialogue("Menu:")])
        assert more.losses[0] < 1 < first.losses[0]

    def test_refused_adapter_is_saved_only_and_the_base_goes_on(self, chat_model: Path, tmp_path: Path) -> None:
        assistant = Refusing(str(chat_model), "cpu")
        trials = AdapterTrials(assistant, configured())
        words = greedy(assistant)
        step, refused = self.step(trials, tmp_path)
        assert refused == "adapters are switched off"
        assert (tmp_path / step.adapter / "adapter_model.safetensors").is_file()
        assert trials.shares(4) == [(None, 4)]
        assert greedy(assistant) == words

    def test_where_several_gpus_are_visible_a_process_that_sees_one_trains(
        self, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.delattr("gpta_local.dialogue_gradient.trial.train_adapter")  # not in this process
        assistant = LocalAssistant(str(chat_model), "cpu")
        trials = AdapterTrials(assistant, configured({"model": str(chat_model)}, steps=2))
        step, refused = self.step(trials, tmp_path)
        assert not refused and trials.trial == tmp_path / step.adapter

    def test_configured_adapter_of_another_model_is_refused(self, chat_model: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"there is no adapter_config\.json"):
            AdapterTrials(LocalAssistant(str(chat_model), "cpu"), configured({"adapter": str(tmp_path)}))


ENDPOINT = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}


class TestWhatCannotBeTaught:
    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"backend": "replay", "run": "/run"}, "a replay cannot be taught. Leave the section out"),
            (ENDPOINT, "weights of the served model are not known.*assistant.weights"),
            ({**ENDPOINT, "weights": "/no/weights"}, "assistant.weights"),
        ],
        ids=["replay", "unknown weights", "no weights"],
    )
    def test_assistant_without_known_weights_is_refused(self, section: dict[str, Any], message: str) -> None:
        with pytest.raises((ConfigError, ModelError), match=message):
            AdapterTrials(Recorder(), configured(section))

    def test_endpoint_with_weights_is_accepted(self, chat_model: Path) -> None:
        AdapterTrials(Recorder(), configured({**ENDPOINT, "weights": str(chat_model)}))

    def test_weights_that_a_vllm_server_names_are_enough(self, chat_model: Path) -> None:
        endpoint: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "api_key": None}
        endpoint |= {"timeout": 1.0, "max_retries": 0, "concurrency": 1}
        assistant = VLLMAssistant("m", weights=chat_model, **endpoint)
        AdapterTrials(assistant, configured({"backend": "vllm", "model": "m"}))
        assistant.close()

    def test_without_the_section_any_assistant_will_do(self, tmp_path: Path) -> None:
        config = load(QUICKSTART, [f"assistant={{backend: replay, run: {tmp_path}}}"])
        assert AdapterTrials(Recorder(), config).shares(5) == [(None, 5)]


def test_only_prefixes_of_an_adapter_are_sampled_hotter(tmp_path: Path) -> None:
    asked: list[Ask] = []

    def exchange(number: int, asks: Sequence[Ask], *_: Any) -> list[Any]:
        asked.extend(asks)
        return []

    (tmp_path / "step.json").write_text('{"temperature": 1.5}')
    parts = {
        "leak_scan": SimpleNamespace(check=lambda request: None),
        "plan": SimpleNamespace(sampling=lambda number, request: Sampling(temperature=0.8)),
        "journal": SimpleNamespace(exchange=exchange),
        "assistant": SimpleNamespace(complete_all=None),
        "observer": SimpleNamespace(advance=lambda: None),
        "hinted": set(),
    }
    requests = [prefix_request(CARD, []), label_texts_request(CARD), example_texts_request(CARD, CARD.labels[0])]
    Search.ask_all(cast(Search, SimpleNamespace(**parts)), 0, requests, 1, tmp_path)
    assert [ask.sampling.temperature for ask in asked] == pytest.approx([1.2, 0.8, 0.8])
