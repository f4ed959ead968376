"""The documentation as pages: built without a warning, whole, and asking nothing of others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest
from browser import NO_BROWSER, NO_VALIDATOR, errors, violations
from commands import ROOT


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds them."""
    folder = tmp_path_factory.mktemp("docs") / "pages"
    options = ["-c", "docs", "--fail-on-warning", "--keep-going", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, ".", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_command_of_the_makefile_is_the_same() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert "\t$(BIN)/sphinx-build -c docs --fail-on-warning --keep-going --quiet . build/docs" in lines


def test_each_page_is_there_and_the_front_page_is_the_readme(pages: Path) -> None:
    sources = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    missing = [path for path in sources if not (pages / path.relative_to(ROOT)).with_suffix(".html").is_file()]
    assert missing == []
    assert (pages / "index.html").read_bytes() == (pages / "README.html").read_bytes()


def test_pages_load_nothing_from_elsewhere(pages: Path) -> None:
    for page in pages.rglob("*.html"):
        loaded = [name for tag in ("link", "script", "img", "iframe", "source") for name in loads(page, tag)]
        assert not [name for name in loaded if "//" in name], page
        assert not [name for name in loaded if not (page.parent / name.split("?")[0]).resolve().exists()], page
    for style in (pages / "_static").rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def loads(page: Path, tag: str) -> list[str]:
    tree = html5lib.parse(page.read_text(encoding="utf-8"), namespaceHTMLElements=False)
    names = [
        element.get("src") or element.get("href") for element in tree.iter(tag) if element.get("rel") != "canonical"
    ]
    return [name for name in names if name and not name.startswith(("#", "data:"))]


@pytest.mark.browser
@pytest.mark.skipif(bool(NO_VALIDATOR), reason=NO_VALIDATOR)
def test_validator_finds_nothing_wrong_with_the_front_page(pages: Path) -> None:
    assert errors(pages / "index.html", "standard") == ""


@pytest.mark.browser
@pytest.mark.skipif(bool(NO_BROWSER), reason=NO_BROWSER)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_wrong_with_the_front_page(pages: Path, dark: bool) -> None:
    page = (pages / "index.html").read_text(encoding="utf-8")
    assert violations(page, dark=dark, folder=pages) == []
