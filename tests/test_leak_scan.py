"""What the leak scan finds of private rows, however they are rewritten, and what it lets pass."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import CARD, QUICKSTART, read_rows, scored

from gpta_local.assistant.prompts import example_texts_request, label_texts_request, prefix_request
from gpta_local.config import Config, LeakScanConfig
from gpta_local.errors import PrivacyError
from gpta_local.privacy.leak_scan import COMMON, SHORTEST, LeakScan, scan_of, weaker_than_default, words
from gpta_local.schema import DatasetCard, Label

ROW = "My knee has been swollen since the cycling trip and the cream does not help at all."
RUN = "6 words in a row of a private row"


def scan(*texts: str, label_names: Sequence[str] = (), **config: object) -> LeakScan:
    return LeakScan(LeakScanConfig.model_validate(config), texts, label_names)


class TestRows:
    @pytest.mark.parametrize(
        "text",
        [
            ROW,
            "Such as: " + ROW,
            "been swollen since the cycling trip",
            "BEEN SWOLLEN SINCE THE CYCLING TRIP",
            "been — «swollen», since/the\n\tcycling-trip…",
            "be\u200ben swol\u00adlen since the cy\u2060cling trip",
            "ｂｅｅｎ swollen since the cycling trip",
            "béen swöllen since the cycling trip",
            "been_swollen_since_the_cycling_trip",
        ],
    )
    def test_words_of_a_row_are_found_however_they_are_written(self, text: str) -> None:
        assert scan(ROW).find(text) == RUN

    @pytest.mark.parametrize(
        "text", ["", "!?", "been swollen since the cycling", "trip cycling the since swollen been", "been swollen no"]
    )
    def test_fewer_words_or_another_order_are_no_leak(self, text: str) -> None:
        assert scan(ROW).find(text) == ""

    def test_run_of_words_does_not_go_on_into_the_next_row(self) -> None:
        assert scan("one two three four five", "six seven eight nine ten").find("three four five six seven eight") == ""

    def test_number_of_words_can_be_set(self) -> None:
        assert scan(ROW, words=8).find("been swollen since the cycling trip") == ""
        assert scan(ROW, words=8).find("been swollen since the cycling trip and the") != ""

    def test_threshold_counts_different_runs(self) -> None:
        assert scan(ROW, threshold=2).find("been swollen since the cycling trip") == ""
        assert scan(ROW, threshold=2).find("been swollen since the cycling trip and") == RUN
        assert scan(ROW, threshold=2).find("been swollen since the cycling trip, " * 2) == ""

    def test_short_row_is_found_as_a_whole(self) -> None:
        found = scan("Refill for Mrs Baker", threshold=5)
        assert found.find("such as: refill for mrs baker, please") == "a private row of 4 words"
        assert found.find("refill for mrs") == ""

    def test_row_of_fewer_words_than_the_shortest_is_not_looked_for(self) -> None:
        assert scan(" ".join(["word"] * (SHORTEST - 1))).texts == 0

    def test_each_character_of_a_script_without_spaces_is_a_word(self) -> None:
        assert scan("我的膝盖骑车以后一直肿着").find("例如：骑车以后一直肿") == RUN

    def test_phrase_of_many_different_rows_is_common(self) -> None:
        phrase = "i would like to make an appointment"
        rows = [f"{phrase} number {number}" for number in range(COMMON)]
        assert scan(*rows[1:]).find(phrase) == RUN
        assert scan(*rows).find(phrase) == ""

    def test_row_that_is_there_many_times_is_not_common(self) -> None:
        assert scan(*[ROW] * 50).find(ROW) == RUN

    def test_phrase_that_one_row_repeats_is_not_common(self) -> None:
        assert scan("no no no no no no " * COMMON).find("no no no no no no") == RUN

    def test_words_of_a_label_name_may_be_said(self) -> None:
        name = "the card does not work any more"
        assert scan(name, ROW, label_names=[name]).find(f"{name}: a card that is broken") == ""
        assert scan(name, ROW, label_names=[name]).find(ROW) == RUN

    def test_nothing_is_found_where_it_is_off(self) -> None:
        assert scan(ROW, enabled=False).find(f"{ROW} anna@example.org") == ""

    def test_many_rows_are_found_after_many_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.privacy.leak_scan.CHUNK", 100)
        rows = [row["text"] for split in ("train", "validation", "test") for row in read_rows(split)]
        found = scan(*rows)
        assert all(found.find(row) for row in rows if len(words(row)) >= SHORTEST)
        assert found.texts > 400


LETTERS = "abcdefgäöüéñçабвгдежзαβγδεζ0123456789"
WORD = st.text(LETTERS, min_size=1, max_size=8)
OTHER_WORD = st.text("qwxy", min_size=1, max_size=8)
PUNCTUATION = st.text(" \t\n.,;:!?-–—_'’\"“”«»()[]{}*/\\|#…·\u00a0\u3000", min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_run_of_words_of_any_row_is_found_in_any_case_and_punctuation(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 8))
    rows = data.draw(st.lists(st.lists(WORD, min_size=size, max_size=20), min_size=1, max_size=5))
    found = scan(*(" ".join(row) for row in rows), words=size)
    row = data.draw(st.sampled_from(rows))
    start = data.draw(st.integers(0, len(row) - size))
    text = data.draw(PUNCTUATION)
    for word in row[start : start + size]:
        cased = data.draw(st.sampled_from([word, word.upper(), word.title(), word.swapcase()]))
        text += cased + data.draw(PUNCTUATION)
    assert found.find(text)
    assert found.find(f"for example {text} and so on")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(WORD, max_size=20), max_size=5), st.lists(OTHER_WORD, max_size=40))
def test_text_without_a_word_of_a_row_is_let_pass(rows: list[list[str]], other: list[str]) -> None:
    assert scan(*(" ".join(row) for row in rows)).find(" ".join(other)) == ""


def endpoint(**extra_body: object) -> Config:
    assistant = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1/v1", "extra_body": extra_body}
    return Config.model_validate(
        {"data": {"train": "t.jsonl"}, "card": {"description": "Letters of patients."}, "assistant": assistant}
    )


class TestConfiguration:
    def test_field_of_all_requests_is_scanned(self) -> None:
        with pytest.raises(PrivacyError) as raised:
            scan_of(endpoint(top_k=5, chat_template_kwargs={"notes": [ROW]}), [ROW], CARD)
        assert raised.value.where == "assistant.extra_body.chat_template_kwargs"

    def test_harmless_fields_pass(self) -> None:
        assert scan_of(endpoint(top_k=5, chat_template_kwargs={"enable_thinking": False}), [ROW], CARD).texts == 1

    def test_card_is_scanned(self) -> None:
        with pytest.raises(PrivacyError):
            scan_of(endpoint(), [ROW], replace(CARD, description=ROW))


class TestRequests:
    def refused(self, card: DatasetCard, prefixes: Sequence[str] = ()) -> str:
        request = prefix_request(card, [scored(text, number / 10) for number, text in enumerate(prefixes)])
        with pytest.raises(PrivacyError) as raised:
            scan(ROW).check(request)
        assert not {"knee", "swollen", "cream", "trip"} & set(words(str(raised.value)))
        return raised.value.where

    @pytest.mark.parametrize(
        ("changes", "where"),
        [
            ({"description": f"Letters. {ROW}"}, "card.description"),
            ({"name": ROW}, "card.name"),
            ({"labels": (Label("good"), Label("bad", ROW))}, "card.labels.bad"),
            ({"labels": (Label("good"), Label(ROW, "a knee"))}, "card.labels, the name of label 2"),
        ],
    )
    def test_field_of_the_card_is_named(self, changes: dict[str, Any], where: str) -> None:
        assert self.refused(replace(CARD, **changes)) == where

    def test_prefix_of_the_history_is_numbered_as_it_is_shown(self) -> None:
        assert self.refused(CARD, ["Text:", "Note:", ROW]) == "the prefix shown as number 3 of the history"

    def test_personal_data_are_named_by_their_kind_alone(self) -> None:
        with pytest.raises(PrivacyError, match="an e-mail address") as raised:
            scan().check(label_texts_request(replace(CARD, description="Letters to anna@example.org about all.")))
        assert "anna" not in str(raised.value)

    def test_worked_examples_are_no_personal_data(self) -> None:
        history = [scored(f"Text number {number}", number * 1.111 - 4) for number in range(8)]
        for request in (
            prefix_request(CARD, history),
            label_texts_request(CARD),
            example_texts_request(CARD, CARD.labels[0]),
        ):
            scan(ROW).check(request)

    def test_reply_that_would_be_taught_is_scanned(self) -> None:
        request = prefix_request(CARD, [])
        scan(ROW).check_dialogue(request, "Text:")
        with pytest.raises(PrivacyError, match="taught"):
            scan(ROW).check_dialogue(request, f"Text:\nbad: {ROW}")

    def test_every_line_that_is_sent_is_scanned(self) -> None:
        request = prefix_request(replace(CARD, name="two\n\nlines"), [scored("Text:", 0.1)])
        for number, message in enumerate(request.messages):
            lines = message.content.split("\n")
            for place in (place for place, line in enumerate(lines) if line.strip()):
                content = "\n".join([*lines[:place], f"{lines[place]} {ROW}", *lines[place + 1 :]])
                messages = list(request.messages)
                messages[number] = replace(message, content=content)
                with pytest.raises(PrivacyError):
                    scan(ROW).check(replace(request, messages=tuple(messages)))


def test_shipped_card_shares_no_run_of_words_with_its_rows() -> None:
    from gpta_local.config import load
    from gpta_local.tasks import open_task

    task = open_task(load(QUICKSTART / "quickstart.yaml"))
    texts = list(task.texts())
    found = LeakScan(LeakScanConfig(), texts, task.label_names)
    assert len(texts) == sum(len(read_rows(split)) for split in ("train", "validation", "test"))
    found.check(prefix_request(task.card(), []))
    assert all(found.find(text) for text in random.Random(0).sample(texts, 20))


@pytest.mark.parametrize(
    ("config", "said"),
    [({}, False), ({"words": 4}, False), ({"words": 7}, True), ({"threshold": 2}, True), ({"enabled": False}, True)],
)
def test_scan_that_is_weaker_than_usual_is_told(config: dict[str, Any], said: bool) -> None:
    assert bool(weaker_than_default(LeakScanConfig(**config))) is said
