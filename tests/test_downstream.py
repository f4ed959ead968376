"""The downstream model: heads, features, and backbones that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from samples import LABEL_TEXTS, config_of, examples, pair_rows, read_rows, sentiment_rows

from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.prompts import label_texts_request, prefix_request
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier, SequenceClassifier
from gpta_local.downstream.probe import probe_losses
from gpta_local.downstream.tokenization import EncodedRow
from gpta_local.errors import ModelError
from gpta_local.schema import DatasetCard, Label, Sampling
from gpta_local.system.library import assistant_folder
from gpta_local.system.models import DEMO_SHA256, backbone_folder
from gpta_local.tasks.classification import ClassificationTask

SINGLES = [(row["text"],) for row in read_rows("validation")]
PAIRS = [(row["text"], row["text_pair"]) for row in pair_rows()]


@pytest.fixture(scope="module")
def sentence_model(sentence: Path) -> SentenceClassifier:
    torch.manual_seed(0)
    return SentenceClassifier(sentence, 7, None).eval()


@pytest.fixture(scope="module", params=["sentence", "bert", "roberta"])
def model(request: pytest.FixtureRequest, sentence_model: SentenceClassifier) -> DownstreamModel:
    if request.param == "sentence":
        return sentence_model
    torch.manual_seed(0)
    return SequenceClassifier(request.getfixturevalue(request.param), 3, None).eval()


def encoded(model: DownstreamModel, texts: list[tuple[str, ...]], prefix: str = "") -> list[EncodedRow]:
    return model.tokenizer.encode(model.tokenizer.tokenise(texts), prefix)


class TestFeatures:
    def test_features_do_not_depend_on_the_batch_and_the_order_of_rows(self, model: DownstreamModel) -> None:
        rows = encoded(model, SINGLES)[:12]
        alone = torch.cat([model.all_features([row]) for row in reversed(rows)]).flip(0)
        torch.testing.assert_close(model.all_features(rows), alone, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("texts", [SINGLES[:8], PAIRS], ids=["single", "pair"])
    def test_features_times_head_are_the_logits(self, model: DownstreamModel, texts: list[tuple[str, ...]]) -> None:
        rows = encoded(model, texts, "Request:")
        with torch.inference_mode():
            logits = model(model.collate(rows))
        torch.testing.assert_close(model.predict_logits(rows), logits, atol=1e-5, rtol=0)

    def test_features_are_computed_without_dropout_and_leave_the_mode(self, model: DownstreamModel) -> None:
        rows = encoded(model, SINGLES[:4])
        model.train()
        try:
            features = model.all_features(rows)
            assert model.training
        finally:
            model.eval()
        torch.testing.assert_close(features, model.all_features(rows))

    def test_padding_is_masked(self, model: DownstreamModel) -> None:
        short, long = encoded(model, [("short",), ("a much longer text than the other one",)])
        inputs = model.collate([short, long])
        assert inputs["attention_mask"].sum(1).tolist() == [len(short.input_ids), len(long.input_ids)]

    def test_sentence_features_are_those_of_sentence_transformers(self, backbone: Path) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceClassifier(backbone, 7, None).eval()
        expected = SentenceTransformer(str(backbone), device="cpu").encode([text for (text,) in SINGLES[:10]])
        np.testing.assert_allclose(model.all_features(encoded(model, SINGLES[:10])), expected, atol=1e-5)


class TestHeads:
    def test_head_of_label_texts_is_far_above_chance_before_training(self, backbone: Path) -> None:
        model = SentenceClassifier(backbone, 7, None).eval()
        model.start_from_label_texts([[text] for text in LABEL_TEXTS.values()], scale=10.0)
        rows = examples(read_rows("test"))[:140]
        logits = model.predict_logits(encoded(model, [row.texts for row in rows]))
        hits = (logits.argmax(-1) == torch.tensor([row.label for row in rows])).float().mean()
        assert hits > 0.5  # chance is 1/7

    def test_weights_of_label_texts_have_the_length_of_the_scale(self, sentence_model: SentenceClassifier) -> None:
        sentence_model.start_from_label_texts([[text, f"about {text}"] for text in LABEL_TEXTS.values()], scale=7.0)
        torch.testing.assert_close(sentence_model.head.weight.norm(dim=-1), torch.full((7,), 7.0))
        assert not sentence_model.head.bias.any()

    def test_several_texts_of_a_label_are_averaged(self, sentence_model: SentenceClassifier) -> None:
        texts = list(LABEL_TEXTS.values())
        sentence_model.start_from_label_texts([[text, text] for text in texts], scale=1.0)
        twice = sentence_model.head.weight.clone()
        sentence_model.start_from_label_texts([[text] for text in texts], scale=1.0)
        torch.testing.assert_close(sentence_model.head.weight, twice)

    @pytest.mark.parametrize("kind", ["sentence", "bert", "roberta"])
    def test_plain_head_is_that_of_the_seed_and_no_other_random_state_changes(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        def head(seed: int) -> torch.Tensor:
            changes = {"downstream": {"backbone": str(request.getfixturevalue(kind))}, "seed": seed}
            return ClassificationTask(config_of(tmp_path, sentiment_rows(), changes)).build_plain().head.weight

        first = head(3)
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        assert torch.equal(head(3), first) and not torch.equal(head(4), first)
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_average_of_two_models_lies_between_them(share: float, sentence: Path) -> None:
    ours, theirs = (SentenceClassifier(sentence, 2, None) for _ in range(2))
    with torch.no_grad():
        theirs.head.weight.add_(1.0)
        theirs.network.get_parameter("embeddings.LayerNorm.weight").mul_(3.0)
    wanted = ours.head.weight.detach() * (1 - share) + theirs.head.weight.detach() * share
    ours.average_with(theirs, share)
    assert torch.allclose(ours.head.weight, wanted)
    norm = ours.network.get_parameter("embeddings.LayerNorm.weight")
    assert torch.allclose(norm, torch.full_like(norm, 1 + 2 * share))


class TestProbe:
    ROWS = examples(read_rows("train"))

    def test_losses_of_a_prefix_are_the_same_whatever_was_scored_before(
        self, sentence: Path, sentence_model: SentenceClassifier, tmp_path: Path
    ) -> None:
        changes = {"downstream": {"backbone": str(sentence)}}
        task = ClassificationTask(config_of(tmp_path, read_rows("train"), changes))
        scorer = task.scorer(sentence_model, self.ROWS)
        scorer.losses("Request:", range(20))
        in_parts = scorer.losses("Request:", range(40))
        fresh = task.scorer(sentence_model, self.ROWS).losses("Request:", range(40))
        np.testing.assert_allclose(in_parts, fresh, atol=1e-3)

    def test_loss_is_out_of_fold(self) -> None:
        """Features that identify the row but say nothing of its label must not lower the loss."""
        features, head = torch.eye(40), torch.nn.Linear(40, 2)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        labels = torch.arange(40) % 2
        assert probe_losses(features, labels, head).mean() > 0.69

    def test_features_that_tell_the_labels_apart_lower_the_loss(self) -> None:
        labels = torch.arange(40) % 2
        head = torch.nn.Linear(2, 2)
        assert probe_losses(torch.eye(2)[labels], labels, head).mean() < 0.1

    def test_probe_is_pulled_to_the_head_of_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        features, labels, head = torch.randn(40, 3), torch.arange(40) % 2, torch.nn.Linear(3, 2)
        own = torch.nn.functional.cross_entropy(head(features), labels, reduction="none").detach()
        monkeypatch.setattr("gpta_local.downstream.probe.PROBE_L2", 1e5)
        torch.testing.assert_close(probe_losses(features, labels, head), own, atol=1e-3, rtol=0)

    def test_head_of_the_model_is_left_as_it_was(self) -> None:
        head = torch.nn.Linear(2, 2)
        before = head.weight.clone()
        probe_losses(torch.eye(2)[torch.arange(8) % 2], torch.arange(8) % 2, head)
        assert torch.equal(head.weight, before)

    def test_class_of_a_single_row_has_a_finite_loss(self) -> None:
        labels = torch.tensor([0, 0, 0, 0, 1])
        assert torch.isfinite(probe_losses(torch.randn(5, 3), labels, torch.nn.Linear(3, 2))).all()


class TestChoiceOfLabelTexts:
    GOOD: ClassVar[dict[str, str]] = {
        "bad": "terrible food and rude waiters",
        "good": "wonderful food and kind waiters",
    }
    BAD: ClassVar[dict[str, str]] = {"bad": "wonderful food and kind waiters", "good": "terrible food and rude waiters"}

    NAMES: ClassVar[dict[str, str]] = {"bad": "bad", "good": "good"}

    def test_texts_that_fit_the_rows_join_names_that_say_nothing(self, tmp_path: Path) -> None:
        rows = [row | {"label": {"bad": "a", "good": "b"}[row["label"]]} for row in sentiment_rows()]
        task = ClassificationTask(config_of(tmp_path, rows, {}))
        fitting, wrong = ({"a": texts["bad"], "b": texts["good"]} for texts in (self.GOOD, self.BAD))
        chosen, _ = task.choose_label_texts([wrong, fitting], 64)
        assert chosen == [{"a": "a", "b": "b"}, fitting]

    def test_names_alone_start_the_head_without_an_assistant(self, sentence: Path, tmp_path: Path) -> None:
        changes = {"downstream": {"backbone": str(sentence)}}
        task = ClassificationTask(config_of(tmp_path, sentiment_rows(), changes))
        assert task.choose_label_texts([], 64) == ([self.NAMES], [])

    def test_meanings_of_the_card_are_texts_of_its_own(self, sentence: Path, tmp_path: Path) -> None:
        changes = {
            "downstream": {"backbone": str(sentence)},
            "card": {"labels": {"bad": "the guest complains", "good": ""}},
        }
        task = ClassificationTask(config_of(tmp_path, sentiment_rows(), changes))
        assert task.own_label_texts() == [self.NAMES, {"bad": "the guest complains", "good": "good"}]

    def test_texts_that_do_not_fit_stay_out_and_every_set_comes_back_with_its_loss(self, tmp_path: Path) -> None:
        task = ClassificationTask(config_of(tmp_path, sentiment_rows(), {}))
        assert task.choose_label_texts([self.BAD], 64)[0] == [self.NAMES]
        _, scored = task.choose_label_texts([self.BAD, self.GOOD], 64)
        assert [entry.texts for entry in scored] == [self.GOOD, self.BAD]
        assert 0 < scored[0].loss < scored[1].loss
        assert scored[0].loss == task.choose_label_texts([self.GOOD], 64)[1][0].loss, "each set is scored alone"


class TestEvaluation:
    def test_figures_are_those_of_the_logits(self, bert: Path, tmp_path: Path) -> None:
        task = ClassificationTask(config_of(tmp_path, sentiment_rows(), {"downstream": {"backbone": str(bert)}}))
        model, rows = task.build_plain(), task.splits().train
        evaluation = task.evaluate(model, rows, "Review:")
        logits = model.predict_logits(encoded(model, [row.texts for row in rows], "Review:"))
        targets = torch.tensor([row.label for row in rows])
        assert evaluation.summary["accuracy"] == (logits.argmax(-1) == targets).double().mean().item()
        assert evaluation.scores.shape == evaluation.losses.shape == (24,)
        expected = torch.nn.functional.cross_entropy(logits, targets).item()
        assert evaluation.summary["loss"] == pytest.approx(expected, abs=1e-6)


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def refusal(folder: Path, tmp_path: Path) -> str:
    """What is said when a run with this backbone is made."""
    config = config_of(tmp_path, sentiment_rows(), {"downstream": {"backbone": str(folder)}})
    with pytest.raises(ModelError) as caught:
        ClassificationTask(config).build_plain()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


class TestUnsupportedBackbones:
    @pytest.mark.parametrize("name", ["/no/such/folder", "bert-base-uncased"])
    def test_missing_folder_and_name_of_a_hub_model(self, tmp_path: Path, name: str) -> None:
        assert "no such model folder. Models are read from disk, never fetched" in refusal(Path(name), tmp_path)

    def test_folder_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "not a model folder: it has no config.json" in refusal(tmp_path / "empty", tmp_path)

    def test_weights_that_are_no_safetensors(self, bert: Path, tmp_path: Path) -> None:
        folder = copy(bert, tmp_path / "pickled")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "other formats can run code and are not read" in refusal(folder, tmp_path)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("model.safetensors", b""),
            ("model.safetensors", b"\xff" * 64),
            ("config.json", b"{"),
            ("config.json", b"[]"),
            ("config.json", b'{"model_type": "no-such-type"}'),
        ],
    )
    def test_broken_weights_and_configuration(self, bert: Path, tmp_path: Path, file: str, content: bytes) -> None:
        folder = copy(bert, tmp_path / "broken")
        (folder / file).write_bytes(content)
        assert "the model cannot be loaded" in refusal(folder, tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '["x"]', "[{}]"])
    def test_broken_module_list(self, bert: Path, tmp_path: Path, content: str) -> None:
        folder = copy(bert, tmp_path / "broken")
        (folder / "modules.json").write_text(content, encoding="utf-8")
        refusal(folder, tmp_path)

    def test_pooling_other_than_the_mean(self, bert: Path, tmp_path: Path) -> None:
        folder = copy(bert, tmp_path / "cls")
        kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
        modules = [{"idx": i, "name": str(i), "path": "", "type": kind} for i, kind in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
        assert "Use a backbone with mean pooling" in refusal(folder, tmp_path)

    def test_folder_without_a_tokenizer(self, bert: Path, tmp_path: Path) -> None:
        folder = copy(bert, tmp_path / "silent")
        for file in folder.glob("tokenizer*"):
            file.unlink()
        assert "tokenizer" in refusal(folder, tmp_path)

    def test_code_of_a_model_folder_is_never_run(self, bert: Path, tmp_path: Path) -> None:
        folder, mark = copy(bert, tmp_path / "model"), tmp_path / "ran"
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nclass M: pass\n")
        refusal(folder, tmp_path)
        assert not mark.exists()

    def test_prefix_longer_than_the_room(self, bert: Path, tmp_path: Path) -> None:
        changes = {"downstream": {"backbone": str(bert), "max_length": 16}, "search": {"max_prefix_tokens": 12}}
        with pytest.raises(ModelError, match="inputs of 16 tokens have room for 5"):
            ClassificationTask(config_of(tmp_path, sentiment_rows(), changes)).build_plain()


class TestDemoBackbone:
    def test_checksum_is_verified(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.system.models.DEMO_SHA256", DEMO_SHA256[::-1])
        with pytest.raises(ModelError, match="SHA-256 differs"):
            backbone_folder("all-MiniLM-L6-v2")

    def test_missing_package_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpta_local.system.models.DEMO_PACKAGE", "no-such-package-of-gpta")
        with pytest.raises(ModelError, match=r"pip install \"gpta-local\[demo\]\""):
            backbone_folder("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> LocalAssistant:
    """A random Llama whose chat template knows no system role."""
    from tiny_models import tiny_llama

    folder = tiny_llama(tmp_path_factory.mktemp("models") / "llama")
    (folder / "chat_template.jinja").write_text(TestLocalAssistant.TEMPLATE)
    return LocalAssistant(str(folder), "cpu")


class TestLocalAssistant:
    """A random model with any chat template: what it says is noise, the form is not."""

    TEMPLATE = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    CARD = DatasetCard("d", "text-classification", "Letters.", (Label("a_b"), Label("c")))

    def test_template_without_a_system_role_is_served(self, assistant: LocalAssistant) -> None:
        assert len(assistant.complete(prefix_request(self.CARD, []), 3, Sampling(max_new_tokens=8))) == 3

    def test_each_label_has_its_line(self, assistant: LocalAssistant) -> None:
        for completion in assistant.complete(label_texts_request(self.CARD), 4, Sampling(max_new_tokens=32)):
            assert [line.partition(":")[0] for line in completion.text.split("\n")] == ["a_b", "c"]

    def test_same_seed_gives_the_same_replies(self, assistant: LocalAssistant) -> None:
        first, second, other = (
            assistant.complete(prefix_request(self.CARD, []), 4, Sampling(max_new_tokens=8, seed=seed))
            for seed in (1, 1, 2)
        )
        assert first == second != other


class TestUnsupportedAssistants:
    def test_model_without_a_chat_template(self, tmp_path: Path) -> None:
        from tiny_models import tiny_llama

        with pytest.raises(ModelError, match="no chat template"):
            LocalAssistant(str(tiny_llama(tmp_path / "llama")), "cpu").check()

    def test_encoder_is_no_assistant(self, bert: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError):
            LocalAssistant(str(bert), "cpu").check()

    def test_folder_is_named_by_its_key(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"^assistant\.model.*no such model folder"):
            assistant_folder(str(tmp_path / "none"))
