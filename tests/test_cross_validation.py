"""Each training row is labelled by a model that was trained without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import LABEL_TEXTS, Silent, config_of, label_text_reply, record_replies, sentiment_rows

from gpta_local.data.examples import Example
from gpta_local.downstream.training import Training
from gpta_local.run.cross_validation import parts_of
from gpta_local.run.loop import Run


def example(text: str, label: int) -> Example:
    return Example((text,), label)


def test_classes_are_spread_over_the_parts() -> None:
    rows = [example(str(n), n % 3) for n in range(24)]
    parts = parts_of(rows, 4)
    for part in range(4):
        labels = [row.label for row, of in zip(rows, parts, strict=True) if of == part]
        assert sorted(labels) == [0, 0, 1, 1, 2, 2]


def test_rows_of_one_text_are_in_one_part() -> None:
    rows = [example(str(n % 5), n % 2) for n in range(20)]
    parts = parts_of(rows, 4)
    assert all(len({parts[n] for n in range(20) if n % 5 == text}) == 1 for text in range(5))


@pytest.mark.parametrize(("texts", "parts"), [(3, 3), (1, 1)])
def test_there_are_no_more_parts_than_texts(texts: int, parts: int) -> None:
    assert len(set(parts_of([example(str(n % texts), n % 2) for n in range(12)], 4))) == parts


def settings(folder: Path, backbone: Path, **finish: Any) -> dict[str, Any]:
    record_replies(folder / "record", [label_text_reply(dict.fromkeys(LABEL_TEXTS, "x"))], ["Menu"])
    return {
        "assistant": {"backend": "replay", "run": str(folder / "record")},
        "downstream": {"backbone": str(backbone)},
        "search": {"rounds": 0, "label_text_samples": 0},
        "training": {"steps": 2},
        "finish": finish,
    }


def test_no_row_is_measured_by_a_model_that_was_trained_on_it(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[str]] = []
    make = Training.__init__

    def heard(self: Training, model: Any, examples: Any, *rest: Any, **named: Any) -> None:
        trained.append({row.texts[0] for row in examples})
        make(self, model, examples, *rest, **named)

    monkeypatch.setattr(Training, "__init__", heard)
    run = Run(config_of(tmp_path, sentiment_rows(), settings(tmp_path, sentence, folds=3)), Silent())
    measured: list[set[str]] = []
    evaluate = run.plan.task.evaluate

    def evaluated(model: Any, examples: Any, prefix: str) -> Any:
        measured.append({row.texts[0] for row in examples})
        return evaluate(model, examples, prefix)

    monkeypatch.setattr(run.plan.task, "evaluate", evaluated)
    run.run(tmp_path / "run")
    everything = {row["text"] for row in sentiment_rows()}
    assert trained[0] == everything, "the product"
    assert len(measured) == 6 == len(trained) - 1, "three parts, the product's recipe and the plain one"
    for inside, outside in zip(trained[1:], measured, strict=True):
        assert inside | outside == everything and not inside & outside
    assert set().union(*measured[::2]) == everything


def test_run_that_is_stopped_in_it_ends_with_the_same_figures(
    sentence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, sentiment_rows(), settings(tmp_path, sentence, folds=2))
    whole = Run(config, Silent()).run(tmp_path / "whole")
    steps, run = Training.run, Run(config, Silent())
    count = iter(range(100))

    def stopped(self: Training, *arguments: Any) -> float:
        if next(count) == 3:
            raise KeyboardInterrupt
        return steps(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.run(tmp_path / "run")
    resumed = Run(config, Silent()).run(tmp_path / "run", resume=True)
    for arm in ("gpta", "plain"):
        for figure in ("accuracy", "macro_f1", "loss", "interval"):
            assert resumed["arms"][arm][figure] == whole["arms"][arm][figure]
