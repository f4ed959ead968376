"""The suite file: which arms are compared on which sets. Knows keys, types and limits, and that every
configuration named in it loads; opens no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from gpta_local.config import Config, Section, check, read_yaml
from gpta_local.config import load as load_config
from gpta_local.errors import ConfigError

CONTROLS = {
    "plain": "random head, no label texts, no prefix",
    "plain_longer": "as `plain`, with five times the steps",
    "logistic_regression": "the backbone's embeddings as they are and a logistic regression: what a user tries first",
    "setfit": "SetFit with its own defaults: its own number of steps, float32, no label texts",
    "setfit_label_words": "SetFit whose rows also hold the name and the meaning of each label",
    "label_texts": "the label texts of `gpta`, no example texts, no prefix in front of label texts or inputs",
    "example_texts_only": "no labelled row: the card's label texts, and example texts that they agree with",
    "example_texts_only_unfiltered": "the same with all usable example texts",
    "zero_shot": "the assistant labels up to 300 test rows itself; here, and nowhere else, it reads rows",
    "best_prefix": "as `gpta`, with the prefix that ranked best whether or not it is clearly better than none",
    "fixed_prefix": "as `gpta`, with a prefix written by hand",
    "random_prefix": "as `gpta`, with a prefix of random words",
    "plain_with_prefix": "random head, the prefix of a search with a random head, if clearly better than none",
    "plain_with_best_prefix": "the same, with the prefix that ranked best in any case",
    "soft_prompt": "random head, a tuned soft prompt before a frozen backbone, at least 200 steps",
}
"""Arms that are built in, besides `gpta` and the suite's variants of it."""
GPTA = "gpta"
OWN_CONTROL = ", label texts alone"
"""After the name of a variant: the control of its run, as `label_texts` is that of `gpta`'s."""

Overrides = dict[str, Any]
"""Dotted keys of a configuration, as for `--set`, with their values."""
Shots = Annotated[int, Field(ge=1)] | None
"""Training rows per class; None: all rows."""


class SetEntry(Section):
    """A data set: a configuration as for `gpta-local train`."""

    config: str
    """Path, relative to the suite file."""
    fixed_prefix: str | None = None
    """A prefix that a person would write, for the arm `fixed_prefix`."""
    domain: str | None = None
    """Sets of the same domain are told apart from others in the transfer matrix."""


class TableEntry(Section):
    """Arms compared with each other: all are given the same rows and seeds."""

    sets: list[str] | None = Field(default=None, min_length=1)
    """Names of `sets`. None: all."""
    shots: list[Shots] = Field(min_length=1)
    samples: int = Field(default=10, ge=1, le=1000)
    """Seeds 0, 1, …: of the shots, the search and the training."""
    arms: list[str] = Field(min_length=1)


class Part(Section):
    """Further measurements, on fewer sets and samples."""

    sets: list[str] | None = Field(default=None, min_length=1)
    shots: Shots
    samples: int = Field(default=3, ge=1, le=1000)


class CurveEntry(Part):
    """Accuracy on training and test rows while `plain` and `gpta` are trained."""

    points: int = Field(default=10, ge=2, le=1000)
    """Measurements, evenly spread over the training."""
    test_rows: int | None = Field(default=500, ge=1)
    """Test rows of a measurement, drawn at random. None: all."""


class GoalEntry(Section):
    """What is hoped for. Figures are means over the sets of a table; accuracies in points.

    accuracy: ours − theirs ≥ at_least. seconds: of the whole run, ours / theirs ≤ at_most. own_seconds: the same
    without the time that the assistant took. fine_tuning: our last fine-tuning / their whole run ≤ at_most. gap:
    training less test accuracy is smaller for ours on at least `at_least` sets. not_worse: on no set does ours lose by
    more than the interval over its test rows.
    """

    table: str
    shots: Shots
    measure: Literal["accuracy", "seconds", "own_seconds", "fine_tuning", "gap", "not_worse"] = "accuracy"
    ours: str = GPTA
    theirs: str
    at_least: float | None = None
    at_most: float | None = None
    interval_above_zero: bool = False
    """accuracy: also, the interval must lie above 0."""
    worst_set: float | None = None
    """accuracy: also, on no set may the difference be below this. Of seconds: on no set may the ratio be above it."""

    @model_validator(mode="after")
    def _has_its_bound(self) -> GoalEntry:
        wanted = {"accuracy": "at_least", "gap": "at_least"}
        name = wanted.get(self.measure, "at_most") if self.measure != "not_worse" else None
        if name and getattr(self, name) is None:
            raise ValueError(f"goals: the measure {self.measure!r} needs the key {name!r}")
        if self.measure == "not_worse" and (self.ours, self.theirs) != (GPTA, "plain"):
            raise ValueError("goals: the measure 'not_worse' compares gpta with plain")
        return self


