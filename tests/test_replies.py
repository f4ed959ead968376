"""What is read out of replies, whatever models and servers put around the answer."""

from __future__ import annotations

import json

import pytest

from gpta_local.assistant.prompts import UnusableReply, read_label_texts, read_lines, read_prefixes
from gpta_local.knowledge.unusable import Judged, why

PREFIX = "Which town office answers this:"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
AROUND = {
    "nothing": PREFIX,
    "thoughts": f"<think>\nThe user wants a prefix.\n</think>\n\n{PREFIX}",
    "thoughts that a template opened": f"The user wants a prefix.\n</think>\n{PREFIX}",
    "thoughts of another name": f"<mm:think>hm</mm:think><thought>hm\nhm</thought>{PREFIX}",
    "[THINK]": f"[THINK]Need a short prefix.\nMaybe office.[/THINK]{PREFIX}",
    "harmony": f"<|channel|>analysis<|message|>Need a short prefix.<|end|>{FINAL}{PREFIX}<|return|>",
    "harmony with commentary": f"<|channel|>commentary<|message|>Now then.<|end|>{FINAL}{PREFIX}",
    "harmony held to JSON": f'<|channel|>final <|constrain|>json<|message|>{{"prefix": "{PREFIX}"}}',
    "harmony without its marks": f"analysisWe need a short prefix.assistantfinal{PREFIX}",
    "Gemma 4": f"<|channel>thought\nNeed a short prefix.<channel|>{PREFIX}<turn|>",
    "Command A": f"<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>{PREFIX}<|END_RESPONSE|>",
    "<answer>": f"Let me see. <answer>{PREFIX}</answer>",
    "Llama's end": f"{PREFIX}<|eot_id|>",
    "ChatML's end and another turn": f"{PREFIX}<|im_end|>\n<|im_start|>user\nAnother one",
    "headers": f"<|start_header_id|>assistant<|end_header_id|>\n\n{PREFIX}",
    "Gemma's turn": f"<start_of_turn>model\n{PREFIX}<end_of_turn>",
    "Llama 2": f" {PREFIX} </s>",
    "DeepSeek's end": f"{PREFIX}<｜end▁of▁sentence｜>",
    "JSON": json.dumps({"prefix": PREFIX}),
    "JSON with reasons": json.dumps({"reasoning": "It names the office.", "prefix": PREFIX}),
    "JSON of another key": json.dumps({"answer": PREFIX}),
    "JSON list": json.dumps([PREFIX]),
    "fenced JSON": f'```json\n{{"prefix": "{PREFIX}"}}\n```',
    "fenced JSON after a sentence": f'Here is the prefix:\n```json\n{{\n  "prefix": "{PREFIX}"\n}}\n```\nIt is short.',
    "a text before a call": f"{PREFIX}\n<tool_call>{{}}</tool_call>",
}
NONE = {
    "": "empty reply",
    "<|eot_id|>": "empty reply",
    "<think>\nThe user wants a prefix.": "only reasoning, no answer",
    "<think>hm</think>\n": "only reasoning, no answer",
    "[THINK]Need a short prefix.": "only reasoning, no answer",
    "<|channel|>analysis<|message|>Need a short prefix.": "only reasoning, no answer",
    "analysisWe need a short prefix.": "only reasoning, no answer",
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "b"}<|call|>': "a call of a tool",
    '<tool_call>[{"id": "c1"}]': "a call of a tool",
    '[TOOL_CALLS][{"name": "answer"}]': "a call of a tool",
    "<refusal>No.": "the model refuses",
    "I'm sorry, but I can't help with that.": "the model refuses",
    "I cannot assist with this request.": "the model refuses",
    '{"prefix": "Which town off': "JSON that is broken or cut off",
}


@pytest.mark.parametrize("kind", AROUND)
def test_prefix_is_found_in(kind: str) -> None:
    assert read_prefixes(AROUND[kind]) == [PREFIX]


@pytest.mark.parametrize("reply", NONE)
def test_reply_without_an_answer_says_why(reply: str) -> None:
    with pytest.raises(UnusableReply, match=NONE[reply]):
        read_prefixes(reply)


@pytest.mark.parametrize(
    "reply",
    [
        '{"billing": "a bill", "answer": "a blood test"}',
        '```json\n{"label_texts": {"billing": "a bill", "answer": "a blood test"}}\n```',
        '[{"label": "billing", "phrase": "a bill"}, {"label": "answer", "phrase": "a blood test"}]',
        '{"labels": [{"name": "billing", "text": "a bill"}, {"text": "a blood test", "name": "answer"}]}',
        '{\n"billing": "a bill",\n"answer": "a blood test",\n}',
        "<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>billing: a bill\nanswer: a blood test",
    ],
)
def test_label_texts_are_found_in(reply: str) -> None:
    assert read_label_texts(reply, ("billing", "answer")) == {"billing": "a bill", "answer": "a blood test"}


@pytest.mark.parametrize(
    "reply",
    [
        '["one text", "two texts"]',
        '{"texts": [{"text": "one text"}, {"text": "two texts"}]}',
        "1. one text\n2. two texts<|eot_id|>",
    ],
)
def test_texts_are_found_in(reply: str) -> None:
    assert read_lines(reply) == ["one text", "two texts"]


def test_texts_of_people_who_are_sorry_are_no_refusal() -> None:
    reply = "I am sorry, I cannot create an account\nI need help with my card\nsorry, no answer yet"
    assert len(read_lines(reply)) == 3


# Why most replies cannot be used

CUT = Judged("unusable", "only reasoning, no answer", "length")
SHORT = Judged("unusable", "only reasoning, no answer", "stop")
OTHER = Judged("unusable", "holds a number", "stop")
THIRD = Judged("unusable", "garbled", "stop")
GOOD = Judged("accepted", PREFIX, "stop")


def test_two_most_frequent_causes_are_named_with_what_may_be_wrong() -> None:
    causes, hint = why([CUT, CUT, CUT, OTHER, OTHER, THIRD, GOOD])
    assert causes == (
        "6 of 7 replies cannot be used: only reasoning, no answer (3), holds a number (2); 3 ended at the limit"
    )
    assert "assistant.max_new_tokens" in hint
    assert "cut off" in why([CUT, CUT, OTHER])[1]
    assert "think" in why([SHORT])[1]
    assert "chat template" in why([THIRD, THIRD, OTHER])[1]


@pytest.mark.parametrize("judged", [[], [GOOD, OTHER], [GOOD, GOOD, CUT]])
def test_nothing_is_said_where_half_of_the_replies_are_of_use(judged: list[Judged]) -> None:
    assert why(judged) == ("", "")
