"""What editors, shells and containers get: a schema, completion, examples, an image for a user who is not root."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from commands import PROGRAM, ROOT, invoke
from samples import sentiment_rows, write_jsonl

from gpta_local.cli.main import main
from gpta_local.config import SCHEMA_FILE

CONFIGURATIONS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.name not in ("suite.yaml", "quick.yaml") and path.parent.name != "data" and path.name != "benchmark.yaml"
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    result = invoke("schema")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_of_the_schema(path: Path, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_shipped_configuration_says_what_each_label_means(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    pairs = content.get("task") == "text-pair-classification"  # which get no label texts
    assert pairs or all(content["card"]["labels"].values())


@pytest.mark.parametrize("mistake", [{"shuts": 8}, {"shots": "eight"}, {"shots": 0}])
def test_mistakes_are_not(mistake: dict[str, Any], schema: dict[str, Any]) -> None:
    content = {"data": {"train": "train.jsonl"}, "card": {"description": "Letters to the town hall."}}
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"data": {"train": "train.jsonl", **mistake}}, schema)


def test_schema_says_what_keys_are_for(schema: dict[str, Any]) -> None:
    assert schema["$defs"]["DataConfig"]["properties"]["shots"]["description"].startswith("Training rows per class")


def test_configuration_of_init_names_the_schema_and_is_of_it(schema: dict[str, Any], tmp_path: Path) -> None:
    text = invoke("init", write_jsonl(tmp_path / "train.jsonl", sentiment_rows())).stdout
    assert f"# yaml-language-server: $schema={SCHEMA_FILE}\n" in text
    assert not (tmp_path / SCHEMA_FILE).exists(), "it is written on demand alone"
    jsonschema.validate(yaml.safe_load(text.replace('description: ""', "description: What guests wrote.")), schema)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_completion(shell: str) -> None:
    environment = {**os.environ, "_GPTA_LOCAL_COMPLETE": f"{shell}_source"}
    command = [*PROGRAM[:-1], "import sys; sys.argv[0] = 'gpta-local'; " + PROGRAM[-1]]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "_GPTA_LOCAL_COMPLETE" in done.stdout and f"{shell}_complete" in done.stdout


def test_completion_knows_the_commands() -> None:
    from click.shell_completion import BashComplete

    words = [item.value for item in BashComplete(main, {}, "gpta-local", "_X").get_completions([], "pre")]
    assert words == ["predict"]


def all_commands(group: click.Group, *words: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, *words, name)
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", list(all_commands(main)), ids=" ".join)
def test_help_ends_with_examples_of_options_that_there_are(words: tuple[str, ...]) -> None:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    text = invoke(*words, "--help").stdout
    called = " ".join(("gpta-local", *words))
    examples = [line.strip() for line in text.splitlines() if called in line and "Usage" not in line]
    assert examples and max(map(len, text.splitlines())) <= 80
    known = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    assert {word for line in examples for word in line.split() if word.startswith("--")} <= known


def test_container_runs_as_a_user_and_copies_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["10001"]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
