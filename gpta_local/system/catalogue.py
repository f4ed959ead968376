"""The catalogue of assistants and backbones that are known to work: `models/catalogue.yaml`.

Knows what an entry says. Does not know what is installed, nor what the models do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from gpta_local.system.files import sha256

SHA256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Packages(Entry):
    """Packages of the index that hold a model as data. Their code is never imported."""

    package: str
    """Name of each; `{n}` is the number of the part, from 1 on."""
    version: str
    file: str
    """The file of a part, below site-packages, as the package's RECORD lists it."""
    parts: int = Field(default=1, ge=1)

    def each(self) -> Iterator[tuple[str, str]]:
        """(package, its file) in the order in which the files are joined."""
        for n in range(1, self.parts + 1):
            yield self.package.format(n=n), self.file.format(n=n)


class SuitableSampling(Entry):
    temperature: float = Field(ge=0, le=5)
    top_p: float = Field(gt=0, le=1)


class UsableShares(Entry):
    """Of replies: how many are of use."""

    label_texts: Share | None = None
    prefixes: Share | None = None
    example_texts: Share | None = None


class KnownModel(Entry):
    name: RelativePath
    kind: Literal["assistant", "backbone"]
    source: str
    """Where the files are from, in words."""
    packages: Packages | None = None
    """None: it is not on the package index; users serve it, or give its folder."""
    revision: str
    licence: str
    """An SPDX expression."""
    sha256: SHA256 | None = None
    """Of the upstream GGUF file that the packages' files make when joined."""
    tied_embeddings: bool = False
    """Whether input and output embeddings are one tensor upstream, though the GGUF file may hold two."""
    files: dict[RelativePath, SHA256] = {}
    """Path below the model's folder → what the file must be, of a model that is used as it is packed."""
    chat_template: str | None = None
    """What one must know of it."""
    sampling: SuitableSampling | None = None
    """For texts."""
    memory_gb: float = Field(gt=0)
    """Of the weights in bfloat16, or as they are published if that is less; 10⁹ bytes."""
    measured: bool
    """Whether it was tried with this package."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Of one text, on two cores."""
    usable: UsableShares | None = None
    example_texts_help: bool | None = None
    """Whether models trained on its example texts, written without an adapter, were better than without; None: not
    measured."""
    teacher: SHA256 | None = None
    """Of the weights of the adapter that comes with this package for it; None: there is none."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "assistant" and (self.chat_template is None or self.sampling is None):
            raise ValueError(f"{self.name}: an assistant has chat_template and sampling")
        if (self.packages is None) != (self.sha256 is None and not self.files):
            raise ValueError(f"{self.name}: packages go with sha256 or files")
        if not self.measured and (self.tokens_per_second or self.usable):
            raise ValueError(f"{self.name}: figures of a model that was not measured")
        return self

    def differing(self, folder: Path) -> Iterator[str]:
        """The files of the entry that are missing in `folder`, or not what they must be."""
        for name, digest in self.files.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                yield name


def shipped(name: str) -> Path:
    """A file or folder of `models/`, in a wheel or in a checkout."""
    package = Path(__file__).parent.parent
    places = (package / "embedded" / name, package.parent / "models" / name)
    return next((place for place in places if place.exists()), places[-1])


@cache
def read_catalogue() -> dict[str, KnownModel]:
    """The entries by name."""
    path = shipped("catalogue.yaml")
    entries = TypeAdapter(list[KnownModel]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    return {entry.name: entry for entry in entries}


def known_model(name: str) -> KnownModel | None:
    """The entry of a model by its name, also where its publisher or a path stands before it, as servers call it."""
    return read_catalogue().get(name.rstrip("/").rpartition("/")[-1])


def recognise(folder: Path) -> KnownModel | None:
    """The entry whose files are all in `folder`, unchanged."""
    listed = (model for model in read_catalogue().values() if model.files)
    return next((model for model in listed if not any(model.differing(folder))), None)
