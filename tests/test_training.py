"""One fine-tuning: which parameters change, in which batches, and that it repeats itself."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import examples, sentiment_rows

from gpta_local.config import TrainingConfig
from gpta_local.data.examples import Example
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier, SequenceClassifier
from gpta_local.downstream.training import MIN_STEPS, WEIGHT_DECAY, Training, total_steps
from gpta_local.errors import TrainingError

ROWS = examples(sentiment_rows(), ("bad", "good"))
SETTINGS: dict[str, Any] = {"precision": "fp32", "batch_size": 8}


def build(kind: str, request: pytest.FixtureRequest, classes: int = 2) -> DownstreamModel:
    folder = request.getfixturevalue(kind)  # to be made it draws random numbers
    torch.manual_seed(0)
    return (SequenceClassifier if kind in ("bert", "roberta") else SentenceClassifier)(folder, classes, None)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> DownstreamModel:
    return build(getattr(request, "param", "bert"), request)


def training(
    model: DownstreamModel, steps: int, *, seed: int = 0, weight_decay: float = WEIGHT_DECAY, **changes: Any
) -> Training:
    config = TrainingConfig(**SETTINGS | {"steps": steps} | changes)
    return Training(model, ROWS, config, seed=seed, weight_decay=weight_decay)


@pytest.fixture
def no_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpta_local.downstream.training.WARMUP", 0.0)


def weights(model: DownstreamModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Batches:
    """Collects the row numbers of the batches that a training draws."""

    def __init__(self, rows: int, batch_size: int, model: DownstreamModel, seed: int = 0) -> None:
        data = [Example((" ".join(["word"] * (1 + i % 30)),), 0) for i in range(rows)]
        config = TrainingConfig(batch_size=batch_size, precision="fp32")
        self.lengths = [1 + i % 30 for i in range(rows)]
        self._batches = Training(model, data, config, seed=seed)._batches

    def epoch(self, rows: int) -> list[list[int]]:
        batches: list[list[int]] = []
        while sum(map(len, batches)) < rows:
            batches.append(next(self._batches))
        return batches


class TestParameters:
    @pytest.mark.parametrize("model", ["sentence", "bert", "roberta"], indirect=True)
    def test_every_parameter_but_the_word_embeddings_changes(self, model: DownstreamModel) -> None:
        before = weights(model)
        training(model, 3, weight_decay=0.1).run("Review:", 3)
        frozen = {id(parameter) for parameter in model.input_embeddings().parameters()}
        unused = {"network.pooler.dense.weight", "network.pooler.dense.bias"}  # mean pooling does not read it
        for name, parameter in model.named_parameters():
            if id(parameter) in frozen or (isinstance(model, SentenceClassifier) and name in unused):
                assert torch.equal(parameter, before[name]), name
            else:
                assert not torch.equal(parameter, before[name]), name

    @pytest.mark.parametrize(("model", "head"), [("bert", 5e-4), ("sentence", 1e-2)], indirect=["model"])
    def test_head_has_a_rate_of_its_own(self, no_warmup: None, model: DownstreamModel, head: float) -> None:
        heads = {id(parameter) for parameter in model.head.parameters()}
        groups = training(model, 10)._optimizer.param_groups
        rates = {(id(parameter) in heads, round(group["lr"], 9)) for group in groups for parameter in group["params"]}
        assert rates == {(False, 5e-5), (True, head)}

    def test_biases_and_norms_do_not_decay(self, model: DownstreamModel) -> None:
        for group in training(model, 10, weight_decay=0.1)._optimizer.param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)

    def test_gradients_are_clipped(self, model: DownstreamModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.downstream.training.MAX_GRAD_NORM", 0.01)
        steps = training(model, 2)
        norms: list[float] = []

        def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())

        steps._optimizer.optimizer.register_step_pre_hook(measure)
        steps.run("", 2)
        assert norms == pytest.approx([0.01, 0.01], rel=1e-2)


class TestRepetition:
    def test_weights_are_those_of_the_seed_to_the_bit(self, request: pytest.FixtureRequest) -> None:
        runs = []
        for seed in (0, 0, 1):
            model = build("bert", request)
            training(model, 4, seed=seed).run("Review:", 4)
            runs.append(weights(model))
            torch.manual_seed(123)  # what else goes on in the process must not matter
        assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
        assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])

    def test_prefix_does_not_change_which_rows_are_drawn(self, model: DownstreamModel) -> None:
        first, second = copy.deepcopy(model), copy.deepcopy(model)
        drawn = []
        for trained, prefix in ((first, ""), (second, "A rather long prefix:")):
            steps = training(trained, 3)
            steps.run(prefix, 3)
            drawn.append(next(steps._batches))
        assert drawn[0] == drawn[1]


class TestWatching:
    """Rows that are only looked at meanwhile."""

    @pytest.mark.parametrize("kind", ["bert", "sentence"])
    def test_changes_neither_weights_nor_losses(self, kind: str, request: pytest.FixtureRequest) -> None:
        found = []
        for watch in ((), ROWS[:5]):
            model = build(kind, request)
            if isinstance(model, SentenceClassifier):
                model.start_from_label_texts([["bad"], ["good"]], 4.0)
            steps = Training(model, ROWS, TrainingConfig(steps=7), seed=0, label_texts=True, watch=watch)
            steps.run("", 7)
            found.append((weights(model), steps.losses))
        assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])
        assert found[0][1] == found[1][1]
        assert [step for step, _ in steps.watched] == [0, 1, 2, 4, 5, 7]
        rows = model.tokenizer.encode(model.tokenizer.tokenise([row.texts for row in ROWS[:5]]), "")
        labels = torch.tensor([row.label for row in ROWS[:5]])
        last = torch.nn.functional.cross_entropy(model.predict_logits(rows), labels).item()
        assert steps.watched[-1][1] == pytest.approx(last, abs=0.02)  # in the precision of the training

    def test_goes_on_after_a_pause_and_looks_at_nothing_twice(self, request: pytest.FixtureRequest) -> None:
        def begun() -> Training:
            return Training(build("bert", request), ROWS, TrainingConfig(steps=6), seed=0, watch=ROWS[:3])

        whole, first, second = begun(), begun(), begun()
        whole.run("", 6)
        first.run("", 3)
        second.load(first.state())
        second.run("", 3)
        assert second.watched == whole.watched
        assert [step for step, _ in whole.watched] == [0, 1, 2, 3, 4, 6]


class TestBatches:
    def test_every_epoch_takes_every_row_once_in_another_order(self, model: DownstreamModel) -> None:
        batches = Batches(100, 8, model)
        epochs = [batches.epoch(100) for _ in range(3)]
        for epoch in epochs:
            assert sorted(row for batch in epoch for row in batch) == list(range(100))
            assert Counter(map(len, epoch)) == {8: 12, 4: 1}
        assert epochs[0] != epochs[1]

    def test_fewer_rows_than_a_batch_are_one_batch(self, model: DownstreamModel) -> None:
        assert [sorted(batch) for batch in Batches(3, 8, model).epoch(3)] == [[0, 1, 2]]

    def test_texts_of_a_batch_are_of_like_length_and_batches_in_random_order(self, model: DownstreamModel) -> None:
        batches = Batches(240, 8, model)
        spreads = [
            max(batches.lengths[row] for row in batch) - min(batches.lengths[row] for row in batch)
            for batch in batches.epoch(240)
        ]
        assert sum(spreads) / len(spreads) < 3  # in random batches of these lengths about 23
        means = [sum(batches.lengths[row] for row in batch) / len(batch) for batch in batches.epoch(240)]
        assert means != sorted(means)


class TestSchedule:
    def test_rate_rises_to_its_value_and_falls_to_zero(
        self, model: DownstreamModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpta_local.downstream.training.WARMUP", 0.2)
        steps = training(model, 10)
        rates = []
        for _ in range(10):
            rates.append(steps._optimizer.param_groups[0]["lr"] / 5e-5)
            steps.run("", 1)
        assert rates == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
        assert steps._optimizer.param_groups[0]["lr"] == 0

    @pytest.mark.parametrize(
        ("config", "rows", "label_texts", "steps"),
        [
            (TrainingConfig(steps=7), 10_000, False, 7),
            (TrainingConfig(batch_size=16), 1001, False, 3 * 63),
            (TrainingConfig(), 16, False, MIN_STEPS),
            (TrainingConfig(batch_size=16), 480, True, 3 * 60),
        ],
        ids=["as configured", "three epochs", "least", "half the rows in a step"],
    )
    def test_steps_of_a_training(self, config: TrainingConfig, rows: int, label_texts: bool, steps: int) -> None:
        assert total_steps(config, rows, label_texts=label_texts) == steps

    def test_so_many_times_the_steps_are_taken_at_a_rate_that_falls_over_them_all(
        self, no_warmup: None, request: pytest.FixtureRequest
    ) -> None:
        longer = Training(build("bert", request), ROWS, TrainingConfig(steps=4), seed=0, times=3)
        longer.run("", 6)
        assert longer.steps == 12
        assert longer._optimizer.param_groups[0]["lr"] == pytest.approx(5e-5 / 2)


class TestLoss:
    @pytest.mark.parametrize("model", ["backbone"], indirect=True)
    def test_loss_falls(self, model: DownstreamModel) -> None:
        losses: list[float] = []
        training(model, 16).run("Review:", 16, losses.append)
        assert sum(losses[-4:]) < 0.7 * sum(losses[:4])

    def test_mean_loss_is_that_of_the_steps(self, model: DownstreamModel) -> None:
        losses: list[float] = []
        mean = training(model, 3).run("", 3, losses.append)
        assert mean == pytest.approx(sum(losses) / 3)
        assert len(losses) == 3

    def test_loss_that_is_no_number_stops_the_training(self, model: DownstreamModel) -> None:
        with torch.no_grad():
            model.head.weight.fill_(float("nan"))
        with pytest.raises(TrainingError, match="the training loss is nan at step 1 of 2"):
            training(model, 2).run("", 2)

    def test_last_step_that_breaks_the_model_is_not_told_as_done(self, model: DownstreamModel) -> None:
        """Who is told of it keeps the model, and would go on with it."""
        told: list[float] = []
        steps = training(model, 1)
        original = steps._step

        def breaking(*arguments: Any) -> float:
            loss = original(*arguments)
            with torch.no_grad():
                model.head.weight.fill_(float("nan"))
            return loss

        steps._step = breaking  # type: ignore[method-assign]  # as a rate that is far too high does
        with pytest.raises(TrainingError, match="the output of the model is nan"):
            steps.run("", 1, told.append)
        assert told == []

    def test_state_of_a_machine_without_a_gpu_can_be_loaded_on_one_with(self, model: DownstreamModel) -> None:
        begun, resumed = training(model, 4), training(model, 4)
        begun.run("", 2)
        own = torch.arange(8, dtype=torch.uint8)  # what the generator of a GPU has
        resumed._random.append(own)
        resumed.load(begun.state())
        assert resumed._random[0].equal(begun._random[0]) and resumed._random[1].equal(own)


def test_bfloat16_trains_close_to_float32(request: pytest.FixtureRequest) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = build("bert", request)
        losses.append(training(model, 4, precision=precision).run("Review:", 4))
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]


def test_what_a_training_holds_is_free_when_it_is_over(model: DownstreamModel) -> None:
    """The optimiser has twice the weights: in a run they would pile up until Python looks for cycles."""
    trained = training(model, 1)
    trained.run("", 1)
    optimizer = weakref.ref(trained._optimizer)
    gc.disable()
    try:
        del trained
        assert optimizer() is None
    finally:
        gc.enable()


def test_trained_backbone_folder_stays_as_it_was(bert: Path, model: DownstreamModel) -> None:
    before = (bert / "model.safetensors").read_bytes()
    training(model, 1).run("", 1)
    assert (bert / "model.safetensors").read_bytes() == before


class TestLabelTexts:
    def anchored(self, request: pytest.FixtureRequest, kind: str = "sentence") -> SentenceClassifier:
        model = build(kind, request)
        assert isinstance(model, SentenceClassifier)
        model.start_from_label_texts([["bad", "a dull film"], ["good", "a fine film"]], scale=10.0)
        return model

    def train(self, model: DownstreamModel, steps: int, *, label_texts: bool = True, **changes: Any) -> Training:
        config = TrainingConfig(**SETTINGS | {"steps": steps} | changes)
        return Training(model, ROWS, config, seed=0, label_texts=label_texts)

    def test_head_ends_as_the_mean_of_its_own_and_the_label_texts(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpta_local.downstream.training.MAX_GRAD_NORM", 1e9)
        still = {"encoder_learning_rate": 0.0}
        alone, joined = self.anchored(request), self.anchored(request)
        self.train(alone, 1, label_texts=False, batch_size=4, **still).run("", 1)  # the rows of the other's step
        self.train(joined, 1, **still).run("", 1)
        torch.testing.assert_close(joined.head.weight, (alone.head.weight + joined.label_weights()) / 2)
        torch.testing.assert_close(joined.head.bias, alone.head.bias / 2)

    @pytest.mark.parametrize(("label_texts", "batch_size", "rows"), [(True, 8, 4), (True, 1, 1), (False, 8, 8)])
    def test_they_take_the_place_of_half_the_rows_of_a_step(
        self, label_texts: bool, batch_size: int, rows: int, request: pytest.FixtureRequest
    ) -> None:
        training = self.train(self.anchored(request), 1, label_texts=label_texts, batch_size=batch_size)
        assert len(next(training._batches)) == rows

    def test_encoder_learns_to_embed_them_near_their_rows(self, request: pytest.FixtureRequest) -> None:
        def loss(model: SentenceClassifier) -> float:
            """Of a head that is the label texts."""
            rows = model.tokenizer.encode(model.tokenizer.tokenise([row.texts for row in ROWS]), "")
            logits = model.all_features(rows) @ model.label_weights().T
            return torch.nn.functional.cross_entropy(logits, torch.tensor([row.label for row in ROWS])).item()

        untrained, without, with_texts = (self.anchored(request, "backbone") for _ in range(3))
        self.train(without, 20, label_texts=False).run("", 20)
        self.train(with_texts, 20).run("", 20)
        assert loss(with_texts) < loss(without) < loss(untrained)

    def test_losses_are_those_of_the_models_own_head(self, request: pytest.FixtureRequest) -> None:
        without = self.train(self.anchored(request), 1, label_texts=False, batch_size=4).run("", 1)
        assert self.train(self.anchored(request), 1).run("", 1) == pytest.approx(without, rel=1e-5)

    @pytest.mark.parametrize(("classes", "texts"), [(2, 2), (16, 2), (17, 1)])
    def test_many_classes_have_fewer_texts_in_a_step(
        self, request: pytest.FixtureRequest, classes: int, texts: int
    ) -> None:
        model = build("sentence", request, classes=classes)
        assert isinstance(model, SentenceClassifier)
        model.start_from_label_texts([[f"class {c}, text {t}" for t in range(5)] for c in range(classes)], scale=10.0)
        seen: list[int] = []
        weights_of = model.label_weights

        def heard(chosen: Sequence[int] | None = None) -> torch.Tensor:
            if chosen is not None:
                seen.append(len(chosen))
            return weights_of(chosen)

        model.label_weights = heard  # type: ignore[method-assign]
        self.train(model, 1).run("", 1)
        assert seen == [texts]

    def test_model_between_two_steps_can_be_seen_as_if_they_were_the_last(self, request: pytest.FixtureRequest) -> None:
        model = self.anchored(request)
        training = self.train(model, 4)
        with training.as_if_ended():
            torch.testing.assert_close(model.head.weight, model.label_weights(), msg="nothing is learnt yet")
        training.run("", 2)
        before = weights(model)
        with training.as_if_ended():
            torch.testing.assert_close(model.head.weight, (before["head.weight"] + model.label_weights()) / 2)
        assert all(torch.equal(weights(model)[name], before[name]) for name in before)
        training.run("", 2)
        whole = self.anchored(request)
        self.train(whole, 4).run("", 4)
        ended = weights(model)
        with training.as_if_ended():
            assert torch.equal(model.head.weight, ended["head.weight"])
        assert all(torch.equal(weights(whole)[name], ended[name]) for name in ended)

    @pytest.mark.parametrize("pause", [1, 4])
    def test_training_that_was_stopped_ends_with_the_same_weights(
        self, request: pytest.FixtureRequest, pause: int
    ) -> None:
        whole, first, second = (self.anchored(request) for _ in range(3))
        self.train(whole, 4).run("", 4)
        stopped, resumed = self.train(first, 4), self.train(second, 4)
        stopped.run("", pause)
        resumed.load(stopped.state())
        if pause < 4:
            resumed.run("", 4 - pause)
        assert all(torch.equal(weights(whole)[name], weights(second)[name]) for name in weights(whole))
