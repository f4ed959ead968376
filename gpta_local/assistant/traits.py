"""What servers do not take of a request, and how they are asked instead.

Knows the fields of a request and the words in which servers refuse them; sends nothing. docs/servers.md says which
server is known for what.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]

REFUSING = (400, 422, 500, 501)
"""Statuses of a server that does not take a request as it is: some let their own error out as a failure."""
NOT_TAKEN = (
    r"unsupported",
    r"un(known|recogni[sz]ed|expected)",
    r"extra.?forbidden|extra (fields|inputs|param)|additional propert",
    r"forbidden|deprecated|fixed|default value",
    r"(not|n['’]t|no longer) (be |currently |yet )*(support|permit|allow|accept|tak|recogni|avail|implement|expected)",
    r"(not|n['’]t|no longer) (be |currently |yet )*(specif|use[ds]?\b|set)",
    r"only (the )?(default|1|one)\b",
    r"must be (exactly )?(1|1.0|unset|omitted|null|none|default)\b",
    r"cannot (be )?(set|specif|chang|modif|us)",
)
RANGE = (
    r"between",
    r"(less|greater|larger|smaller) than",
    r"at (most|least)",
    r"\bin [(\[]",
    r"range",
    r"[<>≤≥]",
    r"m(in|ax)imum",
)
"""Words about a value that is too large or too small: another one is taken."""
CHOICES = (
    r"(?<![\w.])n(?![\w.]|['’]\w)",
    r"only one (completion )?choice",
    r"(multiple|number of|more than one|several) (\w+ )?(choices|completions|generations|outputs|responses|sequences)",
    r"num_(return_sequences|choices)|best_of",
)


def _says(said: str, phrases: tuple[str, ...]) -> bool:
    """Whether one of the patterns is found, in any case."""
    return any(re.search(phrase, said, re.I | re.S) for phrase in phrases)


@dataclass(frozen=True)
class Trait:
    """`said`: what the user is told of the server. It has the trait if it names one of the `fields` as not taken, or
    its words match. `change`: a request → one that it takes."""

    said: str
    fields: tuple[str, ...]
    words: tuple[str, ...]
    change: Callable[[Body], Body]

    def fits(self, named: str, said: str, body: Body) -> bool:
        """
        Args:
            named: the field that the server names apart from its words, as in "messages.0.role"; "" if it names none.
        """
        if _says(said, self.words):
            return True
        field = next((field for field in self.fields if field in re.findall(r"\w+", named or said)), None)
        if field is None:
            return False
        changes_nothing = body.get(field) == 1  # temperature and top_p
        return changes_nothing or (_says(said, NOT_TAKEN) and not _says(said, RANGE))


def _system_into_user(body: Body) -> Body:
    """As the backend `local` does."""
    system, *others = body["messages"]
    if system["role"] != "system":
        return body
    first, *rest = others
    joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
    return body | {"messages": [joined, *rest]}


def _in_parts(body: Body) -> Body:
    messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in body["messages"]]
    return body | {"messages": messages}


def _renamed(body: Body) -> Body:
    return {("max_completion_tokens" if field == "max_tokens" else field): value for field, value in body.items()}


def _without(left_out: str) -> Callable[[Body], Body]:
    return lambda body: {field: value for field, value in body.items() if field != left_out}


TRAITS = (
    Trait(
        "has no system role: that text goes into the first message",
        ("role",),
        (
            r"\bsystem\b.{0,60}(not|n['’]t|un|no) ?(be |yet )*(support|allow|permit|accept|enabl|recogni|valid)",
            r"(not|n['’]t) (support|allow|accept|take|have).{0,40}\bsystem\b",
            r"unsupported.{0,40}\bsystem\b|no system|got ['\"]?system",
            "roles? (must|should|need).{0,60}altern",
            r"only .{0,20}\buser\b.{0,40}(role|assistant)",
            "(un(known|expected|supported)|invalid|bad) (message )?role",
            "developer instruction",
            "first message.{0,40}user",
            "(must be|should be|expected|one of).{0,30}['\"`]user['\"`]",
        ),
        _system_into_user,
    ),
    Trait(
        "takes the content of messages in parts",
        (),
        (
            r"content.{0,80}(valid|be an?|expected an?|as an?)\W{0,3}(list|array|sequence)",
            "list_type",
            "content.{0,80}(list|array) of",
            "expected (an? )?(array|list|sequence).{0,80}content",
        ),
        _in_parts,
    ),
    Trait(
        "only streams",
        (),
        (
            r"only (\w+ ){0,3}stream|stream(ing)? (mode )?only",
            r"(enable|turn on|requires?|use|set)\W+(\w+\W+){0,2}stream(?!\W+(to )?false)",
            r"stream\W.{0,30}(must|should|to) be (set to )?true|stream\W{0,4}true",
            r"non-?stream\w*.{0,40}(not|n['’]t)",
        ),
        lambda body: body | {"stream": True},
    ),
    Trait(
        "wants to be told that nothing is streamed",
        ("stream",),
        (
            r"\bstream\b.{0,40}(required|missing|false)|(required|missing|set).{0,40}\bstream\b",
            "stream(ing)? (is )?(not|n['’]t|un).{0,12}(support|implement|avail)",
        ),
        lambda body: body | {"stream": False},
    ),
    Trait("says max_completion_tokens for max_tokens", ("max_tokens",), ("max_completion_tokens",), _renamed),
    Trait(
        "takes top_p or temperature, not both: top_p is not sent, assistant.top_p has no effect",
        (),
        (r"\A(?=.*temperature)(?=.*top_p).*(both|one of|only one|together|same time|mutually|simult)",),
        _without("top_p"),
    ),
    Trait("takes no top_p: assistant.top_p has no effect", ("top_p",), (), _without("top_p")),
    Trait(
        "takes no temperature but its own: assistant.temperature has no effect",
        ("temperature",),
        (),
        _without("temperature"),
    ),
    Trait("takes no seed: another run draws other replies", ("seed",), (), _without("seed")),
)


def allowed_choices(named: str, said: str, n: int) -> int:
    """How many completions of one request a server gives that refuses `n` of them; `n` if that is not what it refuses.
    The largest smaller number that it says, or 1."""
    if n == 1 or not (named == "n" or (not named and _says(said, CHOICES))):
        return n
    return max((k for k in map(int, re.findall(r"(?<![\w.])\d{1,4}(?![\w.]*\d)", said)) if 0 < k < n), default=1)


def named_field(parameter: object, reply: str) -> str:
    """The field that an error names apart from its words: by `param`, or by `loc` as pydantic does; "" if by none."""
    if parameter:
        return str(parameter)
    if location := re.search(r'"loc"\s*:\s*\[([^\]]*)\]', reply):
        return ".".join(part for part in re.findall(r"\w+", location[1]) if part not in ("body", "query"))
    return ""


def applied(traits: tuple[Trait, ...], body: Body) -> Body:
    for trait in traits:
        body = trait.change(body)
    return body
