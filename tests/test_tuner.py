"""Which adapter answers: half of a round for one on trial, then the better one, and the other is let go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_models import DIALOGUES, dialogue, greedy, settings, tiny_chat_llama
from servers import ROOT

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.config import Config, load
from gpta_local.dialogue_gradient.trial import Tuner
from gpta_local.errors import AdapterRefused, ConfigError, ModelError
from gpta_local.schema import Completion, ProposalFigures, Request, Sampling

QUICKSTART = ROOT / "configs" / "quickstart" / "quickstart.yaml"
OLD, NEW = Path("adapters/001"), Path("adapters/002")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_llama(tmp_path_factory.mktemp("models") / "chat")


class Recorder:
    """An assistant that notes what is done with its adapters."""

    name = "recorder"
    takes_adapters = True
    adapters_refused = ""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path | None]] = []

    def check(self) -> str:
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


def on_trial(trusted: Path | None = OLD) -> tuple[Tuner, Recorder]:
    assistant = Recorder()
    tuner = Tuner(assistant, configured())
    tuner.trusted, tuner.trial = trusted, NEW
    assistant.calls.clear()
    return tuner, assistant


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
    tuner, assistant = on_trial()
    assert tuner.judge(KEPT[case]) == "kept"
    assert (tuner.trusted, tuner.trial) == (NEW, None)
    assert assistant.calls == [("use", NEW), ("drop", OLD)]


@pytest.mark.parametrize("case", ROLLED_BACK)
def test_adapter_is_rolled_back_for(case: str) -> None:
    tuner, assistant = on_trial()
    assert tuner.judge(ROLLED_BACK[case]) == "rolled back"
    assert (tuner.trusted, tuner.trial) == (OLD, None)
    assert assistant.calls == [("use", OLD), ("drop", NEW)]


def test_base_model_is_gone_back_to() -> None:
    tuner, assistant = on_trial(trusted=None)
    assert tuner.judge(ROLLED_BACK["fewer hits"]) == "rolled back"
    assert assistant.calls == [("use", None), ("drop", NEW)]


def test_base_model_is_not_dropped() -> None:
    tuner, assistant = on_trial(trusted=None)
    assert tuner.judge(KEPT["more hits"]) == "kept"
    assert assistant.calls == [("use", NEW)]


def test_all_proposals_are_the_trusted_adapters() -> None:
    tuner = Tuner(Recorder(), configured())
    assert tuner.shares(16) == [(None, 16)]


@pytest.mark.parametrize(("proposals", "halves"), [(16, (8, 8)), (7, (4, 3)), (1, (1, 0))])
def test_adapter_on_trial_gets_half_of_the_proposals(proposals: int, halves: tuple[int, int]) -> None:
    tuner, _ = on_trial()
    assert tuner.shares(proposals) == [(OLD, halves[0]), (NEW, halves[1])]


def test_no_trial_after_the_verdict() -> None:
    tuner, _ = on_trial()
    tuner.judge(KEPT["more hits"])
    assert tuner.shares(16) == [(NEW, 16)]


def test_configured_adapter_answers_first(tmp_path: Path) -> None:
    assistant = Recorder()
    tuner = Tuner(assistant, configured({"adapter": str(tmp_path / "given")}))
    assert assistant.calls == [("use", tmp_path / "given")]
    assert tuner.shares(4) == [(tmp_path / "given", 4)]


class TestStep:
    def step(self, tuner: Tuner, folder: Path, dialogues: Sequence[Any] = DIALOGUES) -> tuple[Any, str]:
        tuner.folder = folder
        number = 1 + sum(path.is_dir() and path.name.isdigit() for path in folder.glob("*"))
        return tuner.step(number, dialogues, lambda texts: [0.0] * len(texts), lambda: None)

    def test_new_adapter_is_put_on_trial(self, folder: Path, tmp_path: Path) -> None:
        tuner = Tuner(LocalAssistant(str(folder), "cpu"), configured())
        step, refused = self.step(tuner, tmp_path)
        assert (step.adapter, refused) == ("001", "")
        assert (tuner.trusted, tuner.trial) == (None, tmp_path / "001")

    def test_each_step_has_a_folder_and_a_seed_of_its_own(self, folder: Path, tmp_path: Path) -> None:
        tuner = Tuner(LocalAssistant(str(folder), "cpu"), configured())
        names = []
        for _ in range(2):
            step, _ = self.step(tuner, tmp_path)
            names.append(step.adapter)
            tuner.judge((figures(), figures()))
        assert names == ["001", "002"] == sorted(path.name for path in tmp_path.iterdir())
        first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in names)
        assert first != second

    def test_adapter_on_trial_can_be_asked_at_once(self, folder: Path, tmp_path: Path) -> None:
        assistant = LocalAssistant(str(folder), "cpu")
        tuner = Tuner(assistant, configured(steps=60, learning_rate=1e-2, rank=16))
        self.step(tuner, tmp_path, [dialogue("Menu:")])
        (trusted, _), (trial, _) = tuner.shares(2)
        said = []
        for adapter in (trusted, trial):
            assistant.use_adapter(adapter)
            said.append(greedy(assistant))
        assert said[1] == "Menu:" != said[0]

    def test_refused_adapter_is_saved_only_and_the_base_goes_on(self, folder: Path, tmp_path: Path) -> None:
        assistant = Refusing(str(folder), "cpu")
        tuner = Tuner(assistant, configured())
        words = greedy(assistant)
        step, refused = self.step(tuner, tmp_path)
        assert refused == "adapters are switched off"
        assert (tmp_path / step.adapter / "adapter_model.safetensors").is_file()
        assert tuner.shares(4) == [(None, 4)]
        assert greedy(assistant) == words

    def test_step_goes_on_from_the_configured_adapter(self, folder: Path, tmp_path: Path) -> None:
        learn = {"steps": 60, "learning_rate": 1e-2, "rank": 16}
        self.step(Tuner(LocalAssistant(str(folder), "cpu"), configured(**learn)), tmp_path, [dialogue("Menu:")])
        given = {"adapter": str(tmp_path / "001")}
        fresh, _ = self.step(
            Tuner(LocalAssistant(str(folder), "cpu"), configured()), tmp_path / "fresh", [dialogue("Menu:")]
        )
        more, _ = self.step(
            Tuner(LocalAssistant(str(folder), "cpu"), configured(given)), tmp_path / "more", [dialogue("Menu:")]
        )
        assert more.losses[0] < 1 < fresh.losses[0]

    def test_configured_adapter_of_another_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"there is no adapter_config\.json"):
            Tuner(LocalAssistant(str(folder), "cpu"), configured({"adapter": str(tmp_path)}))


class TestWhatCannotBeTaught:
    def test_replay_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"dialogue_gradient: a replay cannot be taught\. Leave the section out"):
            Tuner(Recorder(), configured({"backend": "replay", "run": str(tmp_path)}))

    def test_endpoint_without_weights_is_refused(self) -> None:
        section = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
        with pytest.raises(ConfigError, match=r"weights of the served model are not known.*assistant\.weights"):
            Tuner(Recorder(), configured(section))

    def test_endpoint_with_weights_is_accepted(self, tmp_path: Path) -> None:
        section = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
        Tuner(Recorder(), configured(section | {"weights": str(tiny_chat_llama(tmp_path / "chat"))}))

    def test_weights_that_are_none_are_told(self, tmp_path: Path) -> None:
        section = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
        with pytest.raises(ModelError, match=r"assistant\.weights"):
            Tuner(Recorder(), configured(section | {"weights": str(tmp_path / "none")}))

    @pytest.mark.parametrize("known", [True, False])
    def test_weights_that_a_vllm_server_names_are_enough(self, tmp_path: Path, known: bool) -> None:
        section = {"backend": "vllm", "model": "m"}
        endpoint: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "api_key": None}
        endpoint |= {"timeout": 1.0, "max_retries": 0, "concurrency": 1}
        assistant = VLLMAssistant("m", weights=tmp_path if known else None, **endpoint)
        if known:
            Tuner(assistant, configured(section))
        else:
            with pytest.raises(ConfigError, match=r"assistant\.weights"):
                Tuner(assistant, configured(section))
        assistant.close()

    def test_without_the_section_any_assistant_will_do(self, tmp_path: Path) -> None:
        config = load(QUICKSTART, [f"assistant={{backend: replay, run: {tmp_path}}}"])
        assert Tuner(Recorder(), config).shares(5) == [(None, 5)]
