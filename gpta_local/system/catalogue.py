"""The catalogue of models that are known file by file. Knows `models/catalogue.yaml`, folders and checksums.

Does not know what the models do. An entry says where a model is from, under which licence, and the
SHA-256 of each of its files; those of a model that lies beside the catalogue are in its own `SHA256SUMS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from gpta_local.errors import ModelError
from gpta_local.system.files import sha256
from gpta_local.system.manifests import MANIFEST, read_manifest
from gpta_local.system.models import DEMO_BACKBONE, EMBEDDED_ASSISTANT, assistant_folder, backbone_folder

SHA256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]


class KnownModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RelativePath
    source: str
    """Where the files are from."""
    revision: str
    licence: str
    """An SPDX expression."""
    files: dict[RelativePath, SHA256] = Field(min_length=1)
    """Path below the model's folder → what the file must be."""

    def differing(self, folder: Path) -> Iterator[str]:
        """The files of the entry that are missing in `folder`, or not what they must be."""
        for name, digest in self.files.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                yield name


def read_catalogue() -> dict[str, KnownModel]:
    """The entries by name."""
    package = Path(__file__).parent.parent
    places = (package / "embedded" / "catalogue.yaml", package.parent / "models" / "catalogue.yaml")
    path = next(place for place in places if place.is_file())
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in content:
        if "files" not in entry:
            entry["files"] = read_manifest(path.parent / entry["name"] / MANIFEST)
    entries = TypeAdapter(list[KnownModel]).validate_python(content)
    return {entry.name: entry for entry in entries}


def known_folder(model: KnownModel) -> Path:
    """The folder of an installed model of the catalogue, with every file as it must be.

    Raises:
        ModelError: if it is not installed, or a file differs.
    """
    folder = {EMBEDDED_ASSISTANT: assistant_folder, DEMO_BACKBONE: backbone_folder}[model.name](model.name)
    if differing := list(model.differing(folder)):
        raise ModelError(
            f"missing, or not what the catalogue says (SHA-256): {', '.join(differing)}",
            where=str(folder),
            fix="Do not use it; reinstall the package that it is from",
        )
    return folder


def recognise(folder: Path) -> KnownModel | None:
    """The entry whose files are all in `folder`, unchanged."""
    return next((model for model in read_catalogue().values() if not any(model.differing(folder))), None)
