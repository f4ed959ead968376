"""The outer loop from a configuration to a run directory, on the quickstart's data."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import Silent

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
from gpta_local.run import loop
from gpta_local.run.finish import Finish
from gpta_local.schema import Completion, Request, Sampling
from gpta_local.tasks.base import Evaluation
from gpta_local.tasks.classification import ClassificationTask

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart" / "quickstart.yaml"
SMALL = (
    "search.rounds=2",
    "search.proposals=6",
    "search.label_text_samples=2",
    "training.steps=6",
    "finish.finalists=1",
)
PREFIXES = ("Message to the clinic:", "Which department?", "A patient asks:", '"Reason:"', "Reason:", "two\nlines", "")
FEWER = ("data.test=validation.jsonl", "finish.plain_control=false")
"""For runs in which the figures do not matter."""
LABEL_TEXTS = """appointments: I want to move my visit
billing: a question about an invoice
prescriptions: I need a refill of my medicine
test_results: what does my blood test mean
medical_records: please send a copy of my records
nurse_advice: I have a fever, should I come in
technical_support: the login does not work"""


class Scripted:
    """An assistant that says fixed things, in turn."""

    name = "scripted"
    takes_adapters = False
    adapters_refused = "A script cannot be taught"

    def __init__(self, prefixes: Sequence[str] = PREFIXES, label_texts: str = LABEL_TEXTS) -> None:
        self.replies = {"prefix": prefixes, "label-texts": (label_texts,)}
        self.requests: list[Request] = []

    def check(self) -> str:
        return self.name

    def complete(self, request: Request, n: int, sampling: Sampling) -> list[Completion]:
        self.requests.append(request)
        replies = self.replies[request.kind]
        return [Completion(replies[i % len(replies)], self.name, "stop", 100, 10) for i in range(n)]

    def use_adapter(self, folder: Path | None) -> None: ...

    def drop_adapter(self, folder: Path) -> None: ...

    def close(self) -> None: ...


def train(folder: Path, *overrides: str, assistant: Scripted | None = None) -> tuple[dict[str, Any], Silent]:
    observer = Silent()
    with pytest.MonkeyPatch.context() as patch:
        if assistant is not None:
            patch.setattr(loop, "open_assistant", lambda settings: assistant)
        run = loop.Run(load(QUICKSTART, [*SMALL, *(FEWER if assistant else ()), *overrides]), observer)
    return run.run(folder), observer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Silent]:
    """A small run with the embedded assistant."""
    folder = tmp_path_factory.mktemp("runs") / "embedded"
    result, observer = train(folder)
    return folder, result, observer


def test_run_directory_is_complete(finished: tuple[Path, dict[str, Any], Silent]) -> None:
    folder, result, _ = finished
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(result))
    assert {path.name for path in folder.iterdir()} == {
        "audit.jsonl",
        "config.yaml",
        "history.sqlite",
        "metrics.jsonl",
        "model",
        "summary.json",
    }
    assert load(folder / "config.yaml").model_dump() == load(QUICKSTART, SMALL).model_dump()


def test_run_directory_is_for_its_owner_only(finished: tuple[Path, dict[str, Any], Silent]) -> None:
    assert finished[0].stat().st_mode & 0o077 == 0


def test_summary_has_the_product_and_both_controls_on_all_test_rows(
    finished: tuple[Path, dict[str, Any], Silent],
) -> None:
    _, result, _ = finished
    assert set(result["arms"]) == {"gpta", "no_prefix", "plain"}
    assert all(arm["rows"] == 315 for arm in result["arms"].values())
    assert result["evaluated_on"] == "test"


def test_product_scores_the_same_through_the_stock_library(finished: tuple[Path, dict[str, Any], Silent]) -> None:
    folder, result, _ = finished
    again = evaluate(folder)
    assert again["accuracy"] == pytest.approx(result["arms"]["gpta"]["accuracy"], abs=1e-9)
    assert again["macro_f1"] == pytest.approx(result["arms"]["gpta"]["macro_f1"], abs=1e-9)


def test_embedded_assistant_writes_usable_label_texts_and_prefixes(
    finished: tuple[Path, dict[str, Any], Silent],
) -> None:
    _, _, observer = finished
    assert observer.usable
    accepted = sum(entry.proposals.get("accepted", 0) for entry in observer.rounds)
    assert accepted >= 6


def test_best_prefixes_are_templates_of_the_label_texts(finished: tuple[Path, dict[str, Any], Silent]) -> None:
    folder, result, _ = finished
    scored = sorted(open_existing(folder).scored(), key=lambda s: s.gain, reverse=True)
    assert result["templates"] == [s.text for s in scored[:16]] and result["templates"]
    titles = [json.loads(line)["title"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert titles[:2] == ["training without a prefix", "training with templates"]
    assert result["arms"]["no_prefix"]["loss"] != result["arms"]["gpta"]["loss"], "the control has none"


def test_head_starts_from_the_label_texts_behind_the_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[list[list[str]]] = []
    start = SentenceClassifier.start_from_label_texts

    def heard(self: SentenceClassifier, label_texts: list[list[str]], scale: float) -> None:
        starts.append(label_texts)
        start(self, label_texts, scale)

    monkeypatch.setattr(SentenceClassifier, "start_from_label_texts", heard)
    train_contestants = Finish.contestants

    def contestants(self: Finish, *arguments: Any) -> Any:
        starts.clear()  # those of the search
        return train_contestants(self, *arguments)

    monkeypatch.setattr(Finish, "contestants", contestants)
    result, _ = train(tmp_path / "run", "finish.templates=2", "data.validation=null", assistant=Scripted())
    own = [[texts[name] for texts in result["label_texts"]] for name in result["label_texts"][0]]
    templates = result["templates"]
    assert len(templates) == 2
    assert starts[0] == own, "the control has none"
    assert starts[1][0] == [*own[0], *(f"{t} {text}" for t in templates for text in own[0])]


def test_templates_that_validation_rows_speak_against_are_left_out(tmp_path: Path) -> None:
    assistant = Scripted(["the weather in spring is nice and the birds sing in the trees"])
    result, observer = train(tmp_path / "run", assistant=assistant)
    assert result["templates"] == []
    assert [note for note in observer.notes if note.startswith("no templates: the best 1 prefixes")]
    assert result["selection"]["contestants"][0]["text"] == "" and result["prefix"] == ""
    assert "no_prefix" not in result["differences"], "the product is the control"
    tried = result["templates_on_validation"]
    assert tried["gain"] < -tried["standard_error"] < 0


def test_without_validation_rows_templates_are_kept(tmp_path: Path) -> None:
    text = "the weather in spring is nice and the birds sing in the trees"
    result, _ = train(tmp_path / "run", "data.validation=null", assistant=Scripted([text]))
    assert result["templates"] == [text] and "no_prefix" in result["differences"]
    assert result["templates_on_validation"] is None


def test_control_that_nothing_would_be_measured_on_is_not_trained(tmp_path: Path) -> None:
    nothing = ("data.validation=null", "data.test=null")
    result, _ = train(tmp_path / "run", *nothing, assistant=Scripted())
    titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert titles[0] == "training with templates" and "training without a prefix" not in titles
    assert result["templates"] and result["arms"] == {} == result["differences"]


def test_no_model_is_measured_twice_on_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, str, int]] = []
    measure = ClassificationTask.evaluate

    def heard(self: ClassificationTask, model: DownstreamModel, rows: Sequence[Example], prefix: str) -> Evaluation:
        measured.append((id(model), prefix, id(rows[0])))
        return measure(self, model, rows, prefix)

    monkeypatch.setattr(ClassificationTask, "evaluate", heard)
    train(tmp_path / "run", "data.test=null", assistant=Scripted())
    assert len(measured) == len(set(measured)) >= 4


def test_no_templates_are_used_where_none_are_wanted(tmp_path: Path) -> None:
    result, _ = train(tmp_path / "run", "finish.templates=0", assistant=Scripted())
    titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["templates"] == [] and titles[0] == "training without a prefix"
    assert titles.count("training without a prefix") == 1


def test_same_seed_gives_the_same_run(finished: tuple[Path, dict[str, Any], Silent], tmp_path: Path) -> None:
    folder, result, _ = finished
    again, _ = train(tmp_path / "again")
    ignored = ("seconds", "audit_head")
    for run in (result, again):
        for arm in run["arms"].values():
            del arm["training_seconds"], arm["evaluation_seconds"]
    assert {k: v for k, v in again.items() if k not in ignored} == {k: v for k, v in result.items() if k not in ignored}
    weights = [load_file(path / "model" / "model.safetensors") for path in (folder, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_replay_of_a_run_scores_the_same_prefixes(
    finished: tuple[Path, dict[str, Any], Silent], tmp_path: Path
) -> None:
    folder, result, _ = finished
    again, _ = train(tmp_path / "replay", f"assistant={{backend: replay, run: {folder}}}")
    assert again["label_texts"] == result["label_texts"]
    scores = [open_existing(path).scored() for path in (folder, tmp_path / "replay")]
    assert scores[0] == scores[1]


def test_every_completion_is_recorded_with_what_became_of_it(tmp_path: Path) -> None:
    _, observer = train(tmp_path / "run", "search.proposals=7", assistant=Scripted())
    first = observer.rounds[0].proposals
    assert first == {"accepted": 4, "repeated": 1, "unusable": 2}
    with sqlite3.connect(tmp_path / "run" / "history.sqlite") as db:
        counts = db.execute("SELECT outcome, count(*) FROM completions GROUP BY outcome").fetchall()
    assert dict(counts) == {"accepted": 5, "repeated": 7, "unusable": 4}


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
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


def test_later_rounds_see_earlier_gains(tmp_path: Path) -> None:
    assistant = Scripted()
    train(tmp_path / "run", assistant=assistant)
    prefix_requests = [request for request in assistant.requests if request.kind == "prefix"]
    assert "Tried prefixes" not in prefix_requests[0].messages[-1].content
    assert "Which department?" in prefix_requests[1].messages[-1].content


def test_request_with_words_of_a_row_is_neither_recorded_nor_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = Scripted()
    monkeypatch.setattr(loop, "open_assistant", lambda settings: assistant)
    run = loop.Run(load(QUICKSTART, [*SMALL, *FEWER]), Silent())
    leaking = replace(run.plan.card, description=run.plan.splits.test[0].texts[0])
    run.plan = replace(run.plan, card=leaking)
    with pytest.raises(PrivacyError) as raised:
        run.run(tmp_path / "run")
    assert raised.value.where == "card.description"
    assert assistant.requests == []
    assert open_existing(tmp_path / "run").requests() == []


def test_unusable_label_texts_fall_back_to_label_names(tmp_path: Path) -> None:
    result, observer = train(tmp_path / "run", assistant=Scripted(label_texts="I cannot do that."))
    assert observer.usable == 0
    assert result["label_texts"][0]["test_results"] == "test results"


def test_no_usable_prefix_ships_the_model_without_one(tmp_path: Path) -> None:
    result, observer = train(tmp_path / "run", assistant=Scripted(prefixes=("!?",)))
    assert result["prefix"] == ""
    assert [entry.chosen.text for entry in observer.rounds] == ["", ""]
    assert open_product(tmp_path / "run").record["prefix"] == ""


def test_without_validation_the_choice_is_cross_validated(tmp_path: Path) -> None:
    result, _ = train(tmp_path / "run", "data.validation=null", assistant=Scripted())
    assert result["selection"]["rows"] == "training, cross-validated"
    assert result["card"]["validation_rows"] == 0


def test_without_test_rows_nothing_is_claimed(tmp_path: Path) -> None:
    result, _ = train(tmp_path / "run", "data.validation=null", "data.test=null", assistant=Scripted())
    assert result["arms"] == {} and result["differences"] == {} and result["evaluated_on"] == ""


def test_online_search_trains_between_the_rounds(tmp_path: Path) -> None:
    result, observer = train(
        tmp_path / "run", "search.regime=online", "data.validation=null", "data.shots=null", assistant=Scripted()
    )
    assert result["regime"] == "online" and result["templates"] == []
    assert all(entry.training_loss is not None for entry in observer.rounds)
    titles = [json.loads(line)["title"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert titles[:2] == ["round 1: training", "round 2: training"]
    assert result["card"]["validation_rows"] > 0, "rows to choose on are carved"


@pytest.mark.parametrize(("scale", "plain_wins"), [(10, False), (1000, True)])
def test_online_the_plain_model_is_the_product_unless_another_is_clearly_better(
    tmp_path: Path, scale: float, plain_wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpta_local.tasks.classification.LABEL_TEXT_SCALE", scale)
    changes = ("search.regime=online", "finish.plain_control=true")
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


def test_online_search_with_one_row_of_a_class_has_no_row_to_choose_on(tmp_path: Path) -> None:
    changes = ("search.regime=online", "data.shots=1", "data.validation=null", "finish.plain_control=true")
    result, _ = train(tmp_path / "run", *changes, assistant=Scripted())
    assert result["card"]["validation_rows"] == 0 and not result["product_is_plain"]
    assert result["selection"]["rows"] == "training, cross-validated" and "plain" in result["arms"]


def test_plain_encoder_checkpoint_trains_and_loads_with_stock_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gpta_local.system.models import backbone_folder

    encoder = tmp_path / "encoder"  # the same weights without what makes them a sentence model
    encoder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (encoder / name).symlink_to(backbone_folder("all-MiniLM-L6-v2") / name)
    result, _ = train(tmp_path / "run", f"downstream.backbone={encoder}", assistant=Scripted())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model(**tokenizer("my bill is wrong", return_tensors="pt")).logits.shape == (1, 7)
    assert set(result["arms"]) == {"gpta", "no_prefix"} and result["arms"]["gpta"]["rows"] == 70
    assert not open_existing(tmp_path / "run").completions("label-texts"), "they could start no head"
