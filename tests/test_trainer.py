"""The outer loop: the quickstart's data, a tiny backbone and a scripted assistant to a run directory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killing import outcome
from samples import OneByOne, Silent

from gpta_local.assistant.prompts import TRIED
from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.config import load
from gpta_local.data.examples import Example
from gpta_local.dialogue_gradient.trial import AdapterTrials
from gpta_local.downstream.inference import evaluate
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier
from gpta_local.downstream.product import open_product
from gpta_local.errors import EndpointError, PrivacyError
from gpta_local.record.history import open_existing
from gpta_local.record.verification import verify
from gpta_local.report import summary
from gpta_local.run import loop
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.finish import Finish
from gpta_local.schema import Ask, Completion, Request, Sampling
from gpta_local.tasks.base import Evaluation
from gpta_local.tasks.classification import ClassificationTask

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart" / "quickstart.yaml"
SMALL = (
    "knowledge.example_texts=0",
    "search.rounds=2",
    "search.proposals=7",
    "search.label_text_samples=2",
    "training.steps=6",
    "finish.finalists=1",
)
PREFIXES = ("Message to the clinic:", "Which department?", "A patient asks:", '"Reason:"', "Reason:", "0.12 Reason", "")
FEWER = ("data.test=validation.jsonl", "finish.plain_control=false")
"""For runs that are not about the controls."""
LABEL_TEXTS = """appointments: I want to move my visit
billing: a question about an invoice
prescriptions: I need a refill of my medicine
test_results: what does my blood test mean
medical_records: please send a copy of my records
nurse_advice: I have a fever, should I come in
technical_support: the login does not work"""


class Scripted(OneByOne):
    """An assistant that says fixed things, in turn."""

    name = "scripted"
    takes_adapters = False
    adapters_refused = "A script cannot be taught"

    def __init__(self, prefixes: Sequence[str] = PREFIXES, label_texts: str = LABEL_TEXTS) -> None:
        self.replies = {"prefix": prefixes, "label-texts": (label_texts,)}
        self.requests: list[Request] = []

    def check(self, ask: Ask, tell: Callable[[str], None]) -> str:
        return self.name

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        self.requests.append(request)
        replies = self.replies[request.kind]
        return [Completion(replies[i % len(replies)], self.name, "stop", 100, 10) for i in range(n)]

    def use_adapter(self, folder: Path | None) -> None: ...

    def drop_adapter(self, folder: Path) -> None: ...

    def close(self) -> None: ...


Finished = tuple[dict[str, Any], Silent]
Train = Callable[..., Finished]


@pytest.fixture(scope="module")
def train(near_prefixes_count: None, sentence: Path, chat_model: Path) -> Train:
    """Make a run: `train(folder, *overrides, assistant=…)`; without an assistant, of the one that overrides name."""

    def run(folder: Path, *overrides: str, assistant: Scripted | None = None) -> Finished:
        observer = Silent()
        models = (f"downstream.backbone={sentence}", f"assistant.model={chat_model}")
        config = load(QUICKSTART, [*SMALL, *models, *overrides])
        with pytest.MonkeyPatch.context() as patch:
            if assistant is not None:
                patch.setattr(loop, "open_assistant", lambda settings: assistant)
            return loop.Run(config, observer).run(folder), observer

    return run


def titles(folder: Path) -> list[str]:
    """Of the trainings, in order."""
    return [json.loads(line)["title"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def assistant() -> Scripted:
    """Of the whole run."""
    return Scripted()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the whole run."""
    return tmp_path_factory.mktemp("runs") / "whole"


@pytest.fixture(scope="module")
def finished(train: Train, folder: Path, assistant: Scripted) -> Finished:
    """A run with validation and test rows, and all its controls."""
    return train(folder, assistant=assistant)


