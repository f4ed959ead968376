"""What follows from a configuration and its rows before a run begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import config_of, scored, sentiment_rows

from gpta_local.config import LocalAssistantConfig, OpenAIAssistantConfig
from gpta_local.config.sections import KnowledgeConfig
from gpta_local.run.plan import Plan
from gpta_local.schema import Label, Regime
from gpta_local.tasks import open_task


def planned(folder: Path, sentence: Path, changes: dict[str, Any], many: bool = False) -> Plan:
    config = config_of(folder, sentiment_rows(), {"downstream": {"backbone": str(sentence)}} | changes)
    task = open_task(config)
    return Plan(config, task, replace(task.splits(), many=many), task.card())


@pytest.fixture
def plan(tmp_path: Path, sentence: Path) -> Plan:
    return planned(tmp_path, sentence, {})


@pytest.mark.parametrize(
    ("asked", "many", "regime"),
    [
        ("auto", False, "low-resource"),
        ("auto", True, "online"),
        ("low-resource", True, "low-resource"),
        ("online", False, "online"),
    ],
)
def test_regime_follows_the_rows_unless_it_is_given(
    tmp_path: Path, sentence: Path, asked: str, many: bool, regime: Regime
) -> None:
    plan = planned(tmp_path, sentence, {"search": {"regime": asked}}, many)
    assert plan.regime == regime and plan.online == (regime == "online")


def test_scoring_rows_are_new_in_each_round_where_the_model_moves(plan: Plan) -> None:
    online = replace(plan, splits=replace(plan.splits, many=True))
    assert plan.scoring_rows(1) == plan.scoring_rows(2)
    assert online.scoring_rows(1) != online.scoring_rows(2)


def test_steps_are_those_of_the_training(tmp_path: Path, sentence: Path) -> None:
    plan = planned(tmp_path, sentence, {"training": {"steps": None}})
    model = plan.task.build(plan.task.own_label_texts())
    assert plan.training(model).steps == plan.steps
    assert plan.training(model, times=3).steps == 3 * plan.steps


@pytest.mark.parametrize(("labels", "texts"), [(2, 32), (20, 32), (77, 8), (30, 21)])
def test_of_many_labels_fewer_example_texts_are_asked_for(plan: Plan, labels: int, texts: int) -> None:
    config = plan.config.model_copy(update={"assistant": LocalAssistantConfig(), "knowledge": KnowledgeConfig()})
    card = replace(plan.card, labels=tuple(Label(f"label {number}") for number in range(labels)))
    assert replace(plan, config=config, card=card).example_texts == texts


@pytest.mark.parametrize("served", ["Qwen/Qwen2.5-Coder-0.5B-Instruct", "/models/Qwen2.5-Coder-0.5B-Instruct/"])
def test_a_model_whose_texts_do_not_help_is_known_by_the_name_under_which_it_is_served(plan: Plan, served: str) -> None:
    endpoint = OpenAIAssistantConfig(backend="openai", model=served, base_url="http://127.0.0.1:1/v1")
    config = plan.config.model_copy(update={"assistant": endpoint, "knowledge": KnowledgeConfig()})
    assert replace(plan, config=config).example_texts == 0


@pytest.mark.parametrize(("adapter", "texts"), [(None, 0), ("/adapters/ours", 32)])
def test_with_an_adapter_a_model_is_asked_for_texts_that_do_not_help_without(
    plan: Plan, adapter: str | None, texts: int
) -> None:
    assistant = LocalAssistantConfig(model="SmolLM2-135M-Instruct", adapter=adapter)
    config = plan.config.model_copy(update={"assistant": assistant, "knowledge": KnowledgeConfig()})
    assert replace(plan, config=config).example_texts == texts


def test_nothing_is_measured_or_trained_plainly_without_other_rows(plan: Plan) -> None:
    assert not plan.splits.validation and not plan.splits.test
    assert not plan.measured and not plan.trains_plainly
    tested = replace(plan, splits=replace(plan.splits, test=plan.splits.train))
    assert tested.measured and tested.trains_plainly


class TestFinalists:
    def test_with_validation_rows_several_are_compared(self, plan: Plan) -> None:
        prefixes = [scored(text, gain, 0.01) for text, gain in (("a", 0.1), ("b", 0.4), ("c", 0.3), ("d", 0.2))]
        compared = replace(plan, splits=replace(plan.splits, validation=plan.splits.train))
        assert compared.config.finish.finalists == 3
        assert compared.finalists(prefixes) == ["b", "c", "d"]

    def test_without_any_the_best_must_be_clear_by_itself(self, plan: Plan) -> None:
        others = [scored(f"other {number}", -0.1, 0.1) for number in range(30)]
        assert plan.finalists([scored("clear", 0.3, 0.1), *others]) == ["clear"]
        assert plan.finalists([scored("lucky", 0.2, 0.1), *others]) == []

    def test_none_that_loses_is_one(self, plan: Plan) -> None:
        assert plan.finalists([scored("worse", -0.1, 0.01)]) == plan.finalists([]) == []
