"""Inputs that cannot be used, by name: what is broken, and the words that the message must have.

Knows files, not the program. Each case changes a folder in which `config.yaml` and `train.jsonl` are good.
No message may repeat `CANARY`, which stands for a private row.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from samples import record_replies, sentiment_rows, write_config, write_jsonl

Break = Callable[[Path], object]
Case = tuple[Break, tuple[str, ...]]
"""How a folder is broken, and what the message must say."""

CANARY = "CANARY"
GOOD: dict[str, Any] = {
    "assistant": {"backend": "replay", "run": "recorded"},
    "search": {"rounds": 1, "proposals": 1, "label_text_samples": 0},
    "finish": {"plain_control": False},
}


def write_good(folder: Path, backbone: Path) -> None:
    """A run could be made here."""
    write_rows(folder, backbone)
    record_replies(folder / "recorded", [], ["Review:"])


def write_rows(folder: Path, backbone: Path) -> None:
    """All but what the assistant needs."""
    write_jsonl(folder / "train.jsonl", sentiment_rows())
    (folder / "recorded").mkdir()
    write_config(folder / "config.yaml", {**GOOD, "downstream": {"backbone": str(backbone)}})


# ── configurations ──────────────────────────────────────────────────────────────────────────────


def setting(key: str, value: str) -> Break:
    """The key has this value, written as YAML; what was below the key goes."""

    def change(folder: Path) -> None:
        import yaml

        path = folder / "config.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        section = content
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = "PLACE"
        path.write_text(yaml.safe_dump(content).replace("PLACE", value), encoding="utf-8")

    return change


def text(content: str | bytes) -> Break:
    """The configuration is this and nothing else."""
    return lambda folder: (folder / "config.yaml").write_bytes(
        content.encode() if isinstance(content, str) else content
    )


WHOLE_NUMBERS = {
    "data.shots": ("0", "-3", "1.5", "many", "[8]", "{}", "99"),
    "search.rounds": ("-1", "1001", "two", "2.5", "[]", "~"),
    "search.proposals": ("0", "4097", "x"),
    "search.label_text_samples": ("-1", "257", "x"),
    "search.max_prefix_tokens": ("0", "x", "500"),
    "search.history_shown": ("-1", "x"),
    "search.scoring_rows": ("7", "x", "-8"),
    "training.steps": ("0", "-1", "x", "0.5"),
    "training.batch_size": ("0", "-1", "x"),
    "downstream.max_length": ("15", "-1", "x"),
    "finish.finalists": ("0", "x"),
    "privacy.leak_scan.words": ("3", "65", "x"),
    "privacy.leak_scan.threshold": ("0", "101", "x"),
    "dialogue_gradient.every": ("0", "x"),
    "dialogue_gradient.steps": ("0", "x"),
    "dialogue_gradient.batch_size": ("1", "x"),
    "dialogue_gradient.rank": ("0", "513", "x"),
    "dialogue_gradient.dialogues_per_winner": ("0", "65", "x"),
    "seed": ("-1", "2147483648", "x", "1.5", "~", "[]"),
}
REAL_NUMBERS = {
    "training.encoder_learning_rate": ("-0.1", "x", ".nan", ".inf"),
    "training.head_learning_rate": ("0", "-1", "x", ".inf"),
    "assistant.temperature": ("-1", "5.1", "x", ".nan"),
    "assistant.top_p": ("0", "1.1", "x", ".nan"),
    "dialogue_gradient.learning_rate": ("0", "x", ".inf"),
    "dialogue_gradient.winners": ("0", "0.6", "x"),
    "dialogue_gradient.beta": ("0", "x", ".inf"),
    "dialogue_gradient.temperature": ("0", "5.1", "x"),
}
WORDS = {
    "task": ("classification", "1", "[]", "generation"),
    "search.regime": ("offline", "1", "~"),
    "training.precision": ("fp16", "32", "bfloat"),
    "training.device": ("tpu", "cuda:99", "1", "[]", "cpu:x"),
    "finish.plain_control": ("maybe", "[]", "2"),
    "privacy.leak_scan.enabled": ("perhaps", "[]"),
    "data.train": ("1", "~", "[]", "missing.jsonl", "config.yaml", "recorded", '"a\\0b"', '""'),
    "data.validation": ("1", "missing.csv", "recorded", '"~nobody-there/x.jsonl"'),
    "data.test": ("[]", "missing.parquet", "train.txt"),
    "data.text": ("1", "missing", "label", "~", '""'),
    "data.label": ("1", "missing", "text", "~", '""'),
    "data.text_pair": ("label", "other", "1"),
    "card.description": ("short", "~", "1", "[]", '""'),
    "card.name": ("1", "[]"),
    "card.labels": ("1", "[bad]", "[bad, bad]", "[bad, good, ugly]", "[no, yes]", "{bad: 1, good: 2}", "['', good]"),
    "card": ("~", "[]", "words", "1"),
    "data": ("~", "[]", "words"),
    "search": ("~", "[]", "4"),
    "training": ("~", "[]", "fast"),
    "finish": ("~", "[]"),
    "privacy": ("~", "[]", "on"),
    "privacy.leak_scan": ("~", "false"),
    "privacy.allow_hosts": ("1", "host", "[http://host]", "[host:80]", '["*.org"]', "[10.0.0.0/8]", "[1]", "['a b']"),
    "downstream": ("~", "[]"),
    "downstream.backbone": ("1", "missing", "config.yaml", "recorded", '"a\\0b"'),
    "dialogue_gradient": ("[]", "true", "sft", "{}"),
    "assistant": ("~", "[]", "local", "{backend: [a]}", "{backend: {}}", "{backend: 1}"),
    "assistant.backend": ("gpt", "1", "~", "[replay]"),
    "assistant.run": ("1", "missing", "train.jsonl", "~"),
    "assistant.max_new_tokens": ("7", "32769", "x"),
}
HERE = "backend: openai, model: m, base_url: 'http://127.0.0.1:9/v1'"
ENDPOINTS = {
    "without a model": "{backend: openai, base_url: 'http://127.0.0.1:9/v1'}",
    "without an address": "{backend: openai, model: m}",
    "with an address of no scheme": "{backend: openai, model: m, base_url: '127.0.0.1:9/v1'}",
    "with an address of another scheme": "{backend: vllm, model: m, base_url: 'ftp://127.0.0.1/v1'}",
    "with an address of no host": "{backend: openai, model: m, base_url: 'http://'}",
    "with a port that is none": "{backend: openai, model: m, base_url: 'http://127.0.0.1:99999/v1'}",
    "with a broken IPv6 address": "{backend: openai, model: m, base_url: 'http://[::1/v1'}",
    "on another machine": "{backend: openai, model: m, base_url: 'http://192.0.2.1/v1'}",
    "with a password in the address": "{backend: openai, model: m, base_url: 'http://u:p@127.0.0.1:9/v1'}",
    "with a timeout of 0": "{HERE, timeout: 0}",
    "with an endless timeout": "{HERE, timeout: .inf}",
    "with a timeout that no clock can count": "{HERE, timeout: 1.0e+300}",
    "with too many retries": "{HERE, max_retries: 21}",
    "with no concurrency": "{HERE, concurrency: 0}",
    "with a body that is a list": "{HERE, extra_body: [1]}",
    "with a body that replaces messages": "{HERE, extra_body: {n: 1}}",
    "with a body of bytes": "{HERE, extra_body: {x: !!binary aGVsbG8=}}",
    "with a body that holds a date": "{HERE, extra_body: {x: {y: 2026-01-01}}}",
    "with a key in its body": "{HERE, extra_body: {api_key: x}}",
    "with a key as the variable": "{HERE, api_key_env: sk-1234}",
    "with a variable that is not set": "{HERE, api_key_env: NOT_SET}",
    "with a missing key file": "{HERE, api_key_file: missing}",
    "with two keys": "{HERE, api_key_env: A, api_key_file: b}",
    "with terminal codes": "{backend: openai, base_url: 'http://127.0.0.1:9', max_retries: 0, model: \"a\\eb\"}",
    "of another backend's keys": "{backend: replay, run: recorded, base_url: 'http://127.0.0.1:9/v1'}",
    "whose model folder is missing": "{backend: local, model: missing}",
    "whose model folder is no model": "{backend: local, model: recorded}",
    "whose adapter is missing": "{backend: local, adapter: missing}",
}
SAID = {
    "training.device: cuda:99": "the device 'cuda:99' cannot be used here",
    "downstream.backbone: missing": "no such model folder",
    "assistant whose model folder is missing": "no such model folder",
    "assistant with a variable that is not set": "the environment variable 'NOT_SET' is not set",
    "task: generation": "task should be 'text-classification' or 'text-pair-classification', not 'generation'",
    "training.steps: x": "training.steps should be a valid integer, unable to parse string as an integer, not 'x'",
    "seed: -1": "seed should be greater than or equal to 0, not -1",
    "assistant.backend: gpt": "assistant.backend must be one of local, openai, vllm, replay",
    "data.text_pair: other": "data.text_pair is only for task: text-pair-classification",
    "card.labels: [no, yes]": "(put it in quotes)",
    "card.labels: {bad: 1, good: 2}": "(put it in quotes)",
    "assistant without a model": "the key 'assistant.model' is missing",
    "assistant without an address": "the key 'assistant.base_url' is missing",
    "assistant of another backend's keys": "unknown key 'assistant.base_url'",
    "data.shots: 99": "data.shots is 99 but",
    "data.train: missing.jsonl": "missing.jsonl: no such file",
    "data.train: config.yaml": "the format '.yaml' is not known",
    "data.train: recorded": "not a folder saved by `datasets`",
    'data.train: "a\\0b"': "cannot be a path (embedded null byte)",
    'data.train: ""': "not a folder saved by `datasets`",
    "data.test: missing.parquet": "missing.parquet: no such file",
    "data.test: train.txt": "train.txt: no such file",
    "data.text: label": "data.label names a text column",
    'downstream.backbone: "a\\0b"': "cannot be a path (embedded null byte)",
    "assistant.run: missing": "no history here",
    "assistant.run: train.jsonl": "no history here",
    "data.validation: missing.csv": "missing.csv: no such file",
    "data.validation: recorded": "not a folder saved by `datasets`",
    'data.validation: "~nobody-there/x.jsonl"': "'~nobody-there/x.jsonl' cannot be a path",
    "assistant whose adapter is missing": "there is no adapter_config.json",
}
"""What is said where it is not the key: messages of paths name the path."""
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not a mapping"),
    "a list": ("- a\n- b\n", "not a mapping"),
    "JSON": ('["a"]', "not a mapping"),
    "half JSON": ('{"data": {"train": ', "not valid YAML"),
    "a tab": ("data:\n\ttrain: x\n", "config.yaml:2: not valid YAML"),
    "an open quote": ("data: 'x\n", "not valid YAML"),
    "an open list": ("seed: 0\ndata: [x\n", "config.yaml:3: not valid YAML"),
    "a key twice": ("seed: 1\nseed: 2\n", "config.yaml:2: not valid YAML: the key 'seed' is given twice"),
    "a key that is a list": ("? [a]\n: b\n", "config.yaml:1: not valid YAML: a key must be a word"),
    "a key that is a date": ("2020-01-01: b\n", "a key must be a word"),
    "a key that is a number": ("1: b\n", "Keys should be strings"),
    "a date that is none": ("seed: 2020-99-99\n", "not valid YAML"),
    "a number too long": ("seed: " + "1" * 5000 + "\n", "YAML"),
    "a tag of Python": ("data: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    "an unknown alias": ("data: *x\n", "not valid YAML"),
    "an alias of itself": ("data: &a {train: *a}\n", "config.yaml:1: not valid YAML: aliases"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "nested too deep": ("a: " + "[" * 5000, "not valid YAML"),
    "aliases that multiply": (
        "a: &a [x, x]\n"
        + "".join(f"b{i}: &b{i} [*{p}, *{p}]\n" for i, p in enumerate(["a", *(f"b{j}" for j in range(30))])),
        "aliases are not read",
    ),
    "a zero byte": (b"data: \x00\n", "not valid YAML"),
    "Latin-1": ("card: {description: Größe}\n".encode("latin-1"), "UTF-8"),
    "UTF-16": ("data: x\n".encode("utf-16"), "UTF-8"),
    "bytes": (bytes(range(256)), "UTF-8"),
    "keys of another tool": ("model: gpt\ndataset: x\n", "unknown key 'model'"),
    "all keys wrong": ("Data: {}\nCard: {}\n", "did you mean 'data'"),
    "no data": ("card: {description: a long description}\n", "the key 'data' is missing"),
    "no card": ("data: {train: x}\n", "the key 'card' is missing"),
    "no description": ("data: {train: x}\ncard: {}\n", "the key 'card.description' is missing"),
}


# ── files of rows ───────────────────────────────────────────────────────────────────────────────


def rows(content: str | bytes, name: str = "train.jsonl") -> Break:
    """The training rows are in this file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        setting("data.train", name)(folder)

    return change


