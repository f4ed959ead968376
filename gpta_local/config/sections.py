"""The sections of a configuration, as frozen models: keys, types, limits and defaults.

Knows what a value may be, not what it does; opens no file. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from gpta_local.config.assistants import AssistantConfig, EndpointConfig, LocalAssistantConfig
from gpta_local.config.section import Section
from gpta_local.schema import RequestKind
from gpta_local.system.models import DEMO_BACKBONE
from gpta_local.system.network import is_this_machine, normal_host


class FormatConfig(Section):
    """How files of separated values (.csv, .tsv) are written, where that cannot be told from the file."""

    delimiter: str | None = None
    """None: tabs in a .tsv file; in a .csv file what its first line has of commas, semicolons, tabs and bars."""
    quoting: Literal["auto", "wrapped", "none"] = "auto"
    """wrapped: fields may stand in quote marks. none: quote marks are characters. auto: wrapped, but for tabs only in
    a file that is clearly quoted; and a field must not go over lines that are rows."""
    header: bool = True
    """Whether the first line, also of a sheet, has the names of the columns; otherwise they are column1, column2 …"""

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_a_character(cls, delimiter: str | None) -> str | None:
        if delimiter in ("\\t", "tab"):
            return "\t"
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n\0"'):
            raise ValueError("data.format.delimiter must be one character, such as ';', or tab")
        return delimiter


class ReadingConfig(Section):
    """How the files are written, where that cannot be told from them."""

    encoding: str | None = None
    """Of text files, such as cp1252. None: UTF-8, or what a byte order mark at the beginning says."""
    format: FormatConfig = FormatConfig()

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except (LookupError, ValueError) as exc:
            raise ValueError(f"data.encoding: {encoding!r} is no encoding that Python knows, such as cp1252") from exc
        return encoding


class InputConfig(ReadingConfig):
    """A file that a trained model reads: how it is written, and its columns where they have other names than the
    training rows'."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


class DataConfig(ReadingConfig):
    """Where the rows are. Formats: .jsonl, .json, .csv, .tsv, .parquet, .xlsx, all but the last also as .gz and .zst; a
    folder of such files, or one saved by `datasets`."""

    train: str | None = None
    """Labelled rows. None: there are none, and the model is trained on what the assistant makes up (`card.labels` names
    the labels)."""
    validation: str | None = None
    """Rows to choose the prefix on. None: a tenth is carved from 500 training rows or more, and wherever the search
    is online; otherwise prefixes are chosen by cross-validation on the training rows."""
    test: str | None = None
    """Rows for the one evaluation at the end. Nothing is chosen on them."""
    text: str = "text"
    text_pair: str | None = None
    """Column of the second text; for `text-pair-classification` "text_pair" if not given."""
    label: str = "label"
    shots: int | None = Field(default=None, ge=1)
    """Training rows per class, sampled with `seed`. None: all rows."""


Labels = Annotated[
    Annotated[list[str], Tag("list")] | Annotated[dict[str, str], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "list"),
]


class CardConfig(Section):
    """All that the assistant is told. Write no private text here: it leaves for the assistant."""

    name: str | None = None
    """None: the name of the configuration file."""
    description: str = Field(min_length=10)
    labels: Labels | None = None
    """Label names in order, or names with a meaning each. None: the names in the training rows."""


class DownstreamConfig(Section):
    """The model that is trained and shipped."""

    backbone: str = DEMO_BACKBONE
    """A sentence-transformers folder, a plain encoder checkpoint folder, or "all-MiniLM-L6-v2"
    for the one that the extra `demo` installs."""
    max_length: int | None = Field(default=None, ge=16)
    """Input tokens, prefix and special tokens included. None: the backbone's own limit."""


class KnowledgeConfig(Section):
    """What the assistant writes down of what it knows, besides prefixes."""

    example_texts: int | None = Field(default=None, ge=0, le=1024)
    """Texts per label that are asked for, to be trained on beside the rows where that helps (low-resource search,
    single texts). 0: none. None: 32, or 640 of all labels if that is fewer, unless the catalogue says
    that this model's texts do not help."""
    own_example_texts: dict[str, Annotated[list[str], Field(max_length=1024)]] = Field(default={})
    """Example texts of your own, by label; judged and used like those of the assistant, which is not shown them."""

    @field_validator("own_example_texts")
    @classmethod
    def _own_texts_say_something(cls, texts: dict[str, list[str]]) -> dict[str, list[str]]:
        for label, of_label in texts.items():
            if not of_label or not all(text.strip() for text in of_label):
                raise ValueError(f"knowledge.own_example_texts: {label!r} has an empty text, or none")
        return {label: list(dict.fromkeys(" ".join(text.split()) for text in own)) for label, own in texts.items()}


