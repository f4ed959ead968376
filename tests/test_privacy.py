"""The promise: the assistant's side of the program cannot reach a row, and no row leaves a run."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import random
import sqlite3
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from chat_models import tiny_chat_llama
from commands import ROOT, assert_refused, invoke
from fault_server import FaultServer, Json, Received, Reply, completion
from samples import CARD, label_text_reply, merge, scored, write_config, write_jsonl

from gpta_local.assistant.prompts import ASK_LABEL_TEXTS, ASK_PREFIX, TRIED, VARIED
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.record.history import History
from gpta_local.schema import DatasetCard, Label, Message, Request, Round

PACKAGE = ROOT / "gpta_local"
TEACHING = ["system.adapters", *(f"dialogue_gradient.{name}" for name in ("dialogues", "train", "worker", "trial"))]
SCANS = ["privacy.leak_scan", "privacy.personal_data"]
ASSISTANT_SIDE = [f"gpta_local.{name}" for name in ("schema", *TEACHING, *SCANS)] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((PACKAGE / "assistant").rglob("*.py"))
]
ROW_READERS = {"gpta_local.data.readers", "gpta_local.data.examples", "gpta_local.data.starter"}


def source_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imports_of(module: str) -> Iterator[str]:
    """All modules of the package that a module imports, also inside functions and for types only."""
    path = source_of(module)
    assert path is not None, module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "gpta_local" and name != "gpta_local" and source_of(name):
                yield name


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports_of(name)
    return seen


class TestImports:
    @pytest.mark.parametrize("module", ASSISTANT_SIDE)
    def test_module_of_the_assistants_side_reaches_no_reader_of_rows(self, module: str) -> None:
        assert not reachable(module) & ROW_READERS

    def test_graph_is_followed(self) -> None:
        assert reachable("gpta_local.cli.main") >= ROW_READERS

    def test_only_the_tasks_and_the_commands_read_files_of_rows(self) -> None:
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))]
        readers = {module for module in modules if "read_records" in (source_of(module) or Path()).read_text("utf-8")}
        assert readers == {
            *ROW_READERS,
            "gpta_local.downstream.inference",
            "gpta_local.report.rows",
            "gpta_local.labelling.doubts",
        }

    def test_importing_the_assistants_side_loads_no_reader_of_rows(self) -> None:
        script = f"import sys, {', '.join(ASSISTANT_SIDE)}; print(*[m for m in sys.modules if 'gpta_local' in m])"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert set(ASSISTANT_SIDE) <= set(done.stdout.split())
        assert not set(done.stdout.split()) & ROW_READERS


class TestTypes:
    """Every field of what leaves is a word, a number or a record of them: none could hold rows."""

    LEAVES = (str, int)
    RECORDS = (DatasetCard, Request, Label, Message)

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
    def test_fields_are_words_counts_and_records(self, record: type) -> None:
        for name, kind in typing.get_type_hints(record).items():
            assert self.allowed(kind), f"{record.__name__}.{name}: {kind}"

    def test_card_has_these_fields_and_no_other(self) -> None:
        names = ["name", "task", "description", "labels"]
        assert [field.name for field in dataclasses.fields(DatasetCard)] == names

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
    def test_nothing_can_be_added_to_a_record(self, record: Any) -> None:
        assert record.__dataclass_params__.frozen
        assert "__dict__" not in dir(record)

    def test_what_is_taught_is_two_requests_a_reply_and_its_weight(self) -> None:
        types = {"request": Request, "reply": str, "weight": float, "rival": Request | None}
        assert typing.get_type_hints(Dialogue) == types

    def allowed(self, kind: Any) -> bool:
        if typing.get_origin(kind) is typing.Literal:
            return all(isinstance(value, str) for value in typing.get_args(kind))
        if typing.get_origin(kind) is tuple:
            member, rest = typing.get_args(kind)
            return rest is types.EllipsisType or (rest is ... and member in (Label, Message))
        return kind in self.LEAVES


def canary_words() -> list[str]:
    """1,000 words of ten letters that are in no language and, by chance, in no file."""
    letters = random.Random(0)
    return ["".join(letters.choices("bcdfghjklmnpqrstvwxz", k=10)) for _ in range(1000)]


CANARIES = canary_words()
SENTENCES = [f"Please tell {word} that the blue file of {word[::-1]} is ready." for word in CANARIES]
SPLITS = {"train": 600, "validation": 200, "test": 200}
DESCRIPTION = "Short notes of two kinds that nobody may read."
LABEL_TEXTS = {"left": "a note of the first kind", "right": "a note of the second kind"}
PREFIXES = ("Note:", "Kind of note:", "", "Note:", "This note is", "Left?")
RUNS = {
    "online": {"search": {"regime": "online"}},
    "with shots and the dialogue gradient": {
        "data": {"shots": 20},
        "search": {"regime": "low-resource"},
        "dialogue_gradient": {"steps": 2, "batch_size": 2, "rank": 4},
    },
}


@dataclass(frozen=True)
class CanaryRun:
    """A run over rows of canaries and what was done with it afterwards."""

    folder: Path
    exported: Path
    printed: str
    requests: tuple[Received, ...]

    @property
    def files(self) -> list[Path]:
        return [path for folder in (self.folder, self.exported) for path in folder.rglob("*") if path.is_file()]


def write_canaries(folder: Path) -> None:
    sentences = iter(SENTENCES)
    for split, size in SPLITS.items():
        rows = [{"text": next(sentences), "label": ("left", "right")[i % 2], "id": i} for i in range(size)]
        write_jsonl(folder / f"{split}.jsonl", rows)
    assert next(sentences, None) is None


def says_prefixes(body: Json) -> Reply:
    """An endpoint that proposes, in its order, as many as are asked for."""
    if ASK_LABEL_TEXTS in body["messages"][-1]["content"]:
        return Reply(body=completion(label_text_reply(LABEL_TEXTS)))
    if VARIED in body["messages"][-1]["content"]:
        side = "left" if '"left"' in body["messages"][-1]["content"] else "right"
        texts = [f"{i}. a {side}-hand note, page {i}, of {i + 3} words or so" for i in range(1, 9)]
        return Reply(body=completion(*["\n".join(texts)] * body["n"]))
    return Reply(body=completion(*(PREFIXES[i % len(PREFIXES)] for i in range(body["n"]))))


def canary_config(folder: Path, server: FaultServer, bert: Path, changes: Mapping[str, Any]) -> Path:
    write_canaries(folder)
    content = {
        "data": {"validation": "validation.jsonl", "test": "test.jsonl"},
        "card": {"description": DESCRIPTION},
        "assistant": {"backend": "openai", "base_url": server.base_url, "model": "m"},
        "downstream": {"backbone": str(bert)},
        "search": {"rounds": 2, "proposals": len(PREFIXES)},
    }
    return write_config(folder / "secret.yaml", merge(content, changes))


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * ("gradient" in name)) for name in RUNS]
)
def canary_run(request: pytest.FixtureRequest, sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> CanaryRun:
    folder = tmp_path_factory.mktemp("canaries")
    run, exported = folder / "run", folder / "exported"
    with FaultServer(says_prefixes) as server:
        changes: dict[str, Any] = copy.deepcopy(RUNS[request.param])
        if "dialogue_gradient" in changes:
            changes["assistant"] = {"weights": str(tiny_chat_llama(folder / "llama"))}
        printed = ""
        for command in (
            ("train", canary_config(folder, server, sentence, changes), "--output", run, "--verbose"),
            ("predict", run, folder / "test.jsonl", "--output", folder / "labelled.jsonl"),
            ("evaluate", run),
            ("evaluate", run, folder / "train.jsonl", "--json"),
            ("export", run, exported),
            ("predict", exported, folder / "validation.jsonl", "--output", folder / "labelled.csv"),
            ("history", run),
        ):
            result = invoke(*command)
            assert result.exit_code == 0, result.output
            printed += result.output
        return CanaryRun(run, exported, printed, tuple(server.received))


def canaries_in(text: str) -> list[str]:
    text = text.lower()
    return [word for word in CANARIES if word in text or word[::-1] in text]


def test_canaries_are_seen_where_they_are() -> None:
    assert len(set(CANARIES)) == len(SENTENCES) == sum(SPLITS.values()) == 1000
    assert canaries_in(SENTENCES[17].upper()) == [CANARIES[17]]


class TestRun:
    def test_no_canary_has_come_to_the_endpoint(self, canary_run: CanaryRun) -> None:
        sent = [json.dumps(request.body) + str(request.headers) for request in canary_run.requests]
        asked = [text for text in sent if DESCRIPTION in text]
        of_rounds = [text for text in asked if ASK_PREFIX in text]
        assert len(of_rounds) == 2 and TRIED in of_rounds[-1]
        examples = 2 * (canary_run.folder / "examples.jsonl").exists()
        assert len(asked) == 1 + examples + 2, "label texts, example texts of each label, and prefixes"
        assert canaries_in("".join(sent)) == []

    def test_no_canary_is_in_the_history(self, canary_run: CanaryRun) -> None:
        connection = sqlite3.connect(canary_run.folder / "history.sqlite")
        dump = "\n".join(connection.iterdump())
        connection.close()
        assert "Kind of note:" in dump
        assert canaries_in(dump) == []

    def test_no_canary_is_in_any_byte_of_the_run_or_the_exported_model(self, canary_run: CanaryRun) -> None:
        names = {path.name for path in canary_run.files}
        assert names >= {"config.yaml", "summary.json", "metrics.jsonl", "model.safetensors", "tokenizer.json"}
        for path in canary_run.files:
            assert canaries_in(path.read_bytes().decode("latin-1")) == [], path.name

    def test_no_canary_is_in_what_was_taught(self, canary_run: CanaryRun) -> None:
        taught = [path.read_text("utf-8") for path in canary_run.files if path.name == "dialogues.jsonl"]
        assert bool(taught) == (canary_run.folder / "adapters").exists()
        assert all(DESCRIPTION in text and canaries_in(text) == [] for text in taught)

    def test_no_canary_is_printed(self, canary_run: CanaryRun) -> None:
        for words in ("leak scan: ", "training, 200 validation, 200 test rows", "round 2 of 2", "prefixes scored"):
            assert words in canary_run.printed
        assert canaries_in(canary_run.printed) == []

    def test_no_row_is_in_the_words_of_an_error(self, canary_run: CanaryRun, tmp_path: Path) -> None:
        rows = [{"text": word, "label": "left"} for word in CANARIES[:3]] + [{"text": 7, "label": CANARIES[3]}]
        result = invoke("predict", canary_run.folder, write_jsonl(tmp_path / "rows.jsonl", rows))
        assert result.exit_code == 2
        assert canaries_in(result.output) == []


class TestLeakOnPurpose:
    """Rows that get into the card, or into a proposal, by accident."""

    @pytest.mark.parametrize(("key", "split"), [("description", "train"), ("name", "validation"), ("labels", "test")])
    def test_canary_in_the_card_is_stopped_before_any_request(
        self, key: str, split: str, sentence: Path, tmp_path: Path
    ) -> None:
        row = {"train": 599, "validation": 600, "test": 999}[split]  # with shots, most training rows are not used
        pasted = f"Notes such as: {SENTENCES[row].upper().replace(' ', '  ')}"
        value = {"left": "", "right": pasted} if key == "labels" else pasted
        with FaultServer(says_prefixes) as server:
            changes = {"data": {"shots": 8}, "card": {key: value}}
            config = canary_config(tmp_path, server, sentence, changes)
            result = invoke("train", config, "--output", tmp_path / "run")
            assert server.received == []
        assert_refused(result, "card.labels.right" if key == "labels" else f"card.{key}", "6 words in a row")
        assert canaries_in(result.output) == []
        assert not (tmp_path / "run").exists()

    def test_proposal_that_says_words_of_a_row_is_not_shown_again(self, sentence: Path, tmp_path: Path) -> None:
        def unlucky(body: Json) -> Reply:
            reply = says_prefixes(body)
            if ASK_LABEL_TEXTS not in body["messages"][-1]["content"]:
                part = " ".join(SENTENCES[0].upper().split()[2:8])
                reply = Reply(body=completion(part, f"Note: {SENTENCES[999]}", "Note:", *PREFIXES[3:]))
            return reply

        with FaultServer(unlucky) as server:
            changes = {"search": {"max_prefix_tokens": 45, "regime": "online"}}
            result = invoke("train", canary_config(tmp_path, server, sentence, changes), "--output", tmp_path / "run")
            assert result.exit_code == 0, result.output
            assert canaries_in(json.dumps(server.chats)) == []
            assert TRIED in json.dumps(server.chats)
        with sqlite3.connect(tmp_path / "run" / "history.sqlite") as history:
            outcomes = history.execute("SELECT outcome, result FROM completions WHERE result LIKE 'holds%'").fetchall()
        assert outcomes == [("unusable", "holds 6 words in a row of a private row")] * 4
        assert canaries_in(result.output) == []

    def test_scan_that_is_off_is_said(self, sentence: Path, tmp_path: Path) -> None:
        with FaultServer(says_prefixes) as server:
            changes = {"card": {"description": SENTENCES[0]}, "privacy": {"leak_scan": {"enabled": False}}}
            config = canary_config(tmp_path, server, sentence, changes)
            result = invoke("train", config, "--dry-run")
        assert result.exit_code == 0, result.output
        assert "warning: privacy.leak_scan is off" in result.output

    def test_personal_data_in_a_history_are_not_taught(self, tmp_path: Path) -> None:
        history = History(tmp_path / "history.sqlite")
        history.add_run(replace(CARD, description="Letters to anna.muster@example.org, of two kinds."), "low-resource")
        entries = tuple(scored(f"Text {number}:", number / 10) for number in range(8))
        history.add_round(Round(1, {}, (), entries, entries[-1], None, 1.0))
        history.close()
        result = invoke("assistant", "tune", tmp_path, "--output", tmp_path / "adapter")
        assert_refused(result, str(tmp_path), "card.description", "an e-mail address")
        assert "anna" not in result.output
