"""The dialogue gradient on example texts inside a run: steps after the rounds, and what of a run they are."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from killing import outcome
from samples import Silent, config_of, label_text_reply, sentiment_rows, write_jsonl
from test_resume import Stop

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import write_example_texts
from gpta_local.config import load
from gpta_local.dialogue_gradient.trial import AdapterTrials
from gpta_local.errors import AdapterRefused, EndpointError, TrainingError
from gpta_local.record.history import History, open_existing
from gpta_local.record.journal import Journal
from gpta_local.record.verification import verify
from gpta_local.run import judging, loop, text_steps
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.judging import Judges
from gpta_local.run.loop import Run
from gpta_local.run.search import Search
from gpta_local.schema import Ask, Completion

pytestmark = pytest.mark.slow

WORDS = re.findall(
    r"\w+",
    """
    soup bread waiter table garden candle salad lemon sauce kitchen window evening music chair glass dessert coffee
    menu bill dinner friend street summer rain plate spoon butter onion pepper tomato cheese apple pear cake honey
    cold warm salty sweet bitter slow quick quiet loud bright dark fresh stale heavy light rude kind late early
    """,
)
ROW = "Our landlord never answered any of these letters about heating"
PERSON = "please write to anna.berg@example.org about the soup today"


class Scripted(LocalAssistant):
    """A small model that is really taught, but says what a script has: other texts for each adapter and seed."""

    said = ""

    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        return [[Completion(self.reply(ask, number), "scripted") for number in range(ask.n)] for ask in asks]

    def reply(self, ask: Ask, number: int) -> str:
        content = ask.request.messages[-1].content
        rng = random.Random(f"{content[-400:]} {number} {ask.sampling.seed} {self._adapter and self._adapter.name}")
        if ask.request.kind == "label-texts":
            return label_text_reply({"bad": " ".join(rng.sample(WORDS, 3)), "good": " ".join(rng.sample(WORDS, 3))})
        if ask.request.kind == "prefix":
            return f"{rng.choice(WORDS)}:"
        texts = [" ".join(rng.sample(WORDS, 8)) for _ in range(7)]
        return write_example_texts([*texts, self.said] if self.said else texts)


Trained = tuple[Path, dict[str, Any], Silent]
Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(
    near_prefixes_count: None, chat_model: Path, sentence: Path, tmp_path_factory: pytest.TempPathFactory
) -> Train:
    """Make a run, or go on with it: `train(folder, *overrides)`. Any agreement with a model of the rows is enough for
    texts to be used, and none is too good for them to be taught, unless `taught_below` says otherwise."""
    place = tmp_path_factory.mktemp("config")
    for split in ("validation", "test"):
        write_jsonl(place / f"{split}.jsonl", sentiment_rows())
    content: dict[str, Any] = {
        "data": {"test": "test.jsonl"},
        "assistant": {"backend": "local", "model": str(chat_model), "device": "cpu", "cache": False},
        "downstream": {"backbone": str(sentence)},
        "knowledge": {"example_texts": 8},
        "search": {"rounds": 2, "proposals": 4, "label_text_samples": 1},
        "training": {"steps": 3, "checkpoint_seconds": 0},
        "dialogue_gradient": {"steps": 1, "batch_size": 2, "rank": 2, "dialogues_per_winner": 2},
    }
    config_of(place, [*sentiment_rows(), {"text": ROW, "label": "bad"}], content)

    def run(
        folder: Path, *overrides: str, assistant: type[LocalAssistant] = Scripted, taught_below: float = 9.0
    ) -> Trained:
        observer = Silent()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judging, "LEAST_AGREEMENT", -9.0)
            patch.setattr(text_steps, "LEAST_AGREEMENT", taught_below)
            patch.setattr(loop, "open_assistant", lambda config: assistant(config.model, "cpu"))
            made = Run(load(place / "config.yaml", [*overrides]), observer)
            return folder, made.run(folder, resume=True), observer

    return run


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("runs") / "whole")


def asked(run: Path, kind: str = "example-texts") -> list[tuple[int, str, int]]:
    """(round, adapter, completions) of each request."""
    with sqlite3.connect(run / "history.sqlite") as db:
        return db.execute(
            "SELECT r.round, r.adapter, count(c.id) FROM requests r LEFT JOIN completions c ON c.request_id = r.id"
            " WHERE r.kind = ? GROUP BY r.id ORDER BY r.id",
            (kind,),
        ).fetchall()


def record(run: Path) -> History:
    return open_existing(run)


def texts_of(run: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (run / "examples.jsonl").read_text("utf-8").splitlines()]


def taught_in(adapter: Path) -> list[str]:
    """The texts of all replies that an adapter was taught."""
    rows = [json.loads(line) for line in (adapter / "dialogues.jsonl").read_text("utf-8").splitlines()]
    return [re.sub(r"^\d+\. ", "", line) for row in rows for line in row["reply"].splitlines()]


class TestWholeRun:
    def test_as_many_texts_are_asked_for_after_each_step_with_its_adapter(self, whole: Trained) -> None:
        assert asked(whole[0]) == [
            (number, name, 1) for number, name in ((0, ""), (3, "002"), (4, "003")) for _ in "ab"
        ]

    def test_adapters_of_prefixes_and_of_texts_have_numbers_of_their_own(self, whole: Trained) -> None:
        steps = record(whole[0]).steps()
        assert [(number, step.adapter) for number, step, _ in steps] == [(1, "001"), (3, "002"), (4, "003")]
        assert {verdict for *_, verdict in steps} <= {"kept", "rolled back"}
        assert {adapter for number, adapter, _ in asked(whole[0], "prefix") if number == 2} == {"", "001"}

    def test_texts_of_all_askings_are_judged_at_the_end_and_none_is_there_twice(self, whole: Trained) -> None:
        run, result, _ = whole
        texts = texts_of(run)
        assert len(texts) == len(set(texts)) == result["example_texts"]["usable"] == 42

    def test_second_step_is_taught_texts_of_the_first_asking_and_of_the_second(self, whole: Trained) -> None:
        texts, (_, first, second) = texts_of(whole[0]), sorted((whole[0] / "adapters").iterdir())
        of_first, of_second = set(texts[:14]), set(texts[14:28])
        assert set(taught_in(first)) <= of_first
        assert set(taught_in(second)) <= of_first | of_second and set(taught_in(second)) & of_second

    def test_verdict_is_by_the_kept_texts_of_the_lines_asked_for(self, whole: Trained) -> None:
        run, result, observer = whole
        askings = result["example_texts"]["askings"]
        assert [(of["adapter"], of["asked"], of["usable"]) for of in askings] == [
            ("", 16, 14),
            ("002", 16, 14),
            ("003", 16, 14),
        ]
        best = askings[0]["kept"]
        for of in askings[1:]:
            assert of["verdict"] == ("kept" if of["kept"] >= best else "rolled back")
            best = max(best, of["kept"])
        assert [verdict for *_, verdict in observer.texts] == [of["verdict"] for of in askings[1:]]
        assert [figures.hits for _, figures in record(run).askings()] == [of["kept"] for of in askings]

    def test_record_report_and_log_tell_of_them(self, whole: Trained) -> None:
        run, result, _ = whole
        told = invoke("history", run).stdout
        assert re.search(r"adapter 003, for example texts \(.*\): (kept|rolled back)", told)
        last = result["example_texts"]["askings"][-1]
        assert f"adapter 003: {last['kept']} example texts with their label among 14 usable of 16 asked for" in told
        assert f"{last['kept']} of 16 (14 usable) by adapter 003" in (run / "report.md").read_text("utf-8")
        assert verify(run).problems == []

    def test_judges_are_trained_once_for_each_set_of_texts(self, whole: Trained) -> None:
        titles = [json.loads(line)["title"] for line in (whole[0] / "metrics.jsonl").read_text("utf-8").splitlines()]
        judges = [title for title in titles if "to judge" in title]
        assert judges == [f"training with example texts, to judge {number} of them" for number in (14, 42)]


@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (Judges, "second", 1),
        (AdapterTrials, "step", 2),  # the first is of prefixes
        (Journal, "add_step", 2),
        (Search, "made_up", 2),
        (Journal, "add_completions", 5),
        (Journal, "judge_completions", 9),
        (Journal, "add_asking", 2),
        (AdapterTrials, "step", 3),
        (Judges, "judge_example_texts", 1),
        (FineTuner, "fine_tune", 4),
    ],
)
def test_run_that_was_stopped_ends_as_one_that_was_not(
    owner: type, method: str, at: int, whole: Trained, train: Train, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, owner, method, at)
        train(tmp_path / "run")
    train(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_texts_that_say_words_of_a_row_or_of_a_person_are_not_taught(train: Train, tmp_path: Path) -> None:
    class OfARow(Scripted):
        said = ROW.lower()

    class OfAPerson(Scripted):
        said = PERSON

    for assistant in (OfARow, OfAPerson):
        run, _, _ = train(tmp_path / assistant.__name__, "search.rounds=0", assistant=assistant)
        assert assistant.said in texts_of(run)
        said = [text for adapter in (run / "adapters").iterdir() for text in taught_in(adapter)]
        assert said and assistant.said not in said


class Refused(Scripted):
    def use_adapter(self, folder: Path | None) -> None:
        if folder is not None:
            raise AdapterRefused("adapters are switched off")
        super().use_adapter(folder)


class Gone(Scripted):
    def complete_all(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        if self._adapter is not None:
            raise EndpointError("the server is gone")
        return super().complete_all(asks)


ONLY_TEXTS = ("search.rounds=0", "dialogue_gradient.taught=[example-texts]")


@pytest.mark.parametrize(
    ("assistant", "why"),
    [(Refused, "adapters are switched off"), (Gone, "no further example texts: the server is gone")],
)
def test_adapter_that_does_not_answer_is_saved_only_and_the_run_goes_on_with_the_first_texts(
    assistant: type[LocalAssistant], why: str, train: Train, tmp_path: Path
) -> None:
    run, result, observer = train(tmp_path / "run", *ONLY_TEXTS, assistant=assistant)
    assert [(number, verdict) for number, _, verdict in record(run).steps()] == [(1, "saved only")]
    assert any(why in told for told in [*observer.warnings, *(refused for _, refused in observer.steps)])
    assert result["example_texts"]["usable"] == 14 and result["example_texts"]["used"]


def test_training_that_fails_is_a_warning_and_changes_nothing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise TrainingError("no memory")

    without, _, _ = train(tmp_path / "without", *ONLY_TEXTS, "dialogue_gradient.text_steps=0")
    monkeypatch.setattr(AdapterTrials, "step", fails)
    monkeypatch.setattr(Silent, "stage", lambda *_: None)  # the stage of the training ends early
    run, _, observer = train(tmp_path / "run", *ONLY_TEXTS)
    assert "example texts: the assistant stays as it is: no memory" in observer.warnings
    assert asked(run) == asked(without) == [(0, "", 1)] * 2
    for name in ("examples.jsonl", "model/0_Transformer/model.safetensors"):
        assert (run / name).read_bytes() == (without / name).read_bytes()


@pytest.mark.parametrize(
    ("budget", "name", "requests"),
    [("calls=3", "calls", 2), ("calls=5", "calls", 4), ("calls=6", "calls", 4), ("tokens=1", "tokens", 2)],
)
def test_nothing_is_taught_that_the_budget_cannot_ask(
    budget: str, name: str, requests: int, train: Train, tmp_path: Path
) -> None:
    run, _, observer = train(tmp_path / "run", *ONLY_TEXTS, f"budget.{budget}")
    assert len(asked(run)) == requests
    assert len(record(run).steps()) == requests // 2 - 1
    assert f"budget.{name} is reached: no more example texts are asked for" in observer.warnings


def test_own_texts_of_the_user_are_not_taught(train: Train, tmp_path: Path) -> None:
    own = "knowledge.own_example_texts={bad: [the soup was as cold as a stone], good: [we loved the candles so much]}"
    run, result, _ = train(tmp_path / "run", *ONLY_TEXTS, own)
    assert result["example_texts"]["usable"] == 44
    assert [of["usable"] for of in result["example_texts"]["askings"]] == [14, 14, 14]
    assert not [text for adapter in (run / "adapters").iterdir() for text in taught_in(adapter) if "stone" in text]


def test_texts_that_can_be_used_as_they_are_are_not_taught(train: Train, tmp_path: Path) -> None:
    run, _, observer = train(tmp_path / "run", taught_below=-9.0)
    assert len({number for number, *_ in asked(run)}) == 1
    assert any("example texts are not taught" in note for note in observer.notes)
