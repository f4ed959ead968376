"""Cleaning, racing and choosing prefixes, with made-up losses and embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from samples import CARD, scored

from gpta_local.assistant.prompts import UnusableReply
from gpta_local.data.splits import scoring_order
from gpta_local.knowledge.label_texts import (
    read_label_text_sets,
    templated,
)
from gpta_local.knowledge.prefixes import (
    FIRST_HEAT,
    Candidates,
    PrefixReader,
    choose,
    clean,
    figures,
    race,
    ranked,
)
from gpta_local.knowledge.prefixes import shown_history as shown
from gpta_local.metrics import paired_mean
from gpta_local.schema import Completion, DatasetCard, Label, ProposalFigures, ScoredPrefix


def letters(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeds a text by its first letter; an upper-case one lies near the lower-case one."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in enumerate(texts):
        vectors[row, ord(text[0].lower()) % 64] = 1
        if text[0].isupper():
            vectors[row, 0] = 0.1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def no_leak(text: str) -> str:
    return ""


def secret(text: str) -> str:
    return "words of a row" if "secret" in text else ""


def reader(card: DatasetCard = CARD) -> PrefixReader:
    return PrefixReader(card, tokens=lambda text: len(text.split()), max_tokens=4, leak=secret)


def cleaned(replies: Sequence[str], known: Sequence[str] = ()) -> Candidates:
    return clean([Completion(reply, "m") for reply in replies], known, embed=letters, read=reader().read)


CLINIC = DatasetCard(
    "clinic", "text-classification", "Messages of patients.", (Label("Appointments"), Label("test_results"))
)


class TestPrefixReader:
    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("0.023 appointment: activity", "holds a number"),
            ("-0.702 Appointment of someone", "holds a number"),
            ("A gain of 0,4", "holds a number"),
            ("Appointments: my visit", "names a label"),
            ("**Test results**", "names a label"),
            ("患者的请求", "another script"),
            ("What the 患者 wants", "another script"),
            ("A <b> request", "speaks of the task"),
            ("A request of {name}", "speaks of the task"),
            ("Here is a prefix", "speaks of the task"),
            ("request request request", "repeats itself"),
            ("Re=>[[]]//q:;", "garbled"),
            ("a secret of rows", "holds words of a row"),
            ("one two three four five", "5 tokens, 4 allowed"),
        ],
    )
    def test_prefix_is_refused(self, reply: str, reason: str) -> None:
        with pytest.raises(UnusableReply, match=reason):
            reader(CLINIC).read(reply)

    @pytest.mark.parametrize(
        ("reply", "prefix"),
        [
            ("What the patient wants:\nWhy they write:\n", "What the patient wants:"),
            ("- Café visit, 2 people\n- Visit", "Café visit, 2 people"),
            ("The appointments desk:", "The appointments desk:"),
            ("Request <|im_end|>", "Request"),
            ("[INST] Request [/INST]", "Request"),
        ],
    )
    def test_prefix_is_taken(self, reply: str, prefix: str) -> None:
        assert reader(CLINIC).read(reply)[0] == prefix

    def test_scripts_of_the_card_are_taken(self) -> None:
        card = replace(CLINIC, description="患者さんからのメッセージ")
        assert reader(card).read("患者の時々のお願い") == ["患者の時々のお願い"]
        assert reader(replace(CLINIC, description="रोगियों के संदेश")).read("रोगी की विनती") == ["रोगी की विनती"]


class TestClean:
    def test_new_prefixes_are_accepted_in_order(self) -> None:
        candidates = cleaned(["beta", '"alpha"'])
        assert candidates.prefixes == ["beta", "alpha"]
        assert candidates.verdicts == [("accepted", "beta"), ("accepted", "alpha")]

    @pytest.mark.parametrize(
        ("replies", "known", "prefixes"),
        [
            (["alpha", "Alpha ", "beta"], [], ["alpha", "beta"]),
            (["alpha", "beta"], ["ALPHA"], ["beta"]),
            (["alpha", "Another one"], [], ["alpha"]),
            (["Another one", "beta"], ["alpha"], ["beta"]),
        ],
        ids=["exact", "exact, of an earlier round", "near", "near, of an earlier round"],
    )
    def test_repetition_is_dropped(self, replies: list[str], known: list[str], prefixes: list[str]) -> None:
        candidates = cleaned(replies, known)
        assert candidates.prefixes == prefixes
        assert Counter(outcome for outcome, _ in candidates.verdicts)["repeated"] == 1

    def test_near_repetition_of_a_dropped_one_is_kept(self) -> None:
        """c is near b, b is near a and dropped; c is not near a."""

        def chain(texts: Sequence[str]) -> NDArray[np.float32]:
            angles = np.array([{"a": 0.0, "b": 0.15, "c": 0.3}[text] for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

        completions = [Completion(text, "m") for text in "abc"]
        candidates = clean(completions, [], embed=chain, read=list)
        assert candidates.prefixes == ["a", "c"]

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("", "empty reply"),
            ("five six seven eight nine", "5 tokens, 4 allowed"),
            ("beta secret", "holds words of a row"),
        ],
    )
    def test_unusable_reply_is_dropped_with_its_reason_and_none_of_its_words(self, reply: str, reason: str) -> None:
        candidates = cleaned([reply, "alpha"])
        assert candidates.prefixes == ["alpha"]
        assert candidates.verdicts[0] == ("unusable", reason)

    def test_further_lines_of_a_reply_stand_in_for_replies_without_any(self) -> None:
        replies = ["alpha\nbeta\ngamma\ndelta", "", "1. eps\n2. zeta", "..."]
        completions = [Completion(reply, "m") for reply in replies]
        candidates = clean(completions, ["beta"], embed=letters, read=reader().read, fill=True)
        assert candidates.prefixes == ["alpha", "eps", "zeta", "gamma"], "as many as replies, first lines first"
        assert candidates.found == [["alpha", "gamma"], [], ["eps", "zeta"], []]
        assert candidates.verdicts[0] == ("accepted", "alpha | gamma")
        assert cleaned(replies, ["beta"]).prefixes == ["alpha", "eps"]

    def test_line_that_was_cut_off_is_no_prefix(self) -> None:
        completions = [Completion("alpha\nTried before, from\nbet", "m", "length"), Completion("", "m")]
        assert clean(completions, [], embed=letters, read=reader().read, fill=True).prefixes == ["alpha"]

    def test_line_that_can_be_used_is_read_behind_one_that_cannot(self) -> None:
        assert reader().read("one two three four five\n- beta\n- a secret") == ["beta"]

    @pytest.mark.parametrize("replies", [["", "..."], []])
    def test_nothing_usable_needs_no_embedding(self, replies: list[str]) -> None:
        assert cleaned(replies).prefixes == []

    def test_counts_add_up_to_the_completions(self) -> None:
        replies = ["alpha", "alpha", "Almost", "", "b c d e f", "beta", "..."]
        candidates = cleaned(replies, known=["beta"])
        assert candidates.counts == {"accepted": 1, "repeated": 3, "unusable": 3}
        assert sum(candidates.counts.values()) == len(candidates.verdicts) == len(replies)


XY = DatasetCard("letters", "text-classification", "Letters.", (Label("x"), Label("y")))


class TestLabelTextSets:
    def test_usable_distinct_sets_are_kept_and_every_reply_is_judged(self) -> None:
        replies = ["x: one\ny: two", "y: two\nx: one", "x: one", "x: three\ny: four"]
        sets, verdicts = read_label_text_sets([Completion(reply, "m") for reply in replies], XY, no_leak)
        assert sets == [{"x": "one", "y": "two"}, {"x": "three", "y": "four"}]
        assert [outcome for outcome, _ in verdicts] == ["accepted", "repeated", "unusable", "accepted"]

    def test_set_with_private_words_in_a_phrase_is_unusable(self) -> None:
        sets, verdicts = read_label_text_sets(
            [Completion("x: one\ny: a secret", "m")],
            XY,
            secret,
        )
        assert (sets, verdicts) == ([], [("unusable", "holds words of a row")])

    def test_name_and_phrase_are_judged_together_as_they_would_be_taught(self) -> None:
        reply = Completion("x: one\ny: of a row", "m")
        sets, _ = read_label_text_sets([reply], XY, lambda text: "words of a row" if text == "y: of a row" else "")
        assert sets == []

    @pytest.mark.parametrize("phrase", ["一句话", "go go go", "a phrase for this label", "a {place} here"])
    def test_set_with_a_phrase_that_is_no_plain_text_is_unusable(self, phrase: str) -> None:
        sets, ((outcome, _),) = read_label_text_sets([Completion(f"x: one\ny: {phrase}", "m")], XY, no_leak)
        assert (sets, outcome) == ([], "unusable")


class Losses:
    """Losses by row: 1 plus noise of the row, less the prefix's gain. Counts what is asked."""

    def __init__(self, gains: dict[str, float], noise: float = 0.0) -> None:
        self.gains, self.calls = gains, list[tuple[str, int]]()
        self.noise = np.random.default_rng(0).normal(0, noise, size=4096)

    def __call__(self, prefix: str, rows: Sequence[int]) -> NDArray[np.float64]:
        self.calls.append((prefix, len(rows)))
        return 1 + self.noise[list(rows)] - self.gains.get(prefix, 0.0)


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


