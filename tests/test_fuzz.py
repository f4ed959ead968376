"""Any bytes, texts and values in place of good ones: an answer or one of our errors, never anything else.

The short form runs with the suite; `make fuzz` tries 10,000 examples of each (conftest.py).
"""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from broken_inputs import CSV, JSONL, LINES, PARQUET, TEXTS, table, write_good
from commands import invoke
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from samples import LABEL_TEXTS, QUICKSTART

from gpta_local.assistant.openai_api import OpenAIAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.config import dump, load
from gpta_local.data.readers import read_records
from gpta_local.data.starter import starter_config
from gpta_local.downstream.tokenization import PrefixTokenizer
from gpta_local.errors import ConfigError, DataError, EndpointError, GptaError
from gpta_local.knowledge.label_texts import read_label_text_sets
from gpta_local.knowledge.prefixes import PrefixReader, clean
from gpta_local.schema import Completion, DatasetCard, Label
from gpta_local.tasks import open_task

pytestmark = pytest.mark.fuzz

Changed = tuple[str, Any]

# ── configurations ──────────────────────────────────────────────────────────────────────────────

numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 2**31, 2**63, 1e-300, 1e308, float("inf"), float("nan"), 0.5, -0.0]),
    st.integers(),
    st.floats(),
)
strange = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["", " ", "~", "~x/y", "a\0b", "/", ".", "x" * 5000, "\x1b[2J", "http://[", "http://127.0.0.1:9/v1", "sk-12345678"]
)
scalars = st.none() | st.booleans() | numbers | strange | st.dates() | st.binary(max_size=4)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strange | st.integers(), inner, max_size=3)
)
ASSISTANTS = (
    "{backend: local, model: m}",
    "{backend: replay, run: r}",
    "{backend: openai, model: m, base_url: 'http://127.0.0.1:9/v1', api_key_env: KEY, extra_body: {top_k: 5}}",
    "{backend: vllm, model: m, weights: w}",
)
GOOD: list[dict[str, Any]] = [
    yaml.safe_load(dump(load(QUICKSTART / "quickstart.yaml", [f"assistant={section}", "dialogue_gradient={}"])))
    for section in ASSISTANTS
]
"""With every key that there is."""


def sections(content: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(content, dict):
        yield content
        for inner in content.values():
            yield from sections(inner)


@st.composite
def mutated_configs(draw: Any) -> dict[Any, Any]:
    """A good configuration in which one to three keys are renamed, removed, added or given another value."""
    content = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from([s for s in sections(content) if s] or [content]))
        if not section:
            continue
        key = draw(st.sampled_from(sorted(section, key=str)))
        match draw(st.sampled_from(["value", "value", "value", "rename", "remove", "add", "swap"])):
            case "value":
                section[key] = draw(values)
            case "rename":
                section[draw(strange | st.integers() | st.sampled_from([str(key)[:-1], str(key).upper()]))] = (
                    section.pop(key)
                )
            case "remove":
                del section[key]
            case "add":
                section[draw(strange)] = draw(values)
            case "swap":
                other = draw(st.sampled_from(sorted(section, key=str)))
                section[key], section[other] = section[other], section[key]
    return content


def check_message(error: GptaError) -> None:
    message = str(error)
    assert message and len(message.splitlines()) <= 15
    assert all(c.isprintable() or c == "\n" for c in message)