class SearchConfig(Section):
    rounds: int = Field(default=4, ge=0, le=1000)
    proposals: int = Field(default=8, ge=1, le=4096)
    """Prefixes asked of the assistant per round."""
    own_prefixes: list[str] = Field(default=[], max_length=64)
    """Prefixes of your own, scored in the first round beside those of the assistant, which is shown them later."""
    label_text_samples: int = Field(default=8, ge=0, le=256)
    """Completions asked for the label texts. 0: the head starts from the card's own label names and meanings."""
    max_prefix_tokens: int = Field(default=16, ge=1)
    """Longer prefixes are dropped; in the backbone's tokens."""
    history_shown: int = Field(default=8, ge=0)
    """Scored prefixes that the assistant sees: half of them the best, half drawn from the rest."""
    scoring_rows: int = Field(default=512, ge=8)
    """Training rows in the last heat of the race."""
    regime: Literal["auto", "low-resource", "online"] = "auto"
    """low-resource: search first, then train. online: search and train in turns. auto: online
    from 500 training rows; from 2,000, where nothing but the card is given, no search: plain fine-tuning and the start
    from label texts are compared on shares of the rows, and the winner is trained on all."""

    @model_validator(mode="after")
    def _own_prefixes_are_scored_in_a_round(self) -> SearchConfig:
        if self.own_prefixes and not self.rounds:
            raise ValueError("search.own_prefixes are scored in the first round: search.rounds must be 1 or more")
        return self


