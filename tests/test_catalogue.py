"""The catalogue of models: every entry is whole, and the backbone's files are what it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpta_local.system.catalogue import KnownModel, read_catalogue, recognise
from gpta_local.system.library import known_folder
from gpta_local.system.models import DEMO_BACKBONE, DEMO_SHA256

CATALOGUE = read_catalogue()


@pytest.mark.parametrize("name", CATALOGUE)
def test_entry_is_whole(name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.licence == "Apache-2.0" or entry.licence.startswith("LicenseRef-")
    assert entry.packages is not None or not entry.measured
    if entry.packages is not None:
        packages, files = zip(*entry.packages.each(), strict=True)
        assert len(set(packages)) == len(set(files)) == entry.packages.parts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": None}, "chat_template and sampling"),
        ({"sha256": None}, "sha256 or files"),
        ({"measured": False, "tokens_per_second": 5.0}, "was not measured"),
    ],
)
def test_entry_that_is_not_whole_is_refused(changes: dict[str, Any], words: str) -> None:
    content = CATALOGUE["SmolLM2-135M-Instruct"].model_dump() | changes
    with pytest.raises(ValidationError, match=words):
        KnownModel.model_validate(content)


class TestBackbone:
    @pytest.fixture
    def copy(self, backbone: Path, tmp_path: Path) -> Path:
        return shutil.copytree(backbone, tmp_path / "copy")

    def test_every_file_is_what_its_entry_says(self) -> None:
        entry = CATALOGUE[DEMO_BACKBONE]
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(entry.files)
        assert entry.files["model.safetensors"] == DEMO_SHA256
        assert list(entry.differing(known_folder(entry))) == []

    def test_it_is_recognised_under_any_name(self, copy: Path) -> None:
        assert recognise(copy) == CATALOGUE[DEMO_BACKBONE]

    def test_changed_file_is_named(self, copy: Path) -> None:
        (copy / "model.safetensors").write_text("other")
        assert list(CATALOGUE[DEMO_BACKBONE].differing(copy)) == ["model.safetensors"]
        assert recognise(copy) is None
