"""What is asked of an assistant, and how its replies are read."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import CARD as GUESTS
from samples import LABEL_TEXTS, label_text_reply, scored

from gpta_local.assistant.prompts import (
    ASK_LABEL_TEXTS,
    ASK_PREFIX,
    EXAMPLE,
    EXAMPLE_LABEL_TEXTS,
    EXAMPLE_PREFIX,
    EXAMPLE_TEXTS,
    TRIED,
    UnusableReply,
    describe,
    example_texts_request,
    label_texts_request,
    prefix_request,
    read_label_texts,
    read_lines,
    read_prefixes,
    reply_room,
    write_label_texts,
)
from gpta_local.schema import DatasetCard, Label, Request

CARD = DatasetCard(
    name="clinic-messages",
    task="text-classification",
    description="Messages that patients write.",
    labels=(Label("billing", "invoices and refunds"), Label("test_results")),
)


def user_message(request: Request) -> str:
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "user"]
    return request.messages[-1].content


REQUESTS = [prefix_request(CARD, []), label_texts_request(CARD), example_texts_request(CARD, CARD.labels[1])]
EVERY_REQUEST = pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.kind)


class TestRequests:
    @EVERY_REQUEST
    def test_request_holds_the_whole_card(self, request_: Request) -> None:
        content = user_message(request_)
        for part in (CARD.name, CARD.description, "\nbilling: invoices and refunds\n", "\ntest_results\n"):
            assert part in content

    @EVERY_REQUEST
    def test_requests_of_a_kind_begin_alike_whatever_the_card(self, request_: Request) -> None:
        of_guests = (
            prefix_request(GUESTS, [scored("a", 0.1)]),
            label_texts_request(GUESTS),
            example_texts_request(GUESTS, GUESTS.labels[0]),
        )
        (other,) = (request for request in of_guests if request.kind == request_.kind)
        assert other.messages[:-1] == request_.messages[:-1] and other.messages[-1] != request_.messages[-1]

    def test_worked_examples_are_replies_that_would_be_used(self) -> None:
        prefix, label_texts, texts = (request.messages[2].content for request in REQUESTS)
        assert read_prefixes(prefix) == [EXAMPLE_PREFIX]
        assert read_label_texts(label_texts, EXAMPLE.label_names) == EXAMPLE_LABEL_TEXTS
        assert read_lines(texts) == [*EXAMPLE_TEXTS]

    def test_example_texts_are_asked_of_one_label_with_all_of_them_told(self) -> None:
        requests = [example_texts_request(CARD, label) for label in CARD.labels]
        (card, _, first), (again, _, second) = (user_message(request).rpartition("\n\n") for request in requests)
        assert card == again == describe(CARD)
        assert '"billing" (invoices and refunds) and no other' in first and "test_results" not in first
        assert '"test_results" and no other' in second and "billing" not in second

    def test_request_says_how_its_reply_is_read_and_ends_with_what_is_asked(self) -> None:
        proposals, texts = prefix_request(CARD, [scored("a", 0.1)]), label_texts_request(CARD)
        assert (proposals.kind, texts.kind) == ("prefix", "label-texts")
        assert user_message(proposals).endswith(ASK_PREFIX) and user_message(texts).endswith(ASK_LABEL_TEXTS)

    def test_history_goes_from_worst_to_best_without_a_number_to_copy(self) -> None:
        content = user_message(prefix_request(CARD, [scored("b", 0.02), scored("c", 0.5), scored("", 0.0)]))
        assert f"{TRIED}\n- (nothing)\n- b\n- c\n" in content
        assert re.findall(r"\d", content) == []

    def test_reply_in_the_asked_form_has_room(self) -> None:
        assert reply_room(label_texts_request(CARD)) > 2 * 24
        assert reply_room(prefix_request(CARD, [])) >= 48
        many = dataclasses.replace(CARD, labels=CARD.labels * 10)
        assert reply_room(label_texts_request(many)) - reply_room(label_texts_request(CARD)) >= 18 * 20

    def test_first_request_mentions_no_history(self) -> None:
        assert TRIED not in user_message(prefix_request(CARD, []))


READABLE_PREFIXES = {
    "Question:": "Question:",
    "  Question:  \n": "Question:",
    "Question:\r\n": "Question:",
    '"Question:"': "Question:",
    "'What's asked?'": "What's asked?",
    "“Question:”": "Question:",
    "« Service : »": "Service :",
    "‘Question:’": "Question:",
    "`Question:`": "Question:",
    "**Question:**": "Question:",
    '**"Question:"**': "Question:",
    '"**Question:**"': "Question:",
    "- Question:": "Question:",
    "* Question:": "Question:",
    "• Question:": "Question:",
    "1. Question:": "Question:",
    "12) Question:": "Question:",
    "- **Question:**": "Question:",
    "Prefix: Question:": "Question:",
    "prefix = Question:": "Question:",
    'New prefix: "Question:"': "Question:",
    '"Prefix: Question:"': "Question:",
    "**Prefix:** Question:": "Question:",
    "**Prefix**: Question:": "Question:",
    "Here is a new prefix:\n\nQuestion:": "Question:",
    'Sure! Here is one:\n"Question:"': "Question:",
    "Answer:\nQuestion:": "Question:",
    "Question:\n\nThis prefix helps because it names the task.": "Question:",
    "1. Question:\n2. Topic:": "Question:",
    "...\n\nQuestion:": "Question:",
    "```\nQuestion:\n```": "Question:",
    "```text\nQuestion:\n```\n": "Question:",
    "```Question:```": "Question:",
    "<think>\nTopics differ.\nA short one.\n</think>\n\nQuestion:": "Question:",
    "<think></think>Question:": "Question:",
    "Topics differ, so a short one.\n</think>\n\nQuestion:": "Question:",
    "What is\tasked  here?": "What is asked here?",
    "Ques\u200btion\u0007:": "Question:",
    '"Billing" or "records"': '"Billing" or "records"',
    "“Billing” or “records”": "“Billing” or “records”",
    'The words "pay" and "refund" mean billing:': 'The words "pay" and "refund" mean billing:',
    "A patient’s wish:": "A patient’s wish:",
    "Here is a message of a patient:": "Here is a message of a patient:",
    "Prefix:": "Prefix:",
    "2024 in review:": "2024 in review:",
    "症状:": "症状:",
}
UNUSABLE_PREFIXES = [
    "",
    " \n\t\n",
    "...",
    '""',
    "**",
    "```\n```",
    "<think>The labels are topics, so a short",
    "<think>one\ntwo</think>",
    "\u200b\u200b",
]


class TestReadPrefix:
    @pytest.mark.parametrize(("reply", "prefix"), READABLE_PREFIXES.items())
    def test_prefix_is_read_out_of(self, reply: str, prefix: str) -> None:
        assert read_prefixes(reply)[0] == prefix

    @pytest.mark.parametrize("reply", UNUSABLE_PREFIXES)
    def test_there_is_no_prefix_in(self, reply: str) -> None:
        with pytest.raises(UnusableReply):
            read_prefixes(reply)

    @given(st.text())
    @example("\u2028a\u2029b")
    @example("\x85a\x0bb")
    @example('"\n"')
    @example("</think>" * 3)
    def test_any_reply_gives_one_line_with_a_word_or_is_unusable(self, reply: str) -> None:
        try:
            prefix, *_ = read_prefixes(reply)
        except UnusableReply:
            return
        assert prefix == prefix.strip()
        assert len(prefix.splitlines()) == 1
        assert re.search(r"\w", prefix)


NAMES = ("billing", "test_results")
PHRASES = {"billing": "a bill", "test_results": "a blood test"}
READABLE_LABEL_TEXTS = [
    "billing: a bill\ntest_results: a blood test",
    "test_results: a blood test\nbilling: a bill",
    "Here are the phrases:\n\nbilling: a bill\n\ntest_results: a blood test\n\nI hope this helps!",
    "- billing: a bill\n- test_results: a blood test",
    "1. billing: a bill\n2. test_results: a blood test",
    "**billing**: a bill\n**test_results**: a blood test",
    "* **billing:** a bill\n* **test_results:** a blood test",
    "`billing`: a bill\n`test_results`: a blood test",
    "Billing: a bill\nTest Results: a blood test",
    "BILLING: a bill\nTEST-RESULTS: a blood test",
    'billing: "a bill"\ntest_results: “a blood test”',
    "billing : a bill\ntest_results :a blood test",
    "```\nbilling: a bill\ntest_results: a blood test\n```",
    '```json\n{\n  "billing": "a bill",\n  "test_results": "a blood test"\n}\n```',
    "<think>billing: money\ntest_results: blood</think>\nbilling: a bill\ntest_results: a blood test",
    "billing: money, test_results: blood\n</think>\nbilling: a bill\ntest_results: a blood test",
    "billing: a bill\nbilling: another\ntest_results: a blood test",
    "billing:\nbilling: a bill\ntest_results: a blood test",
    "note: short\nbilling: a bill\ntest_results: a blood test",
    "\tbilling:\ta bill\r\n\ttest_results:\ta  blood\ttest\r\n",
]
UNUSABLE_LABEL_TEXTS = [
    ("", "empty reply"),
    ("billing: a bill", "no phrase for the label 'test_results'"),
    ("billing: a bill\ntest_results:", "no phrase for the label 'test_results'"),
    ("billing: a bill\ntest_results: ...", "no phrase for the label 'test_results'"),
    ("billing: a bill\ntest_results: A bill", "two labels have the same phrase"),
    ("bills: a bill\nresults: a blood test", "no phrase for the label 'billing'"),
    ("<think>billing: a bill\ntest_results: a blood test", "only reasoning, no answer"),
    ("billing is about bills\ntest_results are about tests", "no phrase for the label 'billing'"),
]


class TestReadLabelTexts:
    @pytest.mark.parametrize("reply", READABLE_LABEL_TEXTS)
    def test_phrases_are_read_out_of_and_come_in_the_order_of_the_labels(self, reply: str) -> None:
        read = read_label_texts(reply, NAMES)
        assert read == PHRASES and list(read) == list(NAMES)

    @pytest.mark.parametrize(("reply", "reason"), UNUSABLE_LABEL_TEXTS)
    def test_reply_is_unusable(self, reply: str, reason: str) -> None:
        with pytest.raises(UnusableReply, match=reason):
            read_label_texts(reply, NAMES)

    def test_label_and_phrase_may_hold_a_colon(self) -> None:
        names = ("ABBR: abb", "ABBR: exp")
        assert read_label_texts("ABBR: abb: short: form\nABBR: exp: long form", names) == {
            "ABBR: abb": "short: form",
            "ABBR: exp": "long form",
        }

    @pytest.mark.parametrize("names", [("-1", "0", "1"), ("a_b", "a b", "a-b"), ("+", "-", "*"), ("X", "x", "y")])
    def test_labels_that_differ_in_marks_only_are_kept_apart(self, names: tuple[str, ...]) -> None:
        texts = {name: f"phrase {number}" for number, name in enumerate(names)}
        assert read_label_texts(label_text_reply(texts), names) == texts

    def test_written_label_texts_are_read_as_what_they_were(self) -> None:
        assert read_label_texts(write_label_texts(LABEL_TEXTS), tuple(LABEL_TEXTS)) == LABEL_TEXTS

    @given(st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
    def test_any_reply_gives_a_line_for_each_label_or_is_unusable(self, reply: str, names: list[str]) -> None:
        try:
            texts = read_label_texts(reply, names)
        except UnusableReply:
            return
        assert list(texts) == names
        assert all(len(text.splitlines()) == 1 for text in texts.values())

    @given(st.dictionaries(st.sampled_from(["a", "b c", "d_e", "f:g"]), st.text(), min_size=1))
    def test_reply_in_the_asked_form_is_one_line_for_each_label_or_unusable(self, texts: dict[str, str]) -> None:
        try:
            read = read_label_texts(label_text_reply(texts), tuple(texts))
        except UnusableReply:
            return
        assert all(len(text.splitlines()) == 1 for text in read.values())
