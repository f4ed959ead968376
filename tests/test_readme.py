"""What README and docs show: links that lead somewhere, commands that there are, code that runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from commands import ROOT
from samples import label_text_reply, record_replies, sentiment_rows, write_jsonl

from gpta_local.cli.main import main
from gpta_local.config import load

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `gpta-local …` line of the page's blocks, comments and what comes after a pipe left out."""
    for text in blocks(page, ""):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            for part in re.split(r"\s[|>]|&&", line.split(" #")[0]):
                if part.strip().startswith("gpta-local "):
                    yield shlex.split(part)[1:]


def test_readme_can_be_read_in_one_go() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_are_there(page: Path) -> None:
    for words in commands(page):
        command: click.Command = main
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not isinstance(command, click.Group), words
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in {*known, "--help"}]
        assert unknown == [], words


def test_whole_configuration_of_the_readme_loads(tmp_path: Path) -> None:
    (text,) = (text for text in blocks(README, "yaml") if "card:" in text)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert list(load(tmp_path / "config.yaml").card.labels or ()) == ["registry", "roads", "taxes"]


@pytest.fixture(scope="module")
def project(sentence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages have it, with a tiny backbone and a recorded assistant."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("train", "test"):
        write_jsonl(folder / f"{name}.jsonl", sentiment_rows())
    (folder / "other.csv").write_text("text,label\ngood bread,good\ncold soup,bad\n", encoding="utf-8")
    record_replies(folder / "record", [label_text_reply({"bad": "unhappy", "good": "happy"})], ["Menu:"])
    content: dict[str, Any] = {
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "card": {"description": "Notes of guests of a restaurant.", "labels": {"bad": "unhappy", "good": "happy"}},
        "assistant": {"backend": "replay", "run": "record"},
        "downstream": {"backbone": str(sentence)},
        "knowledge": {"example_texts": 0},
        "search": {"rounds": 1, "proposals": 1, "label_text_samples": 1},
        "training": {"steps": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder


PYTHON = {
    "README": blocks(README, "python")[0],
    "python.md, first": blocks(ROOT / "docs" / "python.md", "python")[0],
    "python.md, second": blocks(ROOT / "docs" / "python.md", "python")[1],
    "notebook": (ROOT / "docs" / "notebook.py").read_text(encoding="utf-8"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_of_the_pages_runs(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpta_local.record import folder as run_folder

    monkeypatch.chdir(project)
    numbers = count()
    monkeypatch.setattr(run_folder, "new", lambda config: Path(f"runs/{name}-{next(numbers)}"))
    exec(compile(PYTHON[name], name, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.strip()