class TestRace:
    def test_no_prefix_leads_with_gain_zero_and_the_rest_follow_from_best_to_worst(self) -> None:
        none, *others = race(names(3), Losses({"p0": 0.1, "p1": -0.2, "p2": 0.3}), range(20))
        assert [s.text for s in others] == ["p2", "p0", "p1"]
        assert (none.text, none.gain, none.standard_error, none.loss, none.rows) == ("", 0.0, 0.0, 1.0, 20)

    def test_few_rows_are_all_used_in_one_heat(self) -> None:
        losses = Losses({})
        race(names(8), losses, range(2 * FIRST_HEAT))
        assert set(losses.calls) == {(name, 2 * FIRST_HEAT) for name in ["", *names(8)]}

    @pytest.mark.parametrize(
        ("prefixes", "rows", "heats"),
        [
            (8, 512, {64: 8, 128: 4, 256: 2, 512: 1}),
            (8, 200, {64: 8, 128: 4, 200: 2}),
            (5, 130, {64: 5, 128: 3, 130: 2}),
        ],
        ids=["doubled", "no more rows than there are", "odd number keeps the larger half"],
    )
    def test_each_heat_halves_the_prefixes_and_doubles_the_rows(
        self, prefixes: int, rows: int, heats: dict[int, int]
    ) -> None:
        losses = Losses({name: i / 100 for i, name in enumerate(names(prefixes))})
        result = race(names(prefixes), losses, range(rows))
        assert Counter(asked for prefix, asked in losses.calls if prefix) == heats
        assert [asked for prefix, asked in losses.calls if not prefix] == list(heats), "no prefix, once in each heat"
        assert sorted(s.text for s in result) == sorted(["", *names(prefixes)])

    def test_last_one_left_runs_on_to_all_rows(self) -> None:
        result = race(names(4), Losses({name: i / 100 for i, name in enumerate(names(4))}), range(300))
        assert [(s.text, s.rows) for s in result] == [("", 300), ("p3", 300), ("p2", 128), ("p1", 64), ("p0", 64)]

    def test_nothing_new_takes_one_heat(self) -> None:
        losses = Losses({})
        assert [(s.text, s.rows) for s in race([], losses, range(300))] == [("", 64)]
        assert losses.calls == [("", 64)]

    def test_survivors_are_the_best_of_each_heat(self) -> None:
        result = race(names(8), Losses({name: i / 100 for i, name in enumerate(names(8))}), range(256))
        rows = {s.text: s.rows for s in result}
        assert (rows["p7"], rows["p6"], rows["p5"], rows["p4"], rows["p3"], rows["p0"]) == (256, 256, 128, 128, 64, 64)

    def test_heats_take_the_rows_in_their_order(self) -> None:
        taken: list[list[int]] = []

        def losses(prefix: str, rows: Sequence[int]) -> NDArray[np.float64]:
            taken.append(list(rows))
            return np.ones(len(rows))

        order = list(reversed(range(200)))
        race(names(4), losses, order)
        assert all(rows == order[: len(rows)] for rows in taken)

    def test_standard_error_is_that_of_paired_differences(self) -> None:
        losses = Losses({"p0": 0.25}, noise=5.0)
        entry = race(["p0"], losses, range(100))[1]
        assert entry.gain == pytest.approx(0.25)
        assert entry.standard_error == pytest.approx(0, abs=1e-9)

    def test_gain_and_error_are_those_of_the_rows(self) -> None:
        table = {"": np.array([1.0, 2.0, 3.0, 5.0]), "p": np.array([0.5, 2.5, 2.0, 4.0])}
        entry = race(["p"], lambda prefix, rows: table[prefix], range(4))[1]
        assert (entry.gain, entry.standard_error) == paired_mean(table[""] - table["p"])
        assert entry.loss == table["p"].mean()

    def test_equals_stay_in_the_order_of_proposal(self) -> None:
        assert [s.text for s in race(names(6), Losses({}), range(512))][1] == "p0"

    def test_repeated_prefix_runs_once(self) -> None:
        losses = Losses({})
        race(["a", "b", "a"], losses, range(10))
        assert Counter(prefix for prefix, _ in losses.calls) == {"": 1, "a": 1, "b": 1}

    def test_kept_prefix_is_measured_in_every_heat(self) -> None:
        worst = Losses({"now": -9.0})
        entries = race(["now", *names(8)], worst, range(512), kept="now")
        assert next(s for s in entries if s.text == "now").rows == 512

    def test_progress_is_told_once_for_each_prefix(self) -> None:
        told: list[int] = []
        race(names(8), Losses({}), range(512), on_scored=lambda: told.append(1))
        assert len(told) == 8