def loads_or_is_refused(text: str | bytes, overrides: tuple[str, ...] = ()) -> None:
    """What is accepted is written and read back as the same; what is not is a ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            config = load(path, overrides)
        except ConfigError as exc:
            check_message(exc)
            return
        path.write_text(dump(config), encoding="utf-8")
        assert load(path) == config


@given(mutated_configs())
def test_any_change_of_a_configuration_is_accepted_or_refused(content: dict[Any, Any]) -> None:
    loads_or_is_refused(yaml.safe_dump(content, allow_unicode=True))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_configuration_are_refused(content: bytes) -> None:
    loads_or_is_refused(content)


@given(st.sampled_from([text for text, _ in TEXTS.values()]), st.integers(0, 400), st.text(max_size=3))
def test_configuration_with_something_in_between_is_accepted_or_refused(text: str | bytes, at: int, put: str) -> None:
    whole = (text if isinstance(text, bytes) else text.encode())[:300]
    loads_or_is_refused(whole[:at] + put.encode("utf-8", "surrogatepass") + whole[at:])


keys = st.sampled_from(
    [f"{section}.{key}" for section, inner in GOOD[0].items() if isinstance(inner, dict) for key in inner]
)


@given(st.lists(st.tuples(keys | strange, strange | values.map(str)).map("=".join) | strange, max_size=2))
def test_any_override_is_accepted_or_refused(overrides: list[str]) -> None:
    loads_or_is_refused(yaml.safe_dump(GOOD[0]), tuple(overrides))


# ── files of rows ───────────────────────────────────────────────────────────────────────────────

FILES: dict[str, list[bytes]] = {
    ".jsonl": [LINES.encode(), *(c if isinstance(c, bytes) else c.encode() for c, _ in JSONL.values())],
    ".csv": [b"text,label\na,x\nb,y\n", *(c if isinstance(c, bytes) else c.encode() for c, _ in CSV.values())],
    ".parquet": [PARQUET, table({"text": ["a"], "label": [["x"]]})],
}
cells = values | st.sampled_from(["good", "bad"])


@st.composite
def broken_files(draw: Any) -> tuple[str, bytes]:
    """A file of rows in which bytes were cut, put in or changed, or whose rows hold other values."""
    suffix = draw(st.sampled_from(sorted(FILES)))
    if suffix == ".jsonl" and draw(st.booleans()):
        rows = draw(st.lists(st.fixed_dictionaries({"text": strange | cells, "label": cells}) | values, max_size=6))
        return suffix, "\n".join(json.dumps(row, default=str) for row in rows).encode()
    content = draw(st.sampled_from(FILES[suffix]))[:3000]
    start, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
    return suffix, content[:start] + draw(st.binary(max_size=8)) + content[draw(st.sampled_from([start, end])) :]


@given(file=broken_files())
@example(file=(".csv", b"text,label\r\n\xef\xbb\xbfa,x\r"))
def test_any_file_of_rows_is_read_or_refused(file: tuple[str, bytes], good: Path) -> None:
    suffix, content = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rows{suffix}")
        path.write_bytes(content)
        config = load(good / "config.yaml")
        with contextlib.suppress(GptaError):
            yaml.safe_load(starter_config(path))
        try:
            read_records(str(path))
            open_task(config.model_copy(update={"data": config.data.model_copy(update={"train": str(path)})}))
        except GptaError as exc:
            check_message(exc)


pieces_of_rows = st.text(st.sampled_from("ab \"'\n\r,;|\té漢"), min_size=1, max_size=12)


@st.composite
def dialects(draw: Any) -> tuple[str, bytes, list[tuple[str, str]]]:
    """A file of separated values as some program writes it: its name, its bytes, and the rows that it holds."""
    delimiter, quoting = draw(st.sampled_from(",;\t|")), draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    rows = draw(st.lists(st.tuples(pieces_of_rows, st.sampled_from(["x", "y", "z z"])), min_size=1, max_size=8))
    name = "rows.tsv" if delimiter == "\t" and draw(st.booleans()) else "rows.csv"
    plain = delimiter == "\t" and draw(st.booleans())  # as GLUE's: quote marks are characters
    if plain:
        rows = [(" ".join(text.split()), label) for text, label in rows]
    rows = [(f"a{text}" if not text.strip() else text, label) for text, label in rows]
    ids, empty = draw(st.booleans()), draw(st.integers(0, 3))
    file = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    for number, row in enumerate([("text", "label"), *rows]):
        fields = [*([f"n{number}"] if ids else []), *row, *[""] * empty]
        if plain:
            file.write(delimiter.join(fields) + end)
        else:
            writer.writerow(fields)
    text = draw(st.sampled_from(["", f"sep={delimiter}{end}"])) + file.getvalue()
    text += draw(st.sampled_from(["", end, (delimiter * (1 + ids + empty) + end) * 3]))
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
    if draw(st.booleans()):
        return name + ".gz", gzip.compress(content), rows
    return name, content, rows


@given(file=dialects())
def test_rows_of_any_dialect_are_all_there_or_an_error_says_why(
    file: tuple[str, bytes, list[tuple[str, str]]],
) -> None:
    name, content, rows = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            records = read_records(str(path), ["text", "label"]).records
        except DataError as exc:
            check_message(exc)
            return
    assert [record.values["label"] for record in records] == [label for _, label in rows]
    for record, (text, _) in zip(records, rows, strict=True):  # of `"a"` it cannot always be told what the marks are
        assert record.values["text"] in (text, text[1:-1].replace('""', '"'))


@pytest.fixture(scope="module")
def good(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_good(folder, sentence)
    return folder


# ── completions and answers ─────────────────────────────────────────────────────────────────────

MARKS = ["\n", "\r", "\u2028", "\t", " ", '"', "'", "“", "”", "`", "```\n", "**", ":", "- ", "1. "]
ODDITIES = ["<think>", "</think>", "\x00", "\x1b[31m", "\u202e", "\ufeff", "\ud83d", "\ufffd"]
pieces = st.sampled_from([*MARKS, *ODDITIES, "prefix:", "New prefix: ", "Here:", "word", "日本", "é", "billing: x\n"])
replies: SearchStrategy[str] = st.one_of(
    st.text(st.characters(), max_size=300),
    st.lists(pieces, max_size=40).map("".join),
    st.builds(lambda piece, times: piece * times, pieces, st.integers(0, 60_000)),
    st.lists(st.sampled_from([f"{name}: {text}\n" for name, text in LABEL_TEXTS.items()]), max_size=9).map("".join),
)


@pytest.fixture(scope="module")
def tokenizer(bert: Path) -> PrefixTokenizer:
    from transformers import AutoTokenizer

    return PrefixTokenizer(AutoTokenizer.from_pretrained(bert), 96)


CARD = DatasetCard("c", "text-classification", "Any texts.", tuple(Label(name) for name in LABEL_TEXTS))


@given(texts=st.lists(replies, min_size=1, max_size=4))
def test_any_completion_is_a_prefix_of_one_line_or_counted(texts: list[str], tokenizer: PrefixTokenizer) -> None:
    # as the assistants give them: without halves of surrogate pairs
    completions = [Completion(text.encode("utf-8", "replace").decode(), "m") for text in texts]
    reader = PrefixReader(CARD, lambda text: len(tokenizer.prefix_ids(text)), 16, lambda text: "")
    embed = lambda prefixes: np.eye(len(prefixes), dtype=np.float32)  # noqa: E731  shorter than its def
    candidates = clean(completions, [], embed=embed, read=reader.read)
    assert len(candidates.verdicts) == len(texts)
    for prefix in candidates.prefixes:
        assert prefix.strip() == prefix != "" and prefix.isprintable()
        assert len(tokenizer.prefix_ids(prefix)) <= 16


@given(st.lists(replies, min_size=1, max_size=3))
def test_any_completion_is_a_set_of_label_texts_or_counted(texts: list[str]) -> None:
    names = list(LABEL_TEXTS)
    sets, verdicts = read_label_text_sets([Completion(text, "m") for text in texts], CARD, lambda text: "")
    assert len(verdicts) == len(texts)
    for found in sets:
        assert list(found) == names and all(phrase.strip() and "\n" not in phrase for phrase in found.values())


ANSWER: dict[str, Any] = {
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "Review:"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}


@st.composite
def answers(draw: Any) -> str:
    """A chat completion with another value somewhere, or any text."""
    if draw(st.booleans()):
        return str(draw(st.text(max_size=200) | values.map(lambda value: json.dumps(value, default=str))))
    content = copy.deepcopy(ANSWER)
    parts = [content, *content["choices"], content["choices"][0]["message"], content["usage"]]
    part = draw(st.sampled_from(parts))
    part[draw(st.sampled_from(sorted(part)))] = draw(values)
    text = json.dumps(content, default=str)
    return text[: draw(st.sampled_from([len(text), draw(st.integers(0, len(text)))]))]


@pytest.fixture(scope="module", params=[OpenAIAssistant, VLLMAssistant])
def assistant(request: pytest.FixtureRequest) -> OpenAIAssistant:
    endpoint: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "api_key": "sk-0123456789"}
    kind: type[OpenAIAssistant] = request.param
    return kind("m", timeout=1.0, max_retries=0, concurrency=1, **endpoint)


@given(answer=answers())
def test_any_answer_of_a_server_is_read_or_refused(answer: str, assistant: OpenAIAssistant) -> None:
    try:
        completions = assistant._read(answer)
    except EndpointError as exc:
        check_message(exc)
        return
    assert completions
    for completion in completions:
        (completion.text + completion.model + completion.finish_reason).encode()


# ── the whole command ───────────────────────────────────────────────────────────────────────────


@given(data=st.data())
def test_train_ends_with_a_documented_code_and_leaves_nothing_half_made(data: DataObject, good: Path) -> None:
    """Of a configuration with a change, or of changed rows; where all is well by chance nothing is trained."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = yaml.safe_load((good / "config.yaml").read_text())
        content["assistant"]["run"] = str(good / "recorded")
        suffix, rows = data.draw(broken_files())
        content["data"]["train"] = f"rows{suffix}"
        (folder / f"rows{suffix}").write_bytes(rows)
        if data.draw(st.booleans()):
            (folder / f"rows{suffix}").write_bytes((good / "train.jsonl").read_bytes())
            section = data.draw(st.sampled_from([s for s in sections(content) if s is not content]))
            section[data.draw(st.sampled_from(sorted(section)))] = data.draw(scalars)
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        result = invoke("train", path, "--output", folder / "run", "--set", "training.device=nothing")
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert not (folder / "run").exists()
