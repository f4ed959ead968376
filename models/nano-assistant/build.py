"""Builds the embedded assistant from the corpus files: `python models/nano-assistant/build.py`.

Knows the stages and their order: corpus → tokenizer → model → training → export. Does not know how any of
them works. Needs this repository's package, its base requirements and the demo extra (for a word list).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import corpus
import loop
import start
import tokens
import torch
from generator import Generator
from scenes import SceneMaker
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gpta_local.assistant.prompts import label_texts_request, prefix_request
from gpta_local.schema import DatasetCard, Label
from gpta_local.system.manifests import write_manifest

HERE = Path(__file__).parent
VOCABULARY = 6144
LONGEST = 900  # tokens of a training sequence with all its replies
USUAL_LONGEST = 512  # nine examples in ten are shorter
SHARPNESS = 1 / 0.95  # the exported model at temperature 1 samples as the trained one at 0.95
PROMPT_SHARE = 0.5  # share of the tokens of description and labels that are predicted in training


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training, with an optimiser and a mixture of its own."""

    plan: loop.Plan
    scenes: tuple[float, float, float, float, float]  # weights of hand, substituted, composed, random, opinion
    first_drills: float  # share of drills at the start
    last_drills: float  # share from `drill_tokens` on; it falls in a straight line
    drill_tokens: int


COPYING_SCENES = (0.10, 0.32, 0.26, 0.24, 0.08)
STAGES = (
    Stage(
        loop.Plan(tokens=7_200_000, learning_rate=2e-3, last_learning_rate=8e-4),
        (0.22, 0.28, 0.22, 0.18, 0.10),
        0.4,
        0.1,
        2_000_000,
    ),
    # the wording is known by now: more words that can only be copied, and a rate that falls to the end, three times
    Stage(
        loop.Plan(tokens=4_400_000, learning_rate=1.2e-3, last_learning_rate=1e-4), COPYING_SCENES, 0.3, 0.15, 2_500_000
    ),
    Stage(
        loop.Plan(tokens=4_200_000, learning_rate=1.2e-3, last_learning_rate=2e-5), COPYING_SCENES, 0.3, 0.2, 2_500_000
    ),
    Stage(
        loop.Plan(tokens=9_600_000, learning_rate=1.2e-3, last_learning_rate=4e-4), COPYING_SCENES, 0.2, 0.1, 3_000_000
    ),
    Stage(loop.Plan(tokens=2_800_000, learning_rate=4e-4, last_learning_rate=1e-5), COPYING_SCENES, 0.1, 0.1, 1),
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    scenes = SceneMaker(corpus.training_cards(), corpus.load_frames(), corpus.open_words())
    generator = Generator(scenes)
    tokenizer = make_tokenizer(generator, arguments.seed)
    model = start.make_model(VOCABULARY, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if arguments.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.start)
        model.load_state_dict(LlamaForCausalLM.from_pretrained(arguments.start, dtype=torch.float32).state_dict())
        with torch.no_grad():
            model.model.norm.weight /= SHARPNESS
    print(f"{len(scenes.cards)} cards, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    if arguments.compile:
        model.model.compile(dynamic=True)
    log = arguments.output / "training_log.jsonl"
    if arguments.stage == 1:
        log.unlink(missing_ok=True)
    for number, stage in list(enumerate(STAGES, start=1))[arguments.stage - 1 :]:
        stream = Stream(generator, tokenizer, random.Random(f"{arguments.seed} {number}"), stage)
        loop.train(
            model,
            loop.batches(stream.draw, stage.plan, stream.rng.shuffle),
            heldout_batches(tokenizer),
            stage.plan,
            log=log,
            on_checkpoint=lambda: export(model, tokenizer, arguments.output),
        )


def make_tokenizer(generator: Generator, seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on examples; words of the open list are added once so that rare ones split evenly."""
    rng = random.Random(f"tokenizer {seed}")
    texts: list[str] = []
    for _ in range(8000):
        example = generator.example(rng, STAGES[0].scenes)
        texts.append(example.request.messages[1].content)
        texts += example.replies
    for word in generator.scenes.words:
        texts.append(f"{corpus.capitalised(word)} {word} {word} {corpus.capitalised(word)}")
    return tokens.train_tokenizer(texts, VOCABULARY)


@dataclass(slots=True)
class Stream:
    """Training sequences without end. It starts with many drills; soon they are rare."""

    generator: Generator
    tokenizer: PreTrainedTokenizerFast
    rng: random.Random
    stage: Stage
    tokens: int = 0

    def draw(self) -> tokens.TrainingSequence:
        """The next example that is not too long."""
        stage = self.stage
        done = min(1.0, self.tokens / stage.drill_tokens)
        share = stage.first_drills + (stage.last_drills - stage.first_drills) * done
        while True:
            drills = self.rng.random() < share
            longest = LONGEST if self.rng.random() < 0.1 else USUAL_LONGEST
            sequence = tokens.encode(
                self.generator.drill(self.rng) if drills else self.generator.example(self.rng, stage.scenes),
                self.tokenizer.backend_tokenizer,
                self.rng,
                longest=longest,
                prompt_share=PROMPT_SHARE,
            )
            if sequence is not None:
                self.tokens += len(sequence.ids)
                return sequence


def heldout_batches(tokenizer: PreTrainedTokenizerFast) -> list[loop.Batch]:
    """Requests about the held-out cards with the hand-written replies; never trained on."""
    rng, sequences = random.Random(0), []
    for card in corpus.heldout_cards():
        labels = tuple(Label(label.name) for label in card.labels)
        shown = DatasetCard(card.name, card.task, card.descriptions[0], labels, 500)
        texts = [
            "\n".join(f"{label.name}: {text}" for label, text in zip(card.labels, row, strict=True))
            for row in ([la.gloss for la in card.labels], [la.texts[0] for la in card.labels])
        ]
        for request, replies in ((label_texts_request(shown), texts), (prefix_request(shown, ()), card.prefixes)):
            example = corpus.Example(request, tuple(replies), "heldout")
            sequence = tokens.encode(example, tokenizer.backend_tokenizer, rng, longest=LONGEST, prompt_share=0.0)
            if sequence is not None:
                sequences.append(sequence)
    sequences.sort(key=lambda sequence: len(sequence.ids))
    return [loop.collate(sequences[i : i + 12]) for i in range(0, len(sequences), 12)]


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights, tokenizer and generation settings; each file is replaced at once."""
    output.mkdir(parents=True, exist_ok=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.model.norm.weight *= SHARPNESS
    copy = copy.to(torch.bfloat16)
    copy.config.dtype = torch.bfloat16
    copy.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    with tempfile.TemporaryDirectory(dir=output) as folder:
        copy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
        # the class name that transformers 5 writes by itself is unknown to version 4 and to older servers
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_manifest(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            path.replace(output / path.name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stage", type=int, default=1, help="stage to begin with")
    parser.add_argument("--start", type=Path, help="folder of an exported assistant to go on from")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the finished assistant")
    return parser.parse_args()


if __name__ == "__main__":
    main()