class DialogueGradientConfig(Section):
    """Fine-tuning the assistant on its own history: what gained, and what did not."""

    every: int = Field(default=1, ge=1)
    """Rounds between two steps."""
    text_steps: int = Field(default=2, ge=0)
    """Steps that teach example texts, after the rounds, where those could not be used as they are; after each as many
    texts again are asked for."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps of one fine-tuning. None: one pass over the dialogues."""
    batch_size: int = Field(default=4, ge=2)
    """Dialogues per optimiser step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    rank: int = Field(default=16, ge=1, le=512)
    taught: list[RequestKind] = Field(default=["prefix", "label-texts", "example-texts"], min_length=1)
    """Of what the assistant gives."""
    winners: float = Field(default=0.125, gt=0, le=0.5)
    """The share of the scored prefixes and label texts, from the best down, that is taught."""
    dialogues_per_winner: int = Field(default=8, ge=1, le=64)
    """How often a winner is taught, each time with other entries of the history; of example texts: for each label."""
    temperature: float = Field(default=1.5, gt=0, le=5)
    """Prefixes of an adapter are sampled at this × assistant.temperature: it knows its winners nearly by heart."""
    device: str = "auto"
    """Where a served assistant is trained, in a process of its own; a local one is trained where it is."""


class TrainingConfig(Section):
    steps: int | None = Field(default=None, ge=1)
    """None: three epochs, at least 40 steps."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of a step; half as many where label texts go along."""
    encoder_learning_rate: float = Field(default=5e-5, ge=0)
    head_learning_rate: float = Field(default=1e-2, gt=0)
    """For heads of sentence-transformers backbones; a plain checkpoint's head has the encoder's rate × 10."""
    label_text_loss: bool = True
    """In a low-resource search some of the label texts that the head started from go along in each step of training:
    embedded anew, they make a second head, whose loss is added, and the model's head ends as the mean of both."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    """auto: a GPU if there is one. Otherwise a torch device such as cpu or cuda:1."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """How much of a fine-tuning may be lost when the machine stops. It changes no result."""


class BudgetConfig(Section):
    """Where one is reached, the search ends before the next round; then the best is chosen, trained,
    measured and exported as always. None: no limit."""

    seconds: float | None = Field(default=None, gt=0)
    """Of the search, reading and loading not counted; pauses neither."""
    tokens: int | None = Field(default=None, ge=1)
    """Read and written by the assistant. Where a server does not count them for each completion, the bytes of
    request and reply are counted: too many rather than too few."""
    calls: int | None = Field(default=None, ge=1)
    """Completions asked of the assistant, label texts included; never more are asked for."""
    trials: int | None = Field(default=None, ge=1)
    """Different prefixes scored; never more are proposed than are left."""


class FinishConfig(Section):
    finalists: int = Field(default=3, ge=1)
    """Prefixes compared on the validation rows, beside no prefix."""
    templates: int = Field(default=16, ge=0, le=1024)
    """The best prefixes, so many, are also put before the label texts that the head starts from (low-resource
    search), unless validation rows speak against it. 0: the head starts from the label texts alone."""
    plain_control: bool = True
    """Also train with a random head and no prefix, as without this tool. In an online search it is the product
    where nothing is clearly better on the validation rows."""
    card_control: bool = True
    """Also train from the card's own label names and meanings alone, for comparison, where the assistant's label texts
    have joined them."""
    folds: int = Field(default=4, ge=0, le=20)
    """Where there are no rows besides those of the training, the product's recipe is measured by cross-validation in so
    many parts: as many further trainings, and as many plain ones. 0: nothing is measured then."""

    @field_validator("folds")
    @classmethod
    def _one_fold_is_none(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("finish.folds: one part leaves nothing to train on. Give 2 or more, or 0 for none")
        return folds


class LeakScanConfig(Section):
    """What is looked for in everything that goes to the assistant: words of private rows, personal data."""

    enabled: bool = True
    words: int = Field(default=6, ge=4, le=64)
    """So many words in a row that are also in a private row are a leak; of rows with fewer, the whole row."""
    threshold: int = Field(default=1, ge=1, le=100)
    """Different runs of so many words in one field from which on it is a leak."""


class PrivacyConfig(Section):
    """What may leave this machine, and what is looked for before it does."""

    allow_hosts: list[str] = Field(default=[])
    """Hosts besides this machine to which requests may go, such as an assistant's on another server. Each is
    an exact name or an address, such as llm.example.org; ports are not compared."""
    leak_scan: LeakScanConfig = LeakScanConfig()

    @field_validator("allow_hosts")
    @classmethod
    def _hosts_are_names_or_addresses(cls, hosts: list[str]) -> list[str]:
        normal = {host: normal_host(host) for host in hosts}
        for host, found in normal.items():
            if found is None:
                raise ValueError(
                    f"privacy.allow_hosts: {host!r} is no name or address of a host. Write that alone, such as "
                    "llm.example.org or 10.0.0.5: no scheme, port or path, no pattern, letters of ASCII"
                )
        return [found for found in normal.values() if found]


class Config(Section):
    task: Literal["text-classification", "text-pair-classification"] = "text-classification"
    data: DataConfig
    card: CardConfig
    assistant: AssistantConfig = LocalAssistantConfig()
    downstream: DownstreamConfig = DownstreamConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    budget: BudgetConfig = BudgetConfig()
    finish: FinishConfig = FinishConfig()
    dialogue_gradient: DialogueGradientConfig | None = None
    privacy: PrivacyConfig = PrivacyConfig()
    tracking: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default=[])
    """Trackers for which a finished run is written too, into files below it."""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _pair_column_belongs_to_pair_task(self) -> Config:
        if self.task == "text-classification" and self.data.text_pair is not None:
            raise ValueError("data.text_pair is only for task: text-pair-classification")
        return self

    @model_validator(mode="after")
    def _without_rows_the_assistant_makes_up_texts(self) -> Config:
        if self.data.train is not None:
            return self
        without = "data.train is missing: without labelled rows"
        if self.card.labels is None:
            raise ValueError(
                f"{without} card.labels must name the labels, each with its meaning. Or name a file of rows"
            )
        made_up = self.knowledge.example_texts != 0 or self.knowledge.own_example_texts
        if self.task != "text-classification" or not made_up:
            raise ValueError(
                f"{without} a model is trained on example texts (knowledge.example_texts), of single texts"
            )
        if self.data.shots is not None or self.search.regime == "online" or self.dialogue_gradient is not None:
            raise ValueError(f"{without} there are no data.shots, no search.regime: online and no dialogue_gradient")
        return self

    @model_validator(mode="after")
    def _label_column_holds_no_text(self) -> Config:
        pair = self.data.text_pair or ("text_pair" if self.task == "text-pair-classification" else None)
        if self.data.label in (self.data.text, pair):
            raise ValueError("data.label names a text column: its rows would be label names and go to the assistant")
        return self

    @model_validator(mode="after")
    def _endpoint_is_here_or_allowed(self) -> Config:
        if not isinstance(self.assistant, EndpointConfig):
            return self
        for url in self.assistant.base_urls:
            host = _host_of(url)
            if host and not is_this_machine(host) and normal_host(host) not in self.privacy.allow_hosts:
                key = "base_url" if url == self.assistant.base_url else "further_base_urls"
                raise ValueError(
                    f"assistant.{key} goes to {host}, which is not this machine. "
                    "If it may see your description and gains, add it to privacy.allow_hosts"
                )
        return self


def _host_of(url: str) -> str | None:
    """None if it has none: what is wrong with it says the module that uses it."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