class TestChoose:
    @pytest.mark.parametrize(
        ("entries", "current", "chosen"),
        [
            ([scored("wild", 0.5, 0.4), scored("steady", 0.3, 0.1)], "", "steady"),
            ([scored("a", 0.2, 0.3), scored("b", -0.1, 0.0)], "", ""),
            ([scored("a", 0.25, 0.25)], "", ""),
            ([scored("a", 9.0, float("inf"))], "", ""),
            ([scored("a", 0.1, 0.05), scored("lucky", 0.9, 0.1, rows=4)], "", "a"),
            ([scored("now", 0.2, 0.3), scored("new", 0.25, 0.1)], "now", "now"),
            ([scored("now", 0.1, 0.0), scored("new", 0.25, 0.1)], "now", "new"),
            ([scored("now", -0.1, 0.05)], "now", ""),
        ],
        ids=[
            "the highest lower bound",
            "none where none clears its error",
            "none where the best bound is zero",
            "none where the error is that of a single row",
            "not one that left the race early",
            "the current one where no bound is above its gain",
            "another where its bound is above the current one's gain",
            "none where the current one is worse",
        ],
    )
    def test_choice_is(self, entries: list[ScoredPrefix], current: str, chosen: str) -> None:
        assert choose([scored("", 0.0), *entries], current).text == chosen

    def test_best_of_many_must_be_clearer_than_the_best_of_few(self) -> None:
        few, many = 1, 64
        entry = scored("a", 0.2, 0.1)
        others = [scored(f"{i}", -1.0, 0.1) for i in range(many)]
        assert choose([scored("", 0.0), entry, *others[:few]]).text == "a"
        assert choose([scored("", 0.0), entry, *others]).text == ""


