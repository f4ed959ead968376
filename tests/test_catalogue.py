"""The catalogue of models, against the files themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpta_local.catalogue import KnownModel, known_folder, read_catalogue, recognise
from gpta_local.model_files import DEMO_SHA256


@pytest.fixture(params=["nano-assistant", "all-MiniLM-L6-v2"])
def entry(request: pytest.FixtureRequest) -> KnownModel:
    return read_catalogue()[request.param]


def test_every_entry_is_tested_here() -> None:
    assert set(read_catalogue()) == {"nano-assistant", "all-MiniLM-L6-v2"}


def test_every_file_is_what_its_entry_says(entry: KnownModel) -> None:
    folder = known_folder(entry)
    assert entry.differing(folder) == []
    assert entry.size == sum((folder / name).stat().st_size for name in entry.files)


def test_entry_holds_all_that_a_model_needs(entry: KnownModel) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(entry.files)
    assert entry.licence == "Apache-2.0"


def test_backbone_has_the_checksum_that_is_compared_before_it_is_loaded() -> None:
    assert read_catalogue()["all-MiniLM-L6-v2"].files["model.safetensors"].sha256 == DEMO_SHA256


def test_model_is_recognised_in_a_folder_of_any_name(nano_assistant: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_assistant, tmp_path / "copy")
    found = recognise(tmp_path / "copy")
    assert found is not None
    assert found.name == "nano-assistant"


def test_changed_byte_is_named(nano_assistant: Path, tmp_path: Path) -> None:
    shutil.copytree(nano_assistant, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_catalogue()["nano-assistant"].differing(tmp_path / "copy") == ["model.safetensors"]
    assert recognise(tmp_path / "copy") is None
