"""The adapters that come with this package: as the catalogue says, and used unless a configuration says otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpta_local.config import Config, load_config
from gpta_local.errors import ConfigError, ModelError
from gpta_local.system import library
from gpta_local.system.adapters import check_adapter
from gpta_local.system.catalogue import read_catalogue
from gpta_local.system.library import assistant_folder, teacher

TAUGHT = [entry.name for entry in read_catalogue().values() if entry.teacher]
(NAME,) = TAUGHT
CONTENT = {
    "data": {"train": "rows.csv"},
    "card": {"description": "Reviews of books", "labels": ["good", "bad"]},
    "assistant": {"model": NAME},
}


def config(**assistant: object) -> Config:
    return load_config(CONTENT | {"assistant": {"model": NAME} | assistant})


@pytest.mark.slow
def test_it_fits_its_model(smollm2: str) -> None:
    folder = teacher(smollm2)
    assert folder is not None
    check_adapter(folder, assistant_folder(smollm2))


def test_it_says_how_it_was_made_and_its_licence() -> None:
    folder = teacher(NAME)
    assert folder is not None
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert read_catalogue()[NAME].licence in card and "gpta-local assistant tune" in card


def test_a_model_of_the_catalogue_begins_with_it() -> None:
    assert config().assistant.adapter == str(teacher(NAME))  # type: ignore[union-attr]  # it is local


def test_without_it_if_told_so_also_when_the_run_is_read_again() -> None:
    without = config(adapter=None)
    assert without.assistant.adapter is None  # type: ignore[union-attr]  # it is local
    assert load_config(without.model_dump()) == without


@pytest.mark.parametrize("model", ["own-model", f"/models/{NAME}", f"models/{NAME}"])
def test_other_models_and_folders_have_none(model: str) -> None:
    assert config(model=model).assistant.adapter is None  # type: ignore[union-attr]  # it is local


def test_a_served_model_has_it_where_that_is_asked_for() -> None:
    served = {"backend": "vllm", "model": f"publisher/{NAME}"}
    assert config(**served).assistant.adapter is None  # type: ignore[union-attr]  # vllm has adapters
    assert config(**served, adapter="teacher").assistant.adapter == str(teacher(NAME))  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="no adapter comes with this package for 'other'"):
        config(backend="vllm", model="other", adapter="teacher")


def test_another_file_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = teacher(NAME)
    assert folder is not None
    shutil.copytree(folder, tmp_path / "teachers" / NAME)
    monkeypatch.setattr(library, "shipped", lambda name: tmp_path / name)
    (tmp_path / "teachers" / NAME / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="not what the catalogue says"):
        teacher(NAME)