class TestRanked:
    def test_highest_lower_bound_is_first(self) -> None:
        noisy, sure = scored("noisy", 0.5, 0.3), scored("sure", 0.3, 0.01)
        assert ranked([noisy, sure], 1.0) == [sure, noisy]
        assert ranked([noisy, sure], 0.0) == [noisy, sure]

    def test_only_those_of_the_last_heat_are_ranked(self) -> None:
        lucky, finisher = scored("lucky", 0.9, rows=64), scored("finisher", 0.1, rows=128)
        none = scored("", 0.0, rows=256)
        assert ranked([lucky, finisher, none], 1.0) == [finisher]
        assert ranked([none], 1.0) == ranked([], 1.0) == []

    def test_of_equals_the_first_is_first(self) -> None:
        assert [s.text for s in ranked([scored("a", 0.1), scored("b", 0.1)], 1.0)] == ["a", "b"]


class TestTemplated:
    TEXTS = ({"a": "bills", "b": "visits"}, {"a": "money", "b": "time"})

    def test_label_texts_come_first_and_then_each_behind_each_template(self) -> None:
        assert templated(self.TEXTS, ["Topic:", "It is"]) == [
            *self.TEXTS,
            {"a": "Topic: bills", "b": "Topic: visits"},
            {"a": "Topic: money", "b": "Topic: time"},
            {"a": "It is bills", "b": "It is visits"},
            {"a": "It is money", "b": "It is time"},
        ]
        assert templated(self.TEXTS, []) == [*self.TEXTS]