@pytest.mark.usefixtures("finished")
class TestWholeRun:
    def test_directory_is_complete_and_for_its_owner_only(self, folder: Path, finished: Finished) -> None:
        assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(finished[0]))
        files = {"audit.jsonl", "config.yaml", "history.sqlite", "metrics.jsonl", "model", "summary.json"}
        assert {path.name for path in folder.iterdir()} == files | {"predictions.jsonl", "report.html", "report.md"}
        assert folder.stat().st_mode & 0o077 == 0

    def test_summary_has_the_product_and_its_controls_on_all_test_rows(self, finished: Finished) -> None:
        result, _ = finished
        assert set(result["arms"]) == {"gpta", "no_prefix", "card", "plain"}
        assert all(arm["rows"] == 315 for arm in result["arms"].values())
        assert result["evaluated_on"] == "test"

    def test_product_scores_the_same_through_the_stock_library(self, folder: Path, finished: Finished) -> None:
        again, arm = evaluate(folder), finished[0]["arms"]["gpta"]
        assert (again["accuracy"], again["macro_f1"]) == pytest.approx((arm["accuracy"], arm["macro_f1"]), abs=1e-9)

    def test_best_prefixes_are_templates_of_the_label_texts(self, folder: Path, finished: Finished) -> None:
        result, _ = finished
        scored = sorted(open_existing(folder).scored(), key=lambda s: s.gain, reverse=True)
        assert result["templates"] == [s.text for s in scored if s.gain > s.standard_error]
        assert titles(folder)[:2] == ["training without a prefix", "training with templates"]
        assert result["arms"]["no_prefix"]["loss"] != result["arms"]["gpta"]["loss"], "the control has none"

    def test_every_completion_is_recorded_with_what_became_of_it(self, folder: Path, finished: Finished) -> None:
        assert finished[1].rounds[0].proposals == {"accepted": 4, "repeated": 1, "unusable": 2}
        with sqlite3.connect(folder / "history.sqlite") as db:
            counts = db.execute("SELECT outcome, count(*) FROM completions GROUP BY outcome").fetchall()
        assert dict(counts) == {"accepted": 5, "repeated": 7, "unusable": 4}

    def test_later_rounds_see_earlier_gains(self, assistant: Scripted) -> None:
        first, second = (r.messages[-1].content for r in assistant.requests if r.kind == "prefix")
        assert TRIED not in first and TRIED in second and "Which department?" in second

    def test_replay_of_it_is_the_same_to_the_bit(self, train: Train, folder: Path, tmp_path: Path) -> None:
        train(tmp_path / "again", f"assistant={{backend: replay, run: {folder}}}")
        whole, again = outcome(folder), outcome(tmp_path / "again")
        del whole["config.yaml"], again["config.yaml"]
        assert again == whole


@pytest.fixture(scope="module")
def starts() -> list[list[list[str]]]:
    """The label texts of each model of the finish."""
    return []


