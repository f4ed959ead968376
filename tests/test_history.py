"""The record of a run: what goes in comes out, also after closing; what is no history is refused."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from samples import CARD, record_replies, scored

from gpta_local.assistant import open_assistant
from gpta_local.assistant.replay import ReplayAssistant
from gpta_local.config import ReplayAssistantConfig
from gpta_local.errors import InputError, OutputError, ReplayExhausted
from gpta_local.record.history import (
    History,
    open_existing,
)
from gpta_local.record.tables import VERSION
from gpta_local.schema import (
    Completion,
    DialogueGradientStep,
    Message,
    ProposalFigures,
    Regime,
    Request,
    RequestKind,
    Round,
    Sampling,
    ScoredLabelTexts,
    StepVerdict,
)

SAMPLING = Sampling(temperature=0.5, seed=7)


def request(kind: RequestKind, content: str = "Write «it»: 漢字") -> Request:
    return Request(kind, (Message("system", "Help."), Message("user", content)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    record = History(path)
    yield record
    record.close()


def test_completions_come_back_as_they_were(history: History) -> None:
    completions = [Completion("a: «b»\n漢字", "m", "length", 12, 3), Completion("", "m")]
    asking = history.add_request(1, request("prefix"), SAMPLING)
    history.add_completions({asking: completions})
    assert history.completions("prefix") == completions


def test_completions_of_one_kind_come_in_the_order_of_asking(history: History) -> None:
    kinds: tuple[RequestKind, ...] = ("label-texts", "prefix", "prefix", "label-texts")
    for number, kind in enumerate(kinds):
        asking = history.add_request(number, request(kind), SAMPLING)
        history.add_completions({asking: [Completion(f"{number} {i}", "m") for i in range(2)]})
    assert [completion.text for completion in history.completions("prefix")] == ["1 0", "1 1", "2 0", "2 1"]


def test_messages_are_all_that_was_sent(history: History) -> None:
    history.add_request(1, request("prefix", "first"), SAMPLING)
    history.add_request(2, request("prefix", "second"), SAMPLING)
    sent = [[message["content"] for message in json.loads(text)] for *_, text in history.requests()]
    assert sent == [["Help.", "first"], ["Help.", "second"]]


def test_scores_come_back_in_the_order_of_first_scoring(history: History) -> None:
    entries = [scored("", 0.0), scored("b", 0.2, 0.1), scored("a", -0.1, 0.3)]
    history.add_round(Round(1, {"accepted": 2}, (), tuple(entries), entries[1], None, 1.5))
    assert history.scored() == entries[1:]


def test_latest_score_of_a_prefix_counts(history: History) -> None:
    for number, gain in ((1, 0.2), (2, 0.4)):
        entry = scored("a", gain)
        history.add_round(Round(number, {}, (), (scored("", 0.0), entry), entry, 0.7, 1.0))
    assert history.scored() == [scored("a", 0.4)]


def test_rounds_count_prefixes_without_the_empty_one(history: History) -> None:
    entries = (scored("", 0.0), scored("a", 0.1), scored("b", 0.0))
    history.add_round(Round(1, {}, (), entries, entries[1], None, 2.5))
    assert history.rounds() == [(1, "a", 2, 2.5)]


@pytest.mark.parametrize(("second", "prompt", "completion"), [((11, 4), 21, 6), ((None, None), None, None)])
def test_cost_is_known_where_all_tokens_were_counted(
    history: History, second: tuple[int | None, int | None], prompt: int | None, completion: int | None
) -> None:
    completions = [Completion("a", "m", "stop", 10, 2), Completion("b", "m", "stop", *second)]
    asking = history.add_request(1, request("prefix"), SAMPLING)
    history.add_completions({asking: completions})
    assert history.cost() == {"completions": 2, "prompt_tokens": prompt, "completion_tokens": completion}


def test_every_write_is_there_for_others_without_closing(path: Path) -> None:
    first = History(path)
    asking = first.add_request(1, request("prefix"), SAMPLING)
    first.add_completions({asking: [Completion("a", "m")]})
    first.add_round(Round(1, {}, (), (scored("a", 0.1),), scored("a", 0.1), None, 1.0))
    with closing(open_existing(path.parent)) as again:
        assert again.completions("prefix") == [Completion("a", "m")]
        assert again.scored() == [scored("a", 0.1)]
    first.close()


def judged(path: Path) -> list[tuple[str, str, str]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT text, outcome, result FROM completions ORDER BY id").fetchall()


def test_completions_are_judged_in_the_order_of_their_request(path: Path, history: History) -> None:
    first, second = (history.add_request(1, request("prefix"), SAMPLING) for _ in range(2))
    history.add_completions({second: [Completion("a", "m"), Completion("b", "m")]})
    history.add_completions({first: [Completion("c", "m")]})
    assert judged(path) == [("a", "", ""), ("b", "", ""), ("c", "", "")]
    history.judge_completions(second, [("accepted", "a"), ("unusable", "empty reply")])
    assert judged(path) == [("a", "accepted", "a"), ("b", "unusable", "empty reply"), ("c", "", "")]


@pytest.mark.parametrize("verdicts", [1, 3])
def test_completions_are_judged_all_or_none(path: Path, history: History, verdicts: int) -> None:
    asking = history.add_request(1, request("prefix"), SAMPLING)
    history.add_completions({asking: [Completion("a", "m")] * 2})
    with pytest.raises(ValueError, match=r"shorter|longer"):
        history.judge_completions(asking, [("accepted", "a")] * verdicts)
    assert judged(path) == [("a", "", "")] * 2


FIGURES = ProposalFigures("001", 8, 3, 1, 0.125)
NOTHING_NEW = ProposalFigures("", 8, 0, 0, None)
STEP = DialogueGradientStep("001", "weighted-sft", 12, (0.75, 0.5), 3.5)


class TestDialogueGradient:
    @pytest.mark.parametrize("regime", ["low-resource", "online"])
    def test_card_and_regime_come_back_as_they_were(self, history: History, regime: Regime) -> None:
        assert history.run() is None
        history.add_run(CARD, regime)
        assert history.run() == (CARD, regime)

    def test_gains_compare_in_all_rounds_unless_the_model_is_trained_between_them(self, history: History) -> None:
        for number, text in ((1, "a"), (2, "b")):
            entry = scored(text, number / 10)
            history.add_round(Round(number, {}, (), (scored("", 0.0), entry), entry, None, 1.0))
        assert history.comparable_groups("low-resource") == [[scored("a", 0.1), scored("b", 0.2)]]
        assert history.comparable_groups("online") == [[scored("a", 0.1)], [scored("b", 0.2)]]

    def test_gains_of_the_latest_round_compare_online(self, history: History) -> None:
        assert history.comparable("online") == history.comparable("low-resource") == []
        for number, texts in ((1, "ab"), (2, "c"), (3, "")):
            entries = [scored("", 0.0), *(scored(text, number / 10) for text in texts)]
            history.add_round(Round(number, {}, (), tuple(entries), entries[0], None, 1.0))
            assert [s.text for s in history.comparable("online")] == list(texts)
        assert [s.text for s in history.comparable("low-resource")] == ["a", "b", "c"]

    def test_requests_say_which_adapter_was_asked(self, history: History) -> None:
        for adapter, text in (("", "x"), ("001", "y"), ("", "z")):
            asking = history.add_request(1, request("prefix"), SAMPLING, adapter)
            history.add_completions({asking: [Completion(text, "m")]})
        assert [adapter for _, _, _, adapter, _ in history.requests()] == ["", "001", ""]
        assert [completion.text for completion in history.completions("prefix")] == ["x", "y", "z"]

    def test_scores_of_label_texts_come_back_in_order(self, history: History) -> None:
        entries = [ScoredLabelTexts({"b": "«2»", "a": "漢字"}, 1.5), ScoredLabelTexts({"b": "x", "a": "y"}, 0.5)]
        history.add_run(CARD, "low-resource")
        assert history.label_texts() is None
        history.add_label_texts(entries, [{"a": "漢字", "b": "x"}])
        assert history.label_texts() == [{"a": "漢字", "b": "x"}]
        assert history.label_text_scores() == entries
        assert list(history.label_text_scores()[0].texts) == ["b", "a"]

    def test_figures_of_a_round_come_back_in_order(self, history: History) -> None:
        history.add_round(Round(1, {}, (NOTHING_NEW, FIGURES), (), scored("", 0.0), None, 1.0))
        assert history.proposal_figures() == [(1, NOTHING_NEW), (1, FIGURES)]

    @pytest.mark.parametrize("verdict", ["kept", "rolled back"])
    def test_verdict_is_of_one_step(self, history: History, verdict: StepVerdict) -> None:
        other = DialogueGradientStep("002", "sft", 3, (), 0.0)
        for number, step in enumerate((STEP, other), start=1):
            history.add_round(Round(number, {}, (), (), scored("", 0.0), None, 1.0))
            history.add_step(number, step, "on trial")
        assert history.steps() == [(1, STEP, "on trial"), (2, other, "on trial")]
        history.add_round(Round(3, {}, (), (), scored("", 0.0), None, 1.0), ("001", verdict))
        assert history.steps() == [(1, STEP, verdict), (2, other, "on trial")]

    def test_figures_and_verdict_of_an_asking_for_texts_belong_to_no_round(self, history: History) -> None:
        history.add_round(Round(1, {}, (FIGURES,), (), scored("", 0.0), None, 1.0))
        history.add_asking(0, [NOTHING_NEW])
        history.add_step(2, STEP, "on trial")
        history.add_asking(2, [FIGURES], (STEP.adapter, "kept"))
        assert history.askings() == [(0, NOTHING_NEW), (2, FIGURES)]
        assert history.proposal_figures() == [(1, FIGURES)]
        assert history.steps() == [(2, STEP, "kept")]


def test_two_can_open_a_new_file_at_once(tmp_path: Path) -> None:
    def opened(path: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        with closing(History(path)) as history:
            assert history.rounds() == []

    for attempt in range(8):
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(opened, tmp_path / f"{attempt}.sqlite", barrier) for _ in range(4)]:
                future.result()


def test_file_of_a_later_version_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(InputError, match="begin a new run"):
        History(path)


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("a history of the world, in 10 chapters and an index of names", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be opened"):
        open_existing(path.parent)


def test_database_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE pages (url TEXT)")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(InputError, match="not a history"):
        open_existing(path.parent)


def test_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be opened"):
        History(tmp_path / "none" / "history.sqlite")


def test_missing_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no history here"):
        open_existing(tmp_path)


class TestReplay:
    def test_recorded_completions_of_a_kind_come_in_order_till_they_are_exhausted(self, tmp_path: Path) -> None:
        assistant = ReplayAssistant(record_replies(tmp_path, ["x: y"], ["a", "b", "c", "d"]))
        drawn = [assistant.complete(request("prefix"), n, SAMPLING) for n in (2, 1)]
        assert [[completion.text for completion in batch] for batch in drawn] == [["a", "b"], ["c"]]
        assert assistant.complete(request("label-texts"), 1, SAMPLING)[0].text == "x: y"
        with pytest.raises(ReplayExhausted, match="2 completions are asked for and 1 recorded ones are left"):
            assistant.complete(request("prefix"), 2, SAMPLING)
        assert len(assistant.complete(request("prefix"), 1, SAMPLING)) == 1, "what failed took nothing"

    def test_run_without_a_record_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no history here"):
            open_assistant(ReplayAssistantConfig(backend="replay", run=str(tmp_path)))

    def test_description_counts_what_is_recorded(self, tmp_path: Path) -> None:
        assistant = ReplayAssistant(record_replies(tmp_path, ["x: y"], ["a", "b", "c"]))
        assert assistant.check().endswith("3 prefixes, 1 sets of label texts")