class TestShownHistory:
    HISTORY = tuple(scored(f"p{i}", i / 10) for i in range(20))

    def test_half_are_the_best_and_the_rest_is_drawn_by_the_seed(self) -> None:
        best = ["p19", "p18", "p17", "p16"]
        once, again, *others = (shown(self.HISTORY, 8, seed) for seed in "sstuvw")
        assert [s.text for s in once[:4]] == best
        assert len({s.text for s in once[4:]} - {*best}) == 4
        assert once == again and any(once != other for other in others)

    @pytest.mark.parametrize(("size", "shown_size"), [(0, 0), (1, 1), (3, 3), (40, 20)])
    def test_size_is_a_limit(self, size: int, shown_size: int) -> None:
        assert len(shown(self.HISTORY, size, "s")) == shown_size
        assert shown([], size, "s") == []


class TestScoringOrder:
    LABELS = (0,) * 50 + (1,) * 30 + (2,) * 10

    def test_rows_are_distinct_and_at_most_size(self) -> None:
        order = scoring_order(self.LABELS, 60, 0)
        assert len(order) == len(set(order)) == 60

    @pytest.mark.parametrize("heat", [9, 30, 60])
    def test_every_beginning_holds_the_classes_in_the_parts_of_the_data(self, heat: int) -> None:
        counts = Counter(self.LABELS[row] for row in scoring_order(self.LABELS, 90, 0)[:heat])
        for label, share in ((0, 5 / 9), (1, 3 / 9), (2, 1 / 9)):
            assert abs(counts[label] - share * heat) <= 1.5

    def test_all_rows_are_there_where_the_size_allows(self) -> None:
        assert sorted(scoring_order(self.LABELS, 500, 0)) == list(range(90))

    def test_order_is_that_of_the_seed(self) -> None:
        assert scoring_order(self.LABELS, 60, 4) == scoring_order(self.LABELS, 60, 4)
        assert set(scoring_order(self.LABELS, 20, 4)) != set(scoring_order(self.LABELS, 20, 5))


class TestFigures:
    SCORED = (scored("", 0.0), scored("a", 0.3), scored("b", 0.1), scored("c", -0.1), scored("other", 0.9))
    FOUND = (["a"], [], ["b"], [])

    def test_counts_are_those_of_the_adapters_own_proposals(self) -> None:
        found = figures("001", self.FOUND, self.SCORED, None)
        assert found == ProposalFigures("001", 4, 2, 2, pytest.approx(0.2))
        assert found.hit_rate == 0.5 and ProposalFigures("", 0, 0, 0, None).hit_rate == 0

    @pytest.mark.parametrize(("best", "hits"), [(0.2, 1), (0.3, 0)])
    def test_hit_gains_more_than_the_best_that_was_shown(self, best: float, hits: int) -> None:
        assert figures("", self.FOUND, self.SCORED, scored("best", best)).hits == hits

    def test_gain_below_none_is_no_hit_where_nothing_was_shown(self) -> None:
        assert figures("", [["c"]], self.SCORED, None).hits == 0

    def test_prefix_that_ran_further_than_the_best_shown_has_beaten_it(self) -> None:
        entries = [scored("", 0.0), scored("a", 0.1, rows=16), scored("b", 0.3, rows=8)]
        assert figures("", self.FOUND, entries, scored("best", 0.2, rows=8)).hits == 2
        assert figures("", self.FOUND, entries, scored("best", 0.05, rows=16)).hits == 1

    def test_without_anything_new_there_is_no_mean(self) -> None:
        assert figures("", [[]], self.SCORED, None) == ProposalFigures("", 1, 0, 0, None)
