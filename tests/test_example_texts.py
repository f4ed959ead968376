"""Example texts: how they are read, judged and used, and what of a run they are."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from audited import copy, files_with
from commands import invoke
from killing import outcome
from samples import (
    CARD,
    EXAMPLE_TEXTS,
    Silent,
    config_of,
    label_text_reply,
    pair_rows,
    record_replies,
    sentiment_rows,
    write_jsonl,
)

from gpta_local.assistant.prompts import EXAMPLE_TEXTS as WORKED_EXAMPLE
from gpta_local.config import load
from gpta_local.errors import ConfigError
from gpta_local.knowledge.example_texts import ExampleTextReader
from gpta_local.record import purge
from gpta_local.record.audit import Audit
from gpta_local.record.history import History, open_existing
from gpta_local.record.journal import Journal
from gpta_local.record.verification import verify
from gpta_local.report.summary import verdict
from gpta_local.run import judging
from gpta_local.run.fine_tuning import FineTuner
from gpta_local.run.judging import Judges
from gpta_local.run.loop import Run
from gpta_local.run.search import Search
from gpta_local.schema import Completion, DatasetCard, Label, Message, Request, Sampling
from gpta_local.tasks.classification import without_lean

LINES = [line.partition(" ")[2] for reply in EXAMPLE_TEXTS for line in reply.splitlines()]


def read(*replies: str, label: str = "bad", card: DatasetCard = CARD, reason: str = "stop") -> list[str]:
    texts, outcomes = ExampleTextReader(card).read([Completion(reply, "m", reason) for reply in replies], label)
    assert {text.label for text in texts} <= {label} and len(outcomes) == len(replies)
    return [text.text for text in texts]


class TestReading:
    @pytest.mark.parametrize(
        "line",
        [
            "1. we waited two hours for soup",
            "(2) we waited two hours for soup",
            "3: we waited two hours for soup",
            "- we waited two hours for soup",
            '"we waited two hours for soup"',
            "**we waited two hours for soup**",
            "4. “we waited two hours for soup”",
            "bad: we waited two hours for soup",
            "**Bad:** we waited two hours for soup",
            '"bad": "we waited two hours for soup"',
            "[bad] we waited two hours for soup",
            "Text 5: we waited two hours for soup",
            "we waited two hours for soup (bad)",
        ],
    )
    def test_text_of_a_line_is(self, line: str) -> None:
        assert read(line) == ["we waited two hours for soup"]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("good: a lovely evening in the garden", "another label"),
            ("a lovely evening in the garden (good)", "another label"),
            ("too cold", "too short or too long"),
            ("so " + "very, very, " * 50 + "cold", "too short or too long"),
            ("Texts about guests who are not happy:", "speaks of the task"),
            ("Sure, I can write these for you", "speaks of the task"),
            ("This one should be labeled as an angry guest", "speaks of the task"),
            ("we waited [time] for our soup", "speaks of the task"),
            ("we waited {time} for our soup", "speaks of the task"),
            ("这汤是冷的，我们等了两个小时", "another script"),
            ("x9 =>>> {{}} ;; 0x7f 1 2 3 4", "garbled"),
            ("bla bla bla said the waiter", "repeats itself"),
            (CARD.description + " today", "repeated"),
            (CARD.labels[0].meaning, "repeated"),
            (WORKED_EXAMPLE[0], "repeated"),
        ],
    )
    def test_line_is_refused(self, line: str, reason: str) -> None:
        reader = ExampleTextReader(CARD)
        assert reader.read([Completion(line, "m")], "bad") == ([], [("unusable", "no usable text")])
        assert dict(reader.refused) == {reason: 1}

    def test_near_duplicates_of_any_label_are_there_once(self) -> None:
        reader = ExampleTextReader(CARD)
        replies = [Completion("The soup was cold and salty.\nthe soup was salty, and cold!\nthe bread was stale", "m")]
        texts, ((outcome, told),) = reader.read(replies, "bad")
        assert [text.text for text in texts] == ["The soup was cold and salty.", "the bread was stale"]
        assert (outcome, told) == ("accepted", "The soup was cold and salty. | the bread was stale")
        assert reader.read(replies, "good")[0] == []

    def test_last_line_of_a_reply_that_was_cut_off_is_left_out(self) -> None:
        reply = "1. the soup was cold\n2. the waiter shouted at my"
        assert read(reply, reason="length") == ["the soup was cold"]
        assert read(reply) == ["the soup was cold", "the waiter shouted at my"]

    def test_scripts_without_spaces_and_with_vowel_signs_are_read(self) -> None:
        card = DatasetCard(
            "客人", "text-classification", "餐厅客人写的评论。ข้อความ हिंदी में", (Label("bad"), Label("good"))
        )
        texts = [
            "汤是冷的，服务员态度很差，我们等了两个小时才上菜，而且账单还算错了，以后再也不会带家人来这家餐厅吃饭了",
            "อาหารเย็นและพนักงานไม่สุภาพ",
            "सूप ठंडा था और वेटर ने माफ़ी भी नहीं माँगी",
        ]
        assert read("\n".join(texts), card=card) == texts

    def test_reply_without_a_text_is_unusable(self) -> None:
        assert ExampleTextReader(CARD).read([Completion("", "m")], "bad") == ([], [("unusable", "empty reply")])


class TestWithoutLean:
    def test_what_a_model_leans_to_by_itself_is_taken_out(self) -> None:
        fair = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
        labels = torch.tensor([0, 1, 2, 0])
        leaning = fair + torch.tensor([5.0, 0.0, 1.0])
        assert leaning.argmax(-1).tolist() == [0, 0, 0, 0]
        assert without_lean(leaning, labels).argmax(-1).tolist() == [0, 1, 2, 0]

    def test_texts_of_each_label_weigh_alike(self) -> None:
        torch.manual_seed(0)
        labels = torch.tensor([0] * 9 + [1])
        chances = without_lean(torch.randn(10, 2), labels).softmax(-1)
        shares = (chances[:9].mean(0) + chances[9]) / 2
        assert torch.allclose(shares, torch.full((2,), 0.5), atol=1e-4)


def configured(
    folder: Path,
    sentence: Path,
    changes: dict[str, Any] | None = None,
    test: bool = True,
    bad: str = "an unhappy guest",
) -> Path:
    """A configuration of a run on the sentiment rows, with its recorded assistant."""
    folder.mkdir(parents=True, exist_ok=True)
    label_texts = label_text_reply({"bad": bad, "good": "a happy one"})
    record_replies(folder / "record", [label_texts], ["Guest:", "Mood:", "Said of us"], EXAMPLE_TEXTS)
    for split in ("test", "validation"):
        write_jsonl(folder / f"{split}.jsonl", sentiment_rows())
    content: dict[str, Any] = {
        "data": {"test": "test.jsonl"} if test else {},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "knowledge": {"example_texts": 8},
        "training": {"steps": 3, "checkpoint_seconds": 0},
    }
    config_of(folder, sentiment_rows(), content | (changes or {}))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def train(near_prefixes_count: None) -> Callable[..., tuple[dict[str, Any], Silent]]:
    """Make a run: `train(config)`, in `run` beside it. Any agreement with a model of the rows is enough: with a random
    backbone there is hardly any."""

    def run(config: Path, *, resume: bool = False) -> tuple[dict[str, Any], Silent]:
        observer = Silent()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judging, "LEAST_AGREEMENT", -9.0)
            return Run(load(config), observer).run(config.parent / "run", resume=resume), observer

    return run


Train = Callable[..., tuple[dict[str, Any], Silent]]


@pytest.fixture(scope="module")
def whole(train: Train, sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with test rows and without validation rows; its folder and its summary."""
    config = configured(tmp_path_factory.mktemp("runs") / "whole", sentence)
    return config.parent / "run", train(config)[0]