@pytest.fixture(scope="module")
def result(train: Train, starts: list[list[list[str]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    start, contest = SentenceClassifier.start_from_label_texts, Finish.contest

    def heard(self: SentenceClassifier, label_texts: list[list[str]], scale: float) -> None:
        starts.append(label_texts)
        start(self, label_texts, scale)

    def finish(self: Finish, *arguments: Any) -> Any:
        starts.clear()  # those of the search
        return contest(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceClassifier, "start_from_label_texts", heard)
        patch.setattr(Finish, "contest", finish)
        patch.setattr(Finish, "best_prefixes", lambda self: [*PREFIXES[:2]])
        changes = (*FEWER, "finish.templates=2", "data.validation=null")
        return train(tmp_path_factory.mktemp("runs") / "run", *changes, assistant=Scripted())[0]


class TestWithoutValidationRows:
    def test_head_starts_from_the_label_texts_behind_the_templates(
        self, result: dict[str, Any], starts: list[list[list[str]]]
    ) -> None:
        own = [[texts[name] for texts in result["label_texts"]] for name in result["label_texts"][0]]
        templates = result["templates"]
        assert len(templates) == 2
        assert starts[0] == own, "the control has none"
        assert starts[1][0] == [*own[0], *(f"{t} {text}" for t in templates for text in own[0])]

    def test_templates_are_kept(self, result: dict[str, Any]) -> None:
        assert "no_prefix" in result["differences"] and result["templates_on_validation"] is None

    def test_choice_is_cross_validated(self, result: dict[str, Any]) -> None:
        assert result["selection"]["rows"] == "cross-validated training"


def test_templates_that_validation_rows_speak_against_are_left_out(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "validation_gain", lambda *_: (-0.3, 0.1))
    result, observer = train(tmp_path / "run", *FEWER, assistant=Scripted())
    assert result["templates"] == []
    assert [note for note in observer.notes if note.startswith("no templates: the best ")]
    assert result["selection"]["contestants"][0]["text"] == "" and result["prefix"] == ""
    assert "no_prefix" not in result["differences"], "the product is the control"
    assert result["templates_on_validation"] == {"gain": -0.3, "standard_error": 0.1}


ONE_FILE = ("data.validation=null", "data.test=null")


OneFile = tuple[Path, dict[str, Any], Silent]


@pytest.fixture(scope="module")
def one_file(train: Train, tmp_path_factory: pytest.TempPathFactory) -> OneFile:
    folder = tmp_path_factory.mktemp("one-file") / "run"
    return folder, *train(folder, *ONE_FILE, assistant=Scripted())


class TestOneFile:
    def test_run_ends_with_a_cross_validated_accuracy_of_every_training_row(self, one_file: OneFile) -> None:
        _, result, _ = one_file
        assert result["evaluated_on"] == "cross-validated training"
        assert set(result["arms"]) == {"gpta", "plain"} and set(result["differences"]) == {"plain"}
        for arm in result["arms"].values():
            low, high = arm["interval"]
            assert arm["rows"] == 56 and 0 <= low <= arm["accuracy"] <= high <= 1
        assert summary.verdict(result)[-1].startswith("Cross-validated")

    def test_no_control_is_trained_besides(self, one_file: OneFile) -> None:
        (title,) = titles(one_file[0])
        assert title.startswith("training with "), "that of the product"

    def test_without_parts_nothing_is_measured_and_nothing_claimed(
        self, train: Train, one_file: OneFile, tmp_path: Path
    ) -> None:
        result, _ = train(tmp_path / "run", *ONE_FILE, "finish.folds=0", assistant=Scripted())
        assert result["arms"] == {} == result["differences"] and result["evaluated_on"] == ""
        weights = "model/0_Transformer/model.safetensors"
        assert (tmp_path / "run" / weights).read_bytes() == (one_file[0] / weights).read_bytes()


def test_no_model_is_measured_twice_on_the_same_rows(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, str, int]] = []
    measure = ClassificationTask.evaluate

    def heard(self: ClassificationTask, model: DownstreamModel, rows: Sequence[Example], prefix: str) -> Evaluation:
        measured.append((id(model), prefix, id(rows[0])))
        return measure(self, model, rows, prefix)

    monkeypatch.setattr(ClassificationTask, "evaluate", heard)
    train(tmp_path / "run", "data.test=null", assistant=Scripted())
    assert len(measured) == len(set(measured)) >= 4


def test_no_templates_are_used_where_none_are_wanted(train: Train, tmp_path: Path) -> None:
    result, _ = train(tmp_path / "run", *FEWER, "finish.templates=0", assistant=Scripted())
    assert result["templates"] == [] and titles(tmp_path / "run")[0] == "training without a prefix"
    assert titles(tmp_path / "run").count("training without a prefix") == 1


class Unplugged(Scripted):
    """Stops at its third request."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        if len(self.requests) == 2:
            raise self.error
        return super().complete(request, n, sampling)


@pytest.mark.parametrize("error", [EndpointError("gone"), KeyboardInterrupt()], ids=["endpoint", "ctrl-c"])
def test_what_was_answered_before_a_round_broke_off_stays_on_record(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(AdapterTrials, "shares", lambda self, n: [(None, 3), (None, n - 3)])
    with pytest.raises(type(error)):
        train(tmp_path / "run", assistant=Unplugged(error))
    history = open_existing(tmp_path / "run")
    assert [completion.text for completion in history.completions("prefix")] == list(PREFIXES[:3])
    assert history.cost() == {"completions": 5, "prompt_tokens": 500, "completion_tokens": 50}
    history.close()
    (problem,) = verify(tmp_path / "run").problems
    assert "should tell of the end of the run" in problem.what
    again = ReplayAssistant(tmp_path / "run").complete(Request("prefix", ()), 3, Sampling())
    assert [completion.text for completion in again] == list(PREFIXES[:3])


def test_request_with_words_of_a_row_is_neither_recorded_nor_sent(
    sentence: Path, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = Scripted()
    monkeypatch.setattr(loop, "open_assistant", lambda settings: assistant)
    models = (f"downstream.backbone={sentence}", f"assistant.model={chat_model}")
    run = loop.Run(load(QUICKSTART, [*SMALL, *FEWER, *models]), Silent())
    leaking = replace(run.plan.card, description=run.plan.splits.test[0].texts[0])
    run.plan = replace(run.plan, card=leaking)
    with pytest.raises(PrivacyError) as raised:
        run.run(tmp_path / "run")
    assert raised.value.where == "card.description"
    assert assistant.requests == []
    assert open_existing(tmp_path / "run").requests() == []


def test_assistant_without_a_usable_reply_leaves_the_names_of_labels_and_no_prefix(
    train: Train, tmp_path: Path
) -> None:
    useless = Scripted(prefixes=("!?",), label_texts="I cannot do that.")
    result, observer = train(tmp_path / "run", *FEWER, assistant=useless)
    assert observer.usable == 0 and result["label_texts"][0]["test_results"] == "test results"
    assert [entry.chosen.text for entry in observer.rounds] == ["", ""]
    assert open_product(tmp_path / "run").record["prefix"] == result["prefix"] == ""


def test_online_search_trains_between_the_rounds(train: Train, tmp_path: Path) -> None:
    changes = (*FEWER, "search.regime=online", "data.validation=null", "data.shots=null")
    result, observer = train(tmp_path / "run", *changes, assistant=Scripted())
    assert result["regime"] == "online" and result["templates"] == []
    assert all(entry.training_loss is not None for entry in observer.rounds)
    assert titles(tmp_path / "run")[:2] == ["round 1: training", "round 2: training"]
    assert result["selection"]["rows"] == "validation", "rows to choose on are carved"


@pytest.mark.parametrize(("gain", "plain_wins"), [(0.3, False), (0.1, True)])
def test_online_the_plain_model_is_the_product_unless_another_is_clearly_better(
    train: Train, tmp_path: Path, gain: float, plain_wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "validation_gain", lambda *_: (gain, 0.2))
    changes = ("data.test=validation.jsonl", "search.regime=online")
    result, observer = train(tmp_path / "run", *changes, assistant=Scripted(prefixes=("!?",)))
    assert result["product_is_plain"] == plain_wins
    first, *others = observer.selections[0].names
    assert first == result["selection"]["against"] == ("plain fine-tuning" if plain_wins else "(no prefix)")
    assert "(no prefix), model of the search" in others
    assert ("plain" in result["differences"]) == (not plain_wins)
    assert ("no_prefix" in result["differences"]) == plain_wins
    if plain_wins:
        assert result["arms"]["gpta"]["loss"] == result["arms"]["plain"]["loss"]
    again = evaluate(tmp_path / "run")
    assert again["accuracy"] == pytest.approx(result["arms"]["gpta"]["accuracy"], abs=1e-9)


def test_online_search_with_one_row_of_a_class_has_no_row_to_choose_on(train: Train, tmp_path: Path) -> None:
    changes = ("data.test=validation.jsonl", "search.regime=online", "data.shots=1", "data.validation=null")
    result, _ = train(tmp_path / "run", *changes, assistant=Scripted())
    assert not result["product_is_plain"]
    assert result["selection"]["rows"] == "cross-validated training" and "plain" in result["arms"]


def test_plain_encoder_checkpoint_trains_and_loads_with_stock_transformers(
    train: Train, bert: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result, _ = train(tmp_path / "run", *FEWER, f"downstream.backbone={bert}", assistant=Scripted())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model(**tokenizer("my bill is wrong", return_tensors="pt")).logits.shape == (1, 7)
    assert set(result["arms"]) == {"gpta", "no_prefix"} and result["arms"]["gpta"]["rows"] == 70
    assert not open_existing(tmp_path / "run").completions("label-texts"), "they could start no head"
