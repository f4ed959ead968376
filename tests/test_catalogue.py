"""The catalogue of models, against the files themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpta_local.system.catalogue import known_folder, read_catalogue, recognise
from gpta_local.system.files import sha256
from gpta_local.system.manifests import MANIFEST, write_manifest
from gpta_local.system.models import DEMO_BACKBONE, DEMO_SHA256

ENTRY = """
- name: tiny
  source: made here
  revision: "1"
  licence: MIT
"""


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model beside a catalogue, which knows it by its SHA256SUMS."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder.parent / "catalogue.yaml").write_text(ENTRY)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(f"content of {name}")
    write_manifest(folder)
    module = tmp_path / "gpta_local" / "system" / "catalogue.py"
    monkeypatch.setattr("gpta_local.system.catalogue.__file__", str(module))
    return folder


@pytest.mark.parametrize("name", sorted(read_catalogue()))
def test_every_file_is_what_its_entry_says(name: str) -> None:
    entry = read_catalogue()[name]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(entry.files)
    assert list(entry.differing(known_folder(entry))) == []


def test_backbone_has_the_checksum_that_is_compared_before_it_is_loaded() -> None:
    assert read_catalogue()[DEMO_BACKBONE].files["model.safetensors"] == DEMO_SHA256


def test_model_beside_the_catalogue_is_known_by_its_list_under_any_name(built: Path) -> None:
    entry = read_catalogue()["tiny"]
    assert entry.files["model.safetensors"] == sha256(built / "model.safetensors")
    assert MANIFEST not in entry.files
    copy = shutil.copytree(built, built.parent / "copy")
    assert recognise(copy) == entry


def test_changed_file_is_named(built: Path) -> None:
    entry = read_catalogue()["tiny"]
    assert recognise(built) == entry
    (built / "model.safetensors").write_text("other")
    assert list(entry.differing(built)) == ["model.safetensors"]
    assert recognise(built) is None