class SuiteFile(Section):
    """The file as it stands."""

    sets: dict[str, SetEntry] = Field(min_length=1)
    settings: Overrides = Field(default_factory=dict)
    """Overrides of every set's configuration, such as its assistant."""
    variants: dict[str, Overrides] = Field(default_factory=dict)
    """Arms that are GPTA with other settings: name → overrides of the configuration. Each brings its own control:
    "NAME, label texts alone"."""
    test_rows: int | None = Field(default=None, ge=1)
    """Test rows at most, drawn at random and the same for all arms. None: all."""
    tables: dict[str, TableEntry] = Field(min_length=1)
    curves: CurveEntry | None = None
    transfer: Part | None = None
    goals: list[GoalEntry] = Field(default_factory=list)

    @model_validator(mode="after")
    def _arms_have_the_same_rows(self) -> SuiteFile:
        for where, overrides in {"settings": self.settings, **self.variants}.items():
            for key in overrides:
                if key.partition(".")[0] in ("data", "seed"):
                    place = where if where == "settings" else f"variants: {where!r}"
                    raise ValueError(f"{place}: {key} cannot be another: all arms have the same rows and seeds")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> SuiteFile:
        arms = [GPTA, *CONTROLS, *self.variants, *(f"{name}{OWN_CONTROL}" for name in self.variants)]
        for name in self.variants:
            if name in (GPTA, *CONTROLS):
                raise ValueError(f"variants: {name!r} is the name of a built-in arm; choose another")
        parts: dict[str, TableEntry | Part | None] = {f"tables.{name}": entry for name, entry in self.tables.items()}
        parts.update({"curves": self.curves, "transfer": self.transfer})
        for where, part in parts.items():
            for name in (part.sets or []) if part else []:
                if name not in self.sets:
                    raise ValueError(f"{where}.sets: no set {name!r}; the sets are: {', '.join(self.sets)}")
        for title, table in self.tables.items():
            for arm in table.arms:
                if arm not in arms:
                    raise ValueError(f"tables.{title}.arms: no arm {arm!r}; the arms are: {', '.join(arms)}")
            without = [name for name in table.sets or self.sets if self.sets[name].fixed_prefix is None]
            if "fixed_prefix" in table.arms and without:
                raise ValueError(f"sets.{without[0]}: the arm 'fixed_prefix' needs the key 'fixed_prefix'")
        for goal in self.goals:
            entry = self.tables.get(goal.table)
            if entry is None:
                raise ValueError(f"goals: no table {goal.table!r}; the tables are: {', '.join(self.tables)}")
            if goal.shots not in entry.shots or not {goal.ours, goal.theirs} <= set(entry.arms):
                raise ValueError(
                    f"goals: the table {goal.table!r} does not compare {goal.ours!r} with {goal.theirs!r} "
                    f"at {shots_name(goal.shots)}"
                )
        return self


@dataclass(frozen=True, slots=True)
class Suite:
    """The checked file, and the configurations that it names."""

    path: Path
    file: SuiteFile
    _configs: Mapping[tuple[str, str], Config]

    def config(self, name: str, arm: str, shots: Shots, sample: int) -> Config:
        """The configuration of a set for an arm, with so many shots, at the seed of the sample. With shots the
        validation rows are left out: no arm is to choose on more labelled rows than another is given."""
        variant = arm.removesuffix(OWN_CONTROL)
        config = self._configs[name, variant if variant in self.file.variants else GPTA]
        rows: dict[str, Any] = {"shots": shots}
        if shots is not None:
            rows["validation"] = None
        return config.model_copy(update={"data": config.data.model_copy(update=rows), "seed": sample})


def load(path: Path) -> Suite:
    """Read and check a suite and the configurations that it names.

    Raises:
        ConfigError: with every problem of the first file that has some.
    """
    file = check(SuiteFile, read_yaml(path), path)
    configs: dict[tuple[str, str], Config] = {}
    for name, entry in file.sets.items():
        for arm, overrides in {GPTA: {}, **file.variants}.items():
            settings = file.settings | overrides
            given = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in settings.items()]
            try:
                config = load_config(path.parent / entry.config, given)
            except ConfigError as exc:
                where = f"{path}: sets.{name}.config" if arm == GPTA else f"{path}: variants.{arm}"
                raise ConfigError(str(exc), where=where) from exc
            if config.data.test is None:
                raise ConfigError("its configuration has no data.test", where=f"{path}: sets.{name}")
            if config.card.labels is None and (labels := configs.get((name, GPTA), config).card.labels):
                # their order is that in which shots are drawn: without it the rows would be others
                config = config.model_copy(update={"card": config.card.model_copy(update={"labels": list(labels)})})
            configs[name, arm] = config
    return Suite(path, file, configs)


def shots_name(shots: Shots) -> str:
    return "all rows" if shots is None else f"{shots} shots"
