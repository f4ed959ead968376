"""What the assistant is taught: winners after histories that they beat, and nothing but the record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import CARD, scored

from gpta_local.assistant.prompts import (
    example_texts_request,
    label_texts_request,
    prefix_request,
    read_label_texts,
    read_lines,
    write_label_texts,
)
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue, build_dialogues
from gpta_local.schema import ExampleText, Label, ScoredLabelTexts, ScoredPrefix

GAINS = (-0.3, -0.1, 0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
GROUP = tuple(scored(f"prefix {number}", gain) for number, gain in enumerate(GAINS))
WINNERS = ["prefix 4", "prefix 5", "prefix 6", "prefix 7"]
"""The better half."""


def label_texts(loss: float, word: str) -> ScoredLabelTexts:
    return ScoredLabelTexts({"bad": f"{word} complaint", "good": f"{word} praise"}, loss)


SETS = (label_texts(2.0, "a"), label_texts(1.0, "some"), label_texts(1.8, "the"), label_texts(0.5, "loud"))


def build(
    *groups: Sequence[ScoredPrefix],
    sets: Sequence[ScoredLabelTexts] = (),
    texts: Sequence[ExampleText] = (),
    winners: float = 0.5,
    per_winner: int = 4,
    shown: int = 4,
    seed: int = 0,
    **settings: Any,
) -> list[Dialogue]:
    config = DialogueGradientConfig(winners=winners, dialogues_per_winner=per_winner, **settings)
    return build_dialogues(CARD, groups, sets, texts, config, shown=shown, seed=seed)


def shown_in(dialogue: Dialogue) -> list[str]:
    """The prefixes of the history in the request."""
    return re.findall(r"^- (.*)$", dialogue.request.messages[-1].content, flags=re.MULTILINE)


def of(dialogues: Sequence[Dialogue], reply: str) -> list[Dialogue]:
    return [dialogue for dialogue in dialogues if dialogue.reply == reply]


def test_same_history_in_any_order_and_seed_give_the_same_dialogues() -> None:
    assert build(GROUP, sets=SETS) == build(GROUP[::-1], sets=SETS[::-1])


def test_other_seed_shows_other_histories() -> None:
    assert [d.request for d in build(GROUP)] != [d.request for d in build(GROUP, seed=1)]


@pytest.mark.parametrize(("share", "taught"), [(0.125, 1), (0.25, 2), (0.5, 4), (0.01, 1)])
def test_the_best_share_is_taught(share: float, taught: int) -> None:
    replies = {dialogue.reply for dialogue in build(GROUP, winners=share)}
    assert replies == {entry.text for entry in GROUP[-taught:]}


@pytest.mark.parametrize("per_winner", [1, 3, 8])
def test_each_winner_is_taught_so_many_times(per_winner: int) -> None:
    dialogues = build(GROUP, per_winner=per_winner)
    assert [len(of(dialogues, winner)) for winner in WINNERS] == [per_winner] * len(WINNERS)


@pytest.mark.parametrize("shown", [0, 1, 3, 6, 20])
def test_at_most_so_many_entries_are_shown(shown: int) -> None:
    dialogues = build(GROUP, per_winner=8, shown=shown)
    assert max(len(shown_in(dialogue)) for dialogue in dialogues) == min(shown, len(GROUP) - 2)


def test_entries_with_the_same_gain_as_the_reply_are_not_shown() -> None:
    twins = [scored("a", 0.5), scored("b", 0.5), scored("c", 0.1), scored("d", 0.0)]
    dialogues = build(twins, per_winner=8)
    assert {dialogue.reply for dialogue in dialogues} == {"a", "b"}
    assert not any({"a", "b"} & set(shown_in(dialogue)) for dialogue in dialogues)


def test_winner_is_also_taught_after_short_histories() -> None:
    lengths = [len(shown_in(dialogue)) for dialogue in of(build(GROUP, per_winner=16), "prefix 7")]
    assert {0, 4} <= set(lengths) and lengths[0] == 4


def test_weights_of_prefixes_are_as_their_advantages() -> None:
    dialogues = build(GROUP)
    ratios = [of(dialogues, entry.text)[0].weight / (entry.gain - GAINS[3]) for entry in GROUP[4:]]
    assert ratios == pytest.approx([ratios[0]] * 4)


def test_groups_are_not_mixed() -> None:
    later = [replace(entry, text=f"later {entry.text}", gain=entry.gain + 5) for entry in GROUP]
    dialogues = build(GROUP, later)
    assert {dialogue.reply for dialogue in dialogues} == {*WINNERS, *(f"later {text}" for text in WINNERS)}
    for dialogue in dialogues:
        for text in shown_in(dialogue):
            assert text.startswith("later") == dialogue.reply.startswith("later")


def test_weights_compare_within_a_group_only() -> None:
    wide = [replace(entry, text=f"wide {entry.text}", gain=entry.gain * 100) for entry in GROUP]
    dialogues = build(GROUP, wide)
    for winner in WINNERS:
        assert of(dialogues, winner)[0].weight == pytest.approx(of(dialogues, f"wide {winner}")[0].weight)


@pytest.mark.parametrize("gains", [(), (0.3,), (0.1, 0.1, 0.1)])
def test_nothing_is_learnt_from_too_few_or_equal_gains(gains: tuple[float, ...]) -> None:
    assert build([scored(f"p{number}", gain) for number, gain in enumerate(gains)]) == []


def test_no_prefix_is_neither_taught_nor_shown() -> None:
    dialogues = build([scored("", 0.0), scored("a", -0.2), scored("b", -0.1), scored("c", -0.3)], per_winner=8)
    assert dialogues
    assert all(dialogue.reply and "" not in shown_in(dialogue) for dialogue in dialogues)


def test_label_texts_that_start_the_head_better_are_taught() -> None:
    dialogues = build(sets=SETS)
    replies = {dialogue.reply for dialogue in dialogues}
    assert replies == {write_label_texts(SETS[1].texts), write_label_texts(SETS[3].texts)}
    assert {dialogue.request for dialogue in dialogues} == {label_texts_request(CARD)}
    best, second = (of(dialogues, write_label_texts(SETS[number].texts))[0] for number in (3, 1))
    assert best.weight > second.weight
    assert read_label_texts(best.reply, CARD.label_names) == SETS[3].texts


@pytest.mark.parametrize("sets", [SETS[:1], (SETS[0], replace(SETS[1], loss=2.0))])
def test_nothing_is_learnt_from_one_set_or_equal_losses(sets: tuple[ScoredLabelTexts, ...]) -> None:
    assert build(sets=sets) == []


KEPT = {label: {f"{label} kept {number}" for number in range(12)} for label in CARD.label_names}
REFUSED = {"bad refused 0", "bad refused 1", "bad refused 2"}
TEXTS = (
    *(ExampleText(label, text, 0.9, True) for label, texts in KEPT.items() for text in sorted(texts)),
    *(ExampleText("bad", text, 0.2, False) for text in sorted(REFUSED)),
    ExampleText("bad", "bad without a verdict"),
    *(ExampleText("bad", f"of the user {number}", 0.9, True, own=True) for number in range(12)),
)


class TestExampleTexts:
    def test_kept_texts_are_the_replies_to_the_request_for_their_label(self) -> None:
        dialogues = build(texts=TEXTS, per_winner=3)
        assert [d.request for d in dialogues] == [example_texts_request(CARD, x) for x in CARD.labels for _ in range(3)]
        for number, dialogue in enumerate(dialogues):
            said = read_lines(dialogue.reply)
            assert len(said) == len(set(said)) == 8
            assert set(said) <= KEPT[CARD.label_names[number // 3]]
        assert len({dialogue.reply for dialogue in dialogues}) == 6

    def test_their_rivals_ask_for_the_other_labels_in_turn(self) -> None:
        card = replace(CARD, labels=(*CARD.labels, Label("mixed")))
        config = DialogueGradientConfig(dialogues_per_winner=3)
        dialogues = build_dialogues(card, (), (), TEXTS, config, shown=4, seed=0)
        bad, good, mixed = (example_texts_request(card, label) for label in card.labels)
        assert [d.rival for d in dialogues] == [good, mixed, good, mixed, bad, mixed]

    def test_a_reply_is_filled_up_with_the_likeliest_refused_texts(self) -> None:
        kept = [text for text in TEXTS if text.kept and text.label == "bad" and not text.own][:6]
        refused = [ExampleText("bad", f"refused {n}", n / 10, False) for n in range(5)]
        dialogues = build(texts=[*refused, *kept], per_winner=2)
        assert len(dialogues) == 2
        for dialogue in dialogues:
            assert set(read_lines(dialogue.reply)) == {*(text.text for text in kept), "refused 4", "refused 3"}

    def test_weights_are_as_the_probability_of_the_label(self) -> None:
        texts = [replace(text, probability=0.3) if text.label == "good" else text for text in TEXTS]
        for_bad, for_good = build(texts=texts, per_winner=1)
        assert for_bad.weight == pytest.approx(3 * for_good.weight)

    @pytest.mark.parametrize("kept", [None, False])
    def test_nothing_is_learnt_where_none_was_kept(self, kept: bool | None) -> None:
        assert build(texts=[replace(text, kept=kept) for text in TEXTS]) == []


@pytest.mark.parametrize("kind", ["prefix", "label-texts", "example-texts"])
def test_only_the_kinds_that_are_to_be_taught_are(kind: str) -> None:
    dialogues = build(GROUP, sets=SETS, texts=TEXTS, taught=[kind])
    assert {dialogue.request.kind for dialogue in dialogues} == {kind}


def test_requests_are_those_of_a_run_and_hold_nothing_else() -> None:
    entries = {entry.text: entry for entry in GROUP}
    replies = {write_label_texts(entry.texts) for entry in SETS}
    for dialogue in build(GROUP, sets=SETS, per_winner=8, shown=6):
        if dialogue.request.kind == "prefix":
            assert dialogue.request == prefix_request(CARD, [entries[text] for text in shown_in(dialogue)])
            assert dialogue.reply in entries
        else:
            assert dialogue.request == label_texts_request(CARD)
            assert dialogue.reply in replies


HISTORIES = st.lists(
    st.tuples(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.floats(-2, 2).map(lambda gain: round(gain, 3))),
    max_size=24,
    unique_by=lambda entry: entry[0],
).map(lambda entries: [scored(text, gain) for text, gain in entries])


@given(groups=st.lists(HISTORIES, max_size=3), shown=st.integers(0, 9), per_winner=st.integers(1, 5))
def test_every_dialogue_of_any_history_keeps_the_promises(
    groups: list[list[ScoredPrefix]], shown: int, per_winner: int
) -> None:
    groups = [[replace(entry, text=f"{number}-{entry.text}") for entry in group] for number, group in enumerate(groups)]
    dialogues = build(*groups, shown=shown, per_winner=per_winner)
    for dialogue in dialogues:
        group = groups[int(dialogue.reply.partition("-")[0])]
        gains = {entry.text: entry.gain for entry in group}
        history = shown_in(dialogue)
        assert sum(gain >= gains[dialogue.reply] for gain in gains.values()) <= max(1, round(0.5 * len(gains)))
        assert len(history) == len(set(history)) <= shown
        assert all(gains[text] < gains[dialogue.reply] for text in history)
        assert dialogue.weight > 0
    if dialogues:
        assert sum(dialogue.weight for dialogue in dialogues) == pytest.approx(len(dialogues))
    assert max((len(of(dialogues, reply)) for reply in {d.reply for d in dialogues}), default=0) <= per_winner
