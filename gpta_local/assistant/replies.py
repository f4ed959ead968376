"""What a reply says, without what models and servers put around it: thoughts, channels, marks of a chat template, JSON.

Knows text alone, not what was asked for. Servers that parse replies into parts (thoughts, calls of tools, refusals) are
taken back to the text that a model writes, by `as_text`; so one reader does for all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

ONLY_THOUGHTS = "only reasoning, no answer"
TOOL_CALL = "a call of a tool in place of an answer"
REFUSED = "the model refuses"
BROKEN_JSON = "JSON that is broken or cut off"
NO_ANSWER = "empty reply"
STREAMED = ("data:", "event:", "id:", ": ")
"""How a stream of events begins."""

TAG = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection)>"
THOUGHTS = (
    (f"<{TAG}", f"</{TAG}"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|channel>\w*", r"<channel\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<unused94>", r"<unused95>"),
    (r"◁think▷", r"◁/think▷"),
)
"""Marks before and after the thoughts of a model, which a template may open and a limit cut."""
HARMONY = re.compile(r"<\|channel\|>\s*(?P<channel>\w+)(?P<to>[^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>")
BARE_HARMONY = re.compile(r"(?s)\A\s*(?:analysis|commentary)(?=[A-Z\"'“])(?:.*assistantfinal)?")
"""The same where a server drops special tokens: "analysisWe need … assistantfinalWhich office:"."""
ANSWER = re.compile(r"(?is)<(answer|response|output|final_answer|result|prefix)>(.*?)(?:</\1>|\Z)")
CALL = re.compile(r"<\|?tool_calls?\|?>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|<｜tool▁calls?▁begin｜>")
REFUSAL_MARK = "<refusal>"
REFUSAL = re.compile(
    r"(?i)\A\W*(?:(?:I['’]?m|I am) (?:very )?sorry|sorry,|I['’]m (?:unable|not able) to|As an AI\b"
    r"|I (?:can['’]?t|cannot|can not|won['’]?t|am unable to|am not able to|must decline))[^.\n]*"
    r"\b(?:help|assist|comply|provide|fulfil+|continue|generate|create|write|do (?:that|this|so)|answer|request|AI\b)"
)
HEADER = re.compile(
    r"<\|start_header_id\|>\w*<\|end_header_id\|>|<\|im_start\|>\w*|<start_of_turn>\w*|<\|start\|>\w*"
    r"|<\|(?:assistant|user|system|bot)\|>|<｜Assistant｜>"
)
SPECIAL = re.compile(
    r"<\|[\w ./-]{1,40}\|?>|<\w{1,40}\|>|<｜[^｜\n]{1,40}｜>|</?s>|\[/?INST\]|</(?:assistant|response|answer)>"
    r"|<(?:bos|eos|pad|unk|end_of_turn|end_of_utterance|endoftext)>"
)
"""Special tokens that are left over: what follows the first one behind a text is no part of the answer."""
JSON_START = re.compile(r"\{\s*\"[^\"\n]+\"\s*:|\[\s*(?:\"|\{\s*\")")
ASIDE = re.compile(r"(?i)thoughts?|thinking|reason(s|ing)?|explanation|rationale|analysis|notes?|comments?|confidence")
"""Keys of JSON that hold no answer."""
NAMES_A_LABEL = ("label", "name", "class", "category")
"""Keys of JSON beside whose value, a label, stands its text."""


class NoAnswer(ValueError):
    """A reply without an answer; the message says why."""


def as_text(message: Mapping[str, Any], finish_reason: object) -> str:
    """A message of the chat API as the text that a model writes. A refusal begins with `REFUSAL_MARK`.

    Raises:
        TypeError, AttributeError: it is no such message.
    """
    content, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning") or ""
    refusal = message.get("refusal") or ""
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        thoughts = thoughts or _joined(parts, "thinking", "reasoning")
        refusal = refusal or _joined(parts, "refusal")
        content = _joined(parts, "text", "output_text")
    if not isinstance(content or "", str):
        raise TypeError("content that is neither text nor parts")
    calls = message.get("tool_calls") or message.get("function_call")
    if content and content.strip():
        return content
    if refusal or finish_reason == "content_filter":
        return f"{REFUSAL_MARK}{refusal or 'content filter'}"
    if calls:
        return f"<tool_call>{json.dumps(calls)}"
    return f"<think>{thoughts}" if thoughts else content or ""


def _joined(parts: list[Mapping[str, Any]], *kinds: str) -> str:
    found = [part.get("text") or part.get(str(part["type"])) for part in parts if part.get("type", "text") in kinds]
    return "".join(_joined(inner, "text") if isinstance(inner, list) else inner for inner in found if inner)


def whole_stream(text: str) -> dict[str, Any]:
    """A reply that came as server-sent events, as if it had come at once.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: an event is no part of a chat completion.
    """
    reply: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for line in text.split("\n"):
        name, _, data = line.partition(":")
        if name.strip() != "data" or not data.strip() or data.strip() == "[DONE]":
            continue
        chunk = json.loads(data)
        if chunk.get("error"):
            return {"error": chunk["error"]}
        reply |= {key: chunk[key] for key in ("model", "usage") if chunk.get(key)}
        for part in chunk.get("choices") or []:
            choice = choices.setdefault(int(part.get("index") or 0), {"message": {}})
            message = choice["message"]
            for key, value in (part.get("delta") or part.get("message") or {}).items():
                if isinstance(value, (str, list)) and key != "role":
                    message[key] = message[key] + value if key in message else value
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
    return reply | {"choices": [{"index": index, **choice} for index, choice in choices.items()]}


def answer(text: str) -> str:
    """The answer in a reply.

    Raises:
        NoAnswer: there is none.
    """
    if not text.strip():
        raise NoAnswer(NO_ANSWER)
    if text.startswith(REFUSAL_MARK):
        raise NoAnswer(REFUSED)
    said = _final_channel(_without_thoughts(text))
    thoughts = not said.strip()
    if (wrapped := ANSWER.search(said)) and wrapped[2].strip():
        said = wrapped[2]
    said = _before_special(HEADER.sub("<|header|>", said))
    call = CALL.search(said)
    said = said[: call.start()] if call else said
    if REFUSAL.match(said) and len(said.strip().splitlines()) <= 2:  # a longer reply may begin with a customer's words
        raise NoAnswer(REFUSED)
    if not said.strip():
        raise NoAnswer(ONLY_THOUGHTS if thoughts else TOOL_CALL if call else NO_ANSWER)
    return said


def _without_thoughts(text: str) -> str:
    for opened, closed in THOUGHTS:
        text = re.split(opened, re.split(closed, text)[-1])[0]
    return text


def _final_channel(text: str) -> str:
    """Of a reply in channels (OpenAI's harmony format) the final one, or the commentary that is for the user."""
    if not (begins := list(HARMONY.finditer(text))):
        return BARE_HARMONY.sub("", text) if "assistantfinal" in text or not BARE_HARMONY.match(text) else ""
    ends = [*(begin.start() for begin in begins[1:]), len(text)]
    found = {}
    for begin, end in zip(begins, ends, strict=True):
        channel = "call" if "to=" in begin["to"] else begin["channel"]
        found[channel] = text[begin.end() : end]
    if "final" not in found and "call" in found:
        raise NoAnswer(TOOL_CALL)
    return found.get("final") or found.get("assistant") or found.get("commentary", "")


def _before_special(text: str) -> str:
    """The first stretch of text between special tokens."""
    return next((part for part in SPECIAL.split(text) if part.strip()), "")


def json_answer(text: str) -> list[tuple[str, str]] | None:
    """The texts in JSON that a reply holds, each with its key ("" in a list); None if it holds none.

    Raises:
        NoAnswer: it begins as JSON and is none.
    """
    if not (start := JSON_START.search(text)):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start.start() :])
        return _texts("", value)
    except (ValueError, RecursionError):
        if text[: start.start()].strip().strip("`").removeprefix("json").strip():
            return None
        raise NoAnswer(BROKEN_JSON) from None


def _texts(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(key, " ".join(value.split()))]
    if isinstance(value, list):
        return [found for inner in value for found in _texts(key, inner)]
    if not isinstance(value, dict):
        return []
    label = next((value[name] for name in NAMES_A_LABEL if isinstance(value.get(name), str)), None)
    if label is not None and len(value) == 2:
        return [(label, text) for name, inner in value.items() if inner != label for _, text in _texts(name, inner)]
    return [found for name, inner in value.items() for found in _texts(name, inner)]