def lines_of(run: Path, name: str = "examples.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]


def asked(run: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(run / "history.sqlite") as db:
        return db.execute("SELECT round, kind, messages, sampling FROM requests ORDER BY id").fetchall()


class TestWholeRun:
    def test_texts_are_kept_with_their_verdicts_and_counted_in_the_summary(
        self, whole: tuple[Path, dict[str, Any]]
    ) -> None:
        run, result = whole
        texts = lines_of(run)
        assert [(text["label"], text["text"]) for text in texts] == [
            (("bad", "good")[i // 5], LINES[i]) for i in range(10)
        ]
        assert all(0 <= text["probability"] <= 1 and text["kept"] == (text["probability"] > 0.5) for text in texts)
        kept = sum(text["kept"] for text in texts)
        figures = {"usable": 10, "kept": kept, "used": True, "gain": None, "standard_error": None, "askings": []}
        assert result["example_texts"] == figures and kept

    def test_control_is_trained_without_and_the_product_with_them(self, whole: tuple[Path, dict[str, Any]]) -> None:
        run, result = whole
        steps = {line["title"]: len(line["losses"]) for line in lines_of(run, "metrics.jsonl")}
        with_them = [n for title, n in steps.items() if title.startswith("training with ") and "judge" not in title]
        assert steps["training without a prefix"] == 3 and with_them == [6], "no model that is not chosen is trained"
        assert result["arms"]["no_prefix"]["loss"] != result["arms"]["gpta"]["loss"]
        assert not files_with(run / "model", LINES)

    def test_log_tells_of_them(self, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        run = copy(whole[0], tmp_path)
        assert verify(run).problems == []
        (run / "examples.jsonl").write_text("", encoding="utf-8")
        (problem,) = verify(run).problems
        assert problem.what == "tells of another file examples.jsonl than is here"

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_purge_deletes_them_from_every_byte(
        self, whole: tuple[Path, dict[str, Any]], tmp_path: Path, interrupted: bool
    ) -> None:
        run = copy(whole[0], tmp_path)
        assert set(files_with(run, LINES)) == {"examples.jsonl", "history.sqlite", "report.html", "report.md"}
        if interrupted:  # before the history was purged and the log told of it
            (run / "examples.jsonl").unlink()
        done = purge.purge(run)
        assert (
            sorted(done.deleted) == ["examples.jsonl", "report.html", "report.md"]
            and not (run / "examples.jsonl").exists()
        )
        assert files_with(run, LINES) == [] and verify(run).problems == []
        assert not any("examples" in line for line in done.left)

    def test_test_rows_change_no_weight_no_request_and_no_verdict(
        self, whole: tuple[Path, dict[str, Any]], train: Train, sentence: Path, tmp_path: Path
    ) -> None:
        run, result = whole
        without, _ = train(configured(tmp_path, sentence, test=False))
        assert result["evaluated_on"] == "test" != without["evaluated_on"]
        for name in ("examples.jsonl", "model/0_Transformer/model.safetensors"):
            assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
        assert asked(tmp_path / "run") == asked(run)

    def test_test_rows_that_say_what_the_assistant_wrote_change_nothing(
        self, train: Train, sentence: Path, tmp_path: Path
    ) -> None:
        phrase = "a guest who will not come back to this place again"
        runs = []
        for name, said in (
            ("same", [LINES[0], LINES[7], phrase]),
            ("other", ["nothing of the kind", "at all", "here"]),
        ):
            config = configured(tmp_path / name, sentence, bad=phrase)
            write_jsonl(config.parent / "test.jsonl", [{"text": text, "label": "bad"} for text in said])
            result, _ = train(config)
            assert result["replies"]["read"] == result["replies"]["usable"]
            runs.append(config.parent / "run")
        for name in ("examples.jsonl", "model/0_Transformer/model.safetensors"):
            assert len({(run / name).read_bytes() for run in runs}) == 1
        assert asked(runs[0]) == asked(runs[1])


@pytest.mark.parametrize(("gain", "used"), [(-0.05, True), (-0.15, False)])
def test_validation_rows_decide_whether_they_are_used(
    gain: float, used: bool, train: Train, sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTuner, "validation_gain", lambda *_: (gain, 0.1))
    changes = {"data": {"validation": "validation.jsonl"}, "search": {"rounds": 0}}
    result, observer = train(configured(tmp_path, sentence, changes))
    told = result["example_texts"]
    assert (told["used"], told["gain"], told["standard_error"]) == (used, gain, 0.1)
    assert bool([note for note in observer.notes if note.startswith("no example texts: ")]) == (not used)
    assert result["selection"]["against"].startswith("(no prefix), example texts") == used
    assert len(lines_of(tmp_path / "run")) == told["usable"] == 10, "they are kept in any case"


@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [
        (Search, "example_texts", 1),
        (Journal, "add_completions", 2),
        (Audit, "answered", 3),
        (Journal, "judge_completions", 3),
        (Judges, "judge_example_texts", 1),
        (FineTuner, "fine_tune", 2),
        (FineTuner, "fine_tune", 3),
    ],
)
def test_run_that_was_stopped_ends_as_one_that_was_not(
    owner: type,
    method: str,
    at: int,
    whole: tuple[Path, dict[str, Any]],
    train: Train,
    sentence: Path,
    tmp_path: Path,
) -> None:
    from test_resume import Stop

    config = configured(tmp_path, sentence)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stop(patch, owner, method, at)
        train(config)
    train(config, resume=True)
    found, wanted = outcome(tmp_path / "run"), outcome(whole[0])
    del found["config.yaml"], wanted["config.yaml"]  # they name their folders
    assert found == wanted


def test_answers_to_requests_that_were_asked_together_are_all_on_record_or_none(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    number = history.add_request(0, Request("example-texts", (Message("user", "?"),)), Sampling())
    with pytest.raises(sqlite3.IntegrityError):
        history.add_completions({number: [Completion("a text", "m")], number + 1: [Completion("another", "m")]})
    assert history.texts() == {}


@pytest.mark.parametrize("regime", ["low-resource", "online"])
def test_without_rounds_no_prefix_is_asked_for(regime: str, train: Train, sentence: Path, tmp_path: Path) -> None:
    result, _ = train(configured(tmp_path, sentence, {"search": {"rounds": 0, "regime": regime}}))
    of_texts = [] if regime == "online" else ["example-texts"] * 2
    assert [kind for _, kind, *_ in asked(tmp_path / "run")] == ["label-texts", *of_texts]
    assert result["prefix"] == "" and result["templates"] == [] and result["ended_by"] is None
    assert verify(tmp_path / "run").problems == []
    assert invoke("predict", tmp_path / "run", tmp_path / "test.jsonl").exit_code == 0


def test_own_prefixes_are_scored_in_the_first_round_and_shown_in_the_next(
    train: Train, sentence: Path, tmp_path: Path
) -> None:
    changes = {"search": {"rounds": 2, "proposals": 1, "own_prefixes": ["Of a guest:"]}}
    _, observer = train(configured(tmp_path, sentence, changes))
    first, *later = ({scored.text for scored in entry.scored} for entry in observer.rounds)
    assert "Of a guest:" in first and len(first) == 3, "no prefix and the assistant's besides"
    assert not any("Of a guest:" in texts for texts in later)
    requests = [messages for _, kind, messages, _ in asked(tmp_path / "run") if kind == "prefix"]
    assert ["Of a guest:" in messages for messages in requests] == [False, True]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"own_prefixes": ["word " * 40]}, "search.own_prefixes, 1: the prefix cannot be used: 40 tokens"),
        ({"own_prefixes": ["Guest:", "- Mood:"]}, "not plain text"),
        ({"own_prefixes": ["Guest:"], "rounds": 0}, "search.rounds must be 1 or more"),
    ],
)
def test_own_prefix_that_cannot_be_used_is_one_message(
    search: dict[str, Any], message: str, sentence: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Run(load(configured(tmp_path, sentence, {"search": search})), Silent())
    assert message in str(caught.value)


def test_own_example_texts_are_judged_like_those_of_the_assistant_which_is_not_shown_them(
    train: Train, sentence: Path, tmp_path: Path
) -> None:
    own = {"bad": ["the soup was cold as a stone", "the soup  was cold as a stone"], "good": ["we loved the candles"]}
    changes = {"knowledge": {"own_example_texts": own, "example_texts": 8}, "search": {"rounds": 0}}
    result, _ = train(configured(tmp_path, sentence, changes))
    lines = lines_of(tmp_path / "run")
    ours = [(line["label"], line["text"]) for line in lines if line["own"]]
    assert ours == [("bad", "the soup was cold as a stone"), ("good", "we loved the candles")]
    assert result["example_texts"]["usable"] == len(lines) > len(ours)
    assert all(line["probability"] is not None for line in lines)
    assert not any("cold as a stone" in messages for _, _, messages, _ in asked(tmp_path / "run"))


def test_own_example_texts_need_none_of_the_assistant(train: Train, sentence: Path, tmp_path: Path) -> None:
    own = {"bad": ["the soup was cold as a stone"], "good": ["we loved the candles"]}
    changes = {"knowledge": {"own_example_texts": own, "example_texts": 0}, "search": {"rounds": 0}}
    result, _ = train(configured(tmp_path, sentence, changes))
    assert result["example_texts"]["usable"] == 2
    assert [kind for _, kind, *_ in asked(tmp_path / "run")] == ["label-texts"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"so-so": ["neither nor"]}, "knowledge.own_example_texts: 'so-so' is no label. The labels are bad, good"),
        ({"bad": [" "]}, "'bad' has an empty text, or none"),
        ({"bad": []}, "'bad' has an empty text, or none"),
    ],
)
def test_own_example_texts_that_cannot_be_used_are_one_message(
    own: dict[str, list[str]], message: str, sentence: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        Run(load(configured(tmp_path, sentence, {"knowledge": {"own_example_texts": own}})), Silent())
    assert message in str(caught.value)


def test_pairs_of_texts_are_asked_neither_label_texts_nor_example_texts(
    train: Train, sentence: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, sentence, {"task": "text-pair-classification", "data": {"text_pair": "text_pair"}})
    write_jsonl(tmp_path / "train.jsonl", pair_rows())
    result, _ = train(config)
    assert [kind for _, kind, *_ in asked(tmp_path / "run")] == ["prefix"]
    assert result["example_texts"]["usable"] == 0 and not (tmp_path / "run" / "examples.jsonl").exists()


@pytest.mark.parametrize(("calls", "replies"), [(9, [1, 1, 1, 3]), (3, [1, 1, 1]), (2, [1, 1])])
def test_example_texts_keep_to_the_budget_of_calls(
    calls: int, replies: list[int], train: Train, sentence: Path, tmp_path: Path
) -> None:
    train(configured(tmp_path, sentence, {"budget": {"calls": calls}}, test=False))
    history = open_existing(tmp_path / "run")
    assert [len(texts) for texts in history.texts().values()] == replies
    history.close()


@pytest.fixture(scope="module")
def no_rows(
    train: Train, sentence: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], Silent]:
    config = without_rows(tmp_path_factory.mktemp("no-rows"), sentence)
    return config.parent / "run", *train(config)


