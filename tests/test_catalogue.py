"""The catalogue of models, against the files themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpta_local.system.catalogue import KnownModel, known_folder, read_catalogue, recognise
from gpta_local.system.files import sha256
from gpta_local.system.manifests import MANIFEST, write_manifest
from gpta_local.system.models import DEMO_SHA256


@pytest.fixture(params=["nano-assistant", "all-MiniLM-L6-v2"])
def entry(request: pytest.FixtureRequest) -> KnownModel:
    return read_catalogue()[request.param]


def test_every_entry_is_tested_here() -> None:
    assert set(read_catalogue()) == {"nano-assistant", "all-MiniLM-L6-v2"}


def test_every_file_is_what_its_entry_says(entry: KnownModel) -> None:
    folder = known_folder(entry)
    assert list(entry.differing(folder)) == []


def test_entry_holds_all_that_a_model_needs(entry: KnownModel) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(entry.files)
    assert entry.licence == "Apache-2.0"


def test_backbone_has_the_checksum_that_is_compared_before_it_is_loaded() -> None:
    assert read_catalogue()["all-MiniLM-L6-v2"].files["model.safetensors"] == DEMO_SHA256


def test_assistant_that_is_built_anew_is_known_by_its_new_list(
    nano_assistant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "models" / "nano-assistant"
    built.mkdir(parents=True)
    shutil.copy(nano_assistant.parent / "catalogue.yaml", tmp_path / "models")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (built / name).write_text(f"new {name}")
    write_manifest(built)
    monkeypatch.setattr(
        "gpta_local.system.catalogue.__file__", str(tmp_path / "gpta_local" / "system" / "catalogue.py")
    )
    entry = read_catalogue()["nano-assistant"]
    assert entry.files["model.safetensors"] == sha256(built / "model.safetensors")
    assert MANIFEST not in entry.files
    assert recognise(built) == entry


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
    assert list(read_catalogue()["nano-assistant"].differing(tmp_path / "copy")) == ["model.safetensors"]
    assert recognise(tmp_path / "copy") is None
