"""The promise: the assistant's side of the program cannot reach a row, and no row leaves a run."""

from __future__ import annotations

import ast
import dataclasses
import sqlite3
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, invoke
from samples import label_text_reply, record_replies, write_config, write_jsonl

from gpta_local.dialogues import Dialogue
from gpta_local.schema import DatasetCard, Label, Message, Request

PACKAGE = ROOT / "gpta_local"
TEACHING = ["adapters", "dialogues", "dialogue_gradient", "dialogue_worker", "tuner"]
ASSISTANT_SIDE = [f"gpta_local.{name}" for name in ("prompts", "schema", *TEACHING)] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((PACKAGE / "assistant").rglob("*.py"))
]
ROW_READERS = {"gpta_local.data", "gpta_local.tasks.classification", "gpta_local.starter"}


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
        assert reachable("gpta_local.cli") >= ROW_READERS

    def test_only_the_tasks_and_the_commands_read_files_of_rows(self) -> None:
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.rglob("*.py"))]
        readers = {module for module in modules if "read_records" in (source_of(module) or Path()).read_text("utf-8")}
        assert readers == {*ROW_READERS, "gpta_local.inference"}

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
        assert [field.name for field in dataclasses.fields(DatasetCard)] == [
            "name",
            "task",
            "description",
            "labels",
            "training_rows",
            "validation_rows",
            "test_rows",
        ]

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
    def test_nothing_can_be_added_to_a_record(self, record: Any) -> None:
        assert record.__dataclass_params__.frozen
        assert "__dict__" not in dir(record)

    def test_what_is_taught_is_a_request_two_replies_and_figures(self) -> None:
        assert typing.get_type_hints(Dialogue) == {
            "request": Request,
            "reply": str,
            "weight": float,
            "worse": str,
        }

    def allowed(self, kind: Any) -> bool:
        if typing.get_origin(kind) is typing.Literal:
            return all(isinstance(value, str) for value in typing.get_args(kind))
        if typing.get_origin(kind) is tuple:
            member, rest = typing.get_args(kind)
            return rest is types.EllipsisType or (rest is ... and member in (Label, Message))
        return kind in self.LEAVES


CANARIES = [f"{first}{second}{third}q" for first in "bcdfg" for second in "aeiou" for third in "zxvkwjph"]
DESCRIPTION = "Short notes of two kinds that nobody may read."


@pytest.fixture(scope="module", params=["low-resource", "online"])
def canary_run(
    request: pytest.FixtureRequest, bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run over rows of canary words; its directory and all that it printed."""
    folder = tmp_path_factory.mktemp("canaries")
    words = iter(CANARIES)
    for split, rows in (("train", 30), ("validation", 10), ("test", 10)):
        write_jsonl(
            folder / f"{split}.jsonl",
            [
                {"text": " ".join(next(words) for _ in range(4)), "label": ("left", "right")[i % 2], "id": i}
                for i in range(rows)
            ],
        )
    assert next(words, None) is None
    label_texts = label_text_reply({"left": "a note of the first kind", "right": "a note of the second kind"})
    record_replies(folder / "record", [label_texts], ["Note:", "Kind of note:", "", "Note:", "This note is", "Left?"])
    config = write_config(
        folder / "secret.yaml",
        {
            "data": {"validation": "validation.jsonl", "test": "test.jsonl"},
            "card": {"description": DESCRIPTION},
            "assistant": {"backend": "replay", "run": "record"},
            "downstream": {"backbone": str(bert)},
            "search": {"rounds": 2, "regime": request.param},
        },
    )
    result = invoke("train", config, "--output", folder / "run", "--verbose")
    assert result.exit_code == 0, result.output
    return folder / "run", result.output


def canaries_in(text: str) -> list[str]:
    return [word for word in CANARIES if word in text]


class TestRun:
    def test_there_are_200_canaries(self) -> None:
        assert len(set(CANARIES)) == 200

    def test_no_row_is_in_a_message(self, canary_run: tuple[Path, str]) -> None:
        from gpta_local.history import open_existing

        history = open_existing(canary_run[0] / "history.sqlite")
        messages = "".join(history.messages())
        history.close()
        assert DESCRIPTION in messages
        assert messages.count("Write one new prefix") == 2
        assert canaries_in(messages) == []

    def test_no_row_is_in_the_history(self, canary_run: tuple[Path, str]) -> None:
        connection = sqlite3.connect(canary_run[0] / "history.sqlite")
        dump = "\n".join(connection.iterdump())
        connection.close()
        assert "Kind of note:" in dump
        assert canaries_in(dump) == []

    @pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl"])
    def test_no_row_is_in_a_file_of_the_run(self, canary_run: tuple[Path, str], name: str) -> None:
        text = (canary_run[0] / name).read_text(encoding="utf-8")
        assert text
        assert canaries_in(text) == []

    def test_no_row_is_in_any_byte_outside_of_the_model(self, canary_run: tuple[Path, str]) -> None:
        files = [path for path in canary_run[0].rglob("*") if path.is_file()]
        outside = [path for path in files if "model" not in path.relative_to(canary_run[0]).parts]
        assert len(outside) >= 4
        for path in outside:
            assert canaries_in(path.read_bytes().decode("latin-1")) == [], path.name

    def test_no_row_is_printed(self, canary_run: tuple[Path, str]) -> None:
        assert "50" in canary_run[1] or "30 training" in canary_run[1]
        assert canaries_in(canary_run[1]) == []

    def test_no_row_is_in_the_predictions(self, canary_run: tuple[Path, str]) -> None:
        result = invoke("predict", canary_run[0], canary_run[0].parent / "test.jsonl")
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == 10
        assert canaries_in(result.output) == []

    def test_no_row_is_in_the_words_of_an_error(self, canary_run: tuple[Path, str], tmp_path: Path) -> None:
        rows = [{"text": word, "label": "left"} for word in CANARIES[:3]] + [{"text": 7, "label": CANARIES[3]}]
        result = invoke("predict", canary_run[0], write_jsonl(tmp_path / "rows.jsonl", rows))
        assert result.exit_code == 2
        assert canaries_in(result.output) == []