class TestWithoutLabelledRows:
    def test_model_is_trained_on_example_texts_alone_and_measured_on_test_rows(
        self, no_rows: tuple[Path, dict[str, Any], Silent]
    ) -> None:
        folder, result, _ = no_rows
        assert [kind for _, kind, *_ in asked(folder)] == ["example-texts"] * 2
        assert [line["title"] for line in lines_of(folder, "metrics.jsonl")] == [
            "training with example texts, to judge 10 of them",
            "training with example texts",
        ]
        assert result["training_rows"] == 0 and result["example_texts"]["used"]
        assert set(result["arms"]) == {"gpta", "no_prefix", "card"}
        assert result["arms"]["gpta"]["on_training_rows"] is None

    def test_it_says_that_no_row_has_a_part_in_it(self, no_rows: tuple[Path, dict[str, Any], Silent]) -> None:
        folder, result, _ = no_rows
        assert any(line.startswith("No labelled row") for line in verdict(result))
        assert verify(folder).problems == []
        assert invoke("predict", folder, folder.parent / "test.jsonl").exit_code == 0

    def test_dry_run_and_doctor_work(self, no_rows: tuple[Path, dict[str, Any], Silent]) -> None:
        config = no_rows[0].parent / "config.yaml"
        assert "all together" in invoke("train", config, "--dry-run").output
        assert "no training rows" in invoke("doctor", config).output

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"card": {"description": "Comments of guests."}}, "card.labels must name the labels"),
            ({"knowledge": {"example_texts": 0}}, "knowledge.example_texts"),
            ({"data": {"shots": 8}}, "no data.shots"),
        ],
    )
    def test_what_cannot_be_without_rows_is_one_message(
        self, changes: dict[str, Any], message: str, sentence: Path, tmp_path: Path
    ) -> None:
        result = invoke("train", without_rows(tmp_path, sentence, changes))
        assert result.exit_code == 2 and message in " ".join(result.output.split())


def without_rows(folder: Path, sentence: Path, changes: dict[str, Any] | None = None) -> Path:
    """A configuration without training rows, with test rows."""
    path = configured(folder, sentence)
    content = yaml.safe_load(path.read_text("utf-8"))
    del content["data"]["train"]
    content["card"]["labels"] = {"bad": "an unhappy guest", "good": "a happy one"}
    for section, values in (changes or {}).items():
        content[section] = content[section] | values if section != "card" else values
    record_replies(folder / "record", [], [], EXAMPLE_TEXTS)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