def table(columns: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), sink)
    return sink.getvalue()


def saved(files: Mapping[str, str]) -> Break:
    """The training rows are in a folder that holds these files."""

    def change(folder: Path) -> None:
        (folder / "saved").mkdir()
        for name, content in files.items():
            (folder / "saved" / name).write_text(content, encoding="utf-8")
        setting("data.train", "saved")(folder)

    return change


LINE = '{"text": "good soup", "label": "good"}\n'
LINES = LINE + '{"text": "cold soup", "label": "bad"}\n'
PARQUET = table({"text": ["a b", "c d"], "label": ["x", "y"]})
BROKEN_LINES: dict[str, tuple[str, str]] = {
    "with half a line": ('{"text": "CANARY", "lab', "broken JSON"),
    "with a missing comma": ('{"text": "CANARY" "label": "good"}', "broken JSON: Expecting ',' delimiter at column"),
    "with a list": ("[1, 2]", "a JSON list"),
    "with a number": ("1", "a JSON int"),
    "with a word": ('"CANARY"', "a JSON str, not an object"),
    "with null": ("null", "a JSON NoneType"),
    "with two objects on a line": (LINE.strip() + LINE.strip(), "broken JSON"),
    "nested too deep": ("[" * 100_000, "broken JSON: nested too deep"),
    "with a number too long": (f'{{"text": "CANARY", "label": {"1" * 5000}}}', "broken JSON"),
    "with a zero byte": ("\0", "broken JSON"),
    "with a byte order mark inside": ("\ufeff" + LINE.strip(), "broken JSON"),
    "without a text": ('{"label": "good", "note": "CANARY"}', "no column 'text'"),
    "without a label": ('{"text": "CANARY"}', "no column 'label'"),
    "with a text that is null": ('{"text": null, "label": "good", "note": "CANARY"}', "'text' is NoneType, not text"),
    "with a text that is a number": ('{"text": 1, "label": "good"}', "'text' is int"),
    "with a text that is a list": ('{"text": ["CANARY"], "label": "good"}', "'text' is list"),
    "with an empty text": ('{"text": "", "label": "good", "note": "CANARY"}', "'text' is empty"),
    "with a blank text": ('{"text": " \\t\\n", "label": "good"}', "'text' is empty"),
    "with half a surrogate pair": ('{"text": "CANARY \\ud83d", "label": "good"}', "'text' is not valid Unicode"),
    "with a label that is null": ('{"text": "CANARY", "label": null}', "'label' is empty or not a label"),
    "with a label that is a list": ('{"text": "CANARY", "label": []}', "'label' is empty"),
    "with a label that is a section": ('{"text": "CANARY", "label": {}}', "'label' is empty"),
    "with an empty label": ('{"text": "CANARY", "label": " "}', "'label' is empty"),
    "with half a pair for a label": ('{"text": "CANARY", "label": "\\ude00"}', "'label' is not valid Unicode"),
}
"""The third line of a file, and what is said of it after its number."""
JSONL: dict[str, tuple[str | bytes, str]] = {
    **{name: (f"{LINES}{line}\n", f"train.jsonl:3: {words}") for name, (line, words) in BROKEN_LINES.items()},
    "empty": ("", "no rows"),
    "of blank lines": ("\n \n\r\n", "no rows"),
    "that is a list": (f"[{LINE.strip()},\n{LINE.strip()}]", "train.jsonl:1: broken JSON"),
    "of zero bytes": (b"\x00" * 1000, "broken JSON"),
    "in Latin-1": (LINES.replace("good", "CANARY, größer").encode("latin-1"), "not UTF-8 text (byte"),
    "in UTF-16 without its mark": (LINES.encode("utf-16-le"), "broken JSON"),
    "in UTF-16 cut off": (LINES.encode("utf-16")[:-1], "train.jsonl:2: not utf-16"),
    "compressed": (b"\x1f\x8b\x08\x00abc\xff", "not UTF-8"),
    "that is parquet": (PARQUET, "UTF-8"),
    "of one class": ('{"text": "CANARY", "label": "good"}\n' * 4, "only one class, 'good'"),
    "of a class for each row": ("".join(f'{{"text": "a {i}", "label": "CANARY {i}"}}\n' for i in range(9)), "9 diff"),
    "of texts for labels": (
        (LINES + '{"text": "x", "label": "CANARY is what they said of us"}\n') * 4,
        "a label has 6 words or more",
    ),
    "with other columns": ('{"sentence": "x", "class": "y"}\n' * 2, "no column 'text'"),
    "with columns in capitals": ('{"Text": "x", "Label": "y"}\n' * 2, "no column 'text'"),
}
CSV: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "no rows"),
    "of a header alone": ("text,label\n", "no rows"),
    "with a field too few": ("text,label\na,x\nCANARY\n", "train.csv:3: not the 2 fields"),
    "with a field too many": ("text,label\na,x\nCANARY,y,z\n", "train.csv:3: not the 2 fields"),
    "with an open quote": ('text,label\n"CANARY,x\nb,y\n', "train.csv"),
    "with a quote inside": ('text,label\n"CANARY"b,x\n', "broken CSV"),
    "with a column twice": ("text,text,label\na,b,x\n", "the column 'text' is there twice"),
    "without a header": ("good soup,good\ncold soup,bad\n", "no column 'text'"),
    "with a zero byte": ("text,label\na\x00,x\nb,y\nc,x\nd,y\n\x00", "train.csv"),
    "in Latin-1": ("text,label\nCANARY Größe,x\n".encode("latin-1"), "not UTF-8"),
    "with an empty text": ("text,label\na,x\n,y\n", "train.csv:3: 'text' is empty"),
    "with an empty label": ("text,label\na,x\nb,\n", "train.csv:3: 'label' is empty"),
    "of one class": ("text,label\na,x\nb,x\n", "only one class"),
}
TSV: dict[str, tuple[str | bytes, str]] = {
    "with commas": ("text,label\na,x\nb,y\n", "no column 'text'"),
    "with a tab too many": ("text\tlabel\na\tx\ty\n", "not the 2 fields"),
}
TABLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable parquet file"),
    "cut off": (PARQUET[:-20], "not a readable parquet file"),
    "with a broken footer": (PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1", "not a readable parquet file"),
    "that is text": (b"CANARY", "not a readable parquet file"),
    "without rows": (table({"text": pyarrow.array([], "string"), "label": pyarrow.array([], "string")}), "no rows"),
    "without columns": (table({}), "no column 'text'"),
    "with other columns": (table({"a": ["x"], "b": ["y"]}), "no column 'text'"),
    "with texts that are null": (table({"text": ["a", None], "label": ["x", "CANARY"]}), "row 2: 'text' is NoneType"),
    "with texts that are numbers": (table({"text": [1, 2], "label": ["x", "y"]}), "row 1: 'text' is int"),
    "with texts that are bytes": (table({"text": [b"a", b"\xff"], "label": ["x", "y"]}), "row 1: 'text' is bytes"),
    "with labels that are lists": (
        table({"text": ["a", "b"], "label": [["x", "y"], ["y"]]}),
        "row 1: 'label' is a list of 2 labels",
    ),
}
FOLDERS: dict[str, tuple[Mapping[str, str], str]] = {
    "empty": ({}, "not a folder saved by `datasets`"),
    "of broken JSON": ({"dataset_info.json": "{", "state.json": "{"}, "not a folder saved by `datasets`"),
    "without its data": (
        {"dataset_info.json": "{}", "state.json": '{"_data_files": [{"filename": "x.arrow"}]}'},
        "not a folder saved by `datasets`",
    ),
}


def unreadable(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to("train.jsonl")


OTHER: dict[str, Case] = {
    "rows: a link to itself": (unreadable, ("train.jsonl",)),
    "rows: a format that is not known": (
        rows(LINES, "train.docx"),
        ("'.docx' is not known", ".jsonl, .csv, .tsv or .parquet"),
    ),
    "rows: no suffix": (rows(LINES, "train"), ("'' is not known",)),
    "validation: a label that training rows have not": (
        lambda folder: (
            rows('{"text": "x", "label": "goood"}\n', "v.jsonl")(folder),
            setting("data.validation", "v.jsonl")(folder),
            setting("data.train", "train.jsonl")(folder),
        ),
        ("v.jsonl:1: unknown label 'goood'", "Did you mean 'good'"),
    ),
    "test: no rows": (
        lambda folder: ((folder / "t.csv").write_text("text,label\n"), setting("data.test", "t.csv")(folder)),
        ("t.csv: no rows",),
    ),
    "config: missing": (lambda folder: (folder / "config.yaml").unlink(), ("no such configuration file",)),
    "config: a folder": (
        lambda folder: ((folder / "config.yaml").unlink(), (folder / "config.yaml").mkdir()),
        ("a folder, not a configuration file",),
    ),
    "card: an e-mail address": (
        setting("card.description", "What guests wrote to anna.muster@example.org"),
        ("card.description", "an e-mail address"),
    ),
    "assistant: a recorded run with too few replies": (
        setting("search.proposals", "9"),
        ("9 completions are asked for",),
    ),
}


def _cases() -> Iterator[tuple[str, Case]]:
    for keys in (WHOLE_NUMBERS, REAL_NUMBERS, WORDS):
        for key, values in keys.items():
            for value in values:
                words = SAID.get(f"{key}: {value}", key)
                yield f"{key}: {value}", (setting(key, value), (words,))
    for name, value in ENDPOINTS.items():
        words = SAID.get(f"assistant {name}", "assistant")
        yield f"assistant {name}", (setting("assistant", value.replace("HERE", HERE)), (words,))
    for name, (content, words) in TEXTS.items():
        yield f"config: {name}", (text(content), ("config.yaml", words))
    for suffix, files in {"jsonl": JSONL, "csv": CSV, "tsv": TSV, "parquet": TABLES}.items():
        for name, (content, words) in files.items():
            yield f"{suffix} {name}", (rows(content, f"train.{suffix}"), (f"train.{suffix}", words))
    for name, (contents, words) in FOLDERS.items():
        yield f"folder {name}", (saved(contents), ("saved", words))
    yield from OTHER.items()


CASES = dict(_cases())
