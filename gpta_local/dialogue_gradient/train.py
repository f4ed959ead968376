"""Dialogues → one fine-tuning of the assistant → a LoRA adapter in a folder of its own.

Knows TRL, peft and how they read a dialogue. Does not know where dialogues come from, who
serves the adapter, nor whether it is any good: the guard is `trial`'s.

The base model is never changed: an adapter is put on it, trained, written and taken off.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gpta_local.assistant.decoding import fast_attention, shared_beginning
from gpta_local.assistant.local import chat
from gpta_local.config import DialogueGradientConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.errors import GptaError, ModelError, TrainingError
from gpta_local.schema import DialogueGradientStep, RequestKind
from gpta_local.system.files import flush_all
from gpta_local.system.manifests import write_manifest
from gpta_local.system.models import multiplies_in_bf16

METHOD = "imitation-and-contrast"
"""How a step learns (docs/LOG.md)."""
CONTRAST, IMITATED = 3.0, 0.1
"""Of a reply with a rival: the factor on its advantage over the rival, and how much of it is imitated."""
DIALOGUES_FILE = "dialogues.jsonl"
STEP_FILE = "step.json"

TOKENS = 64
"""Of which probabilities are computed together, so that these fit into a processor's cache."""


def train_adapter(
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    config: DialogueGradientConfig,
    folder: Path,
    *,
    seed: int,
    start: Path | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> DialogueGradientStep:
    """Train a new adapter on the base `model` and write it to `folder`, which must not exist.

    The folder also gets `dialogues.jsonl`, what was taught, `step.json`, how, and `SHA256SUMS`, which
    lists all but the dialogues: they may be purged. Global random generators are left as they were.

    Args:
        model: a causal LM of transformers without adapters; its weights are not changed.
        start: an adapter to go on from; None starts a new one of `config.rank`.

    Raises:
        FileExistsError: `folder` is there.
        ModelError: no dialogue fits into the model's context.
        TrainingError: a loss is not a number, nothing of a reply is left to learn from, or a library
            failed; nothing is written.
    """
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.helpers import disable_input_dtype_casting

    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    started = time.monotonic()
    lora = LoraConfig(
        r=config.rank, lora_alpha=2 * config.rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    dialogues = _fitting(dialogues, model, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _own_random_state(seed), _quiet(), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        adapted = PeftModel.from_pretrained(model, start, is_trainable=True) if start else get_peft_model(model, lora)
        try:
            trainer = _trainer(adapted, tokenizer, dialogues, config, scratch, seed)
            trainer.add_callback(_steps_callback(on_step))
            on_cpu = model.device.type == "cpu"
            with fast_attention(model) if on_cpu else contextlib.nullcontext(), disable_input_dtype_casting(adapted):
                trainer.train()
            losses = tuple(float(row["loss"]) for row in trainer.state.log_history if "loss" in row)
            learnt = [weights for weights in adapted.parameters() if weights.requires_grad]
            if not all(map(math.isfinite, losses)) or not all(bool(weights.isfinite().all()) for weights in learnt):
                raise TrainingError(
                    "a loss of the dialogue gradient is not a number", fix="Lower dialogue_gradient.learning_rate"
                )
            made = Path(scratch, folder.name)
            adapted.save_pretrained(str(made), selected_adapters=["default"])
        except (GptaError, OSError):
            raise
        except Exception as exc:  # the libraries raise many kinds, for want of memory among others
            words = (str(exc).splitlines() or [""])[0][:200]
            raise TrainingError(
                f"the dialogue gradient failed ({type(exc).__name__}: {words})",
                fix="If memory ran out, lower dialogue_gradient.batch_size",
            ) from exc
        finally:
            adapted.unload()
            model.__dict__.pop("forward", None)  # TRL's patch
            model.eval()
        seconds = time.monotonic() - started
        _complete(made, dialogues, config, seed, losses, seconds)
        flush_all(made)
        made.replace(folder)  # a folder under its name is whole
    return DialogueGradientStep(folder.name, METHOD, len(dialogues), losses, seconds)


def number_of_steps(config: DialogueGradientConfig, dialogues: int) -> int:
    """Optimiser steps on so many dialogues: one pass, where the configuration does not say."""
    return config.steps or math.ceil(dialogues / config.batch_size)


def taught_replies(adapter: Path) -> list[str]:
    """What an adapter was taught to say; nothing is known of one that was trained elsewhere."""
    path = adapter / DIALOGUES_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["reply"] for line in file]


def taught_kinds(adapter: Path) -> set[RequestKind]:
    """Of the requests whose replies an adapter was taught; all of them for one that was trained elsewhere."""
    path = adapter / STEP_FILE
    return set(json.loads(path.read_text(encoding="utf-8"))["taught"] if path.is_file() else get_args(RequestKind))


def sampling_temperature(adapter: Path | None) -> float:
    """The factor on the assistant's temperature at which an adapter is to be sampled; 1 for the base
    model and for adapters that were trained elsewhere."""
    path = adapter / STEP_FILE if adapter else None
    return float(json.loads(path.read_text(encoding="utf-8"))["temperature"]) if path and path.is_file() else 1.0


def _trainer(
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    config: DialogueGradientConfig,
    scratch: str,
    seed: int,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    trl: Any = importlib.import_module("trl")  # its lazy exports are hidden from type checkers
    on_cpu = model.device.type == "cpu"
    steps = number_of_steps(config, len(dialogues))
    together = 1 if any(dialogue.rival for dialogue in dialogues) else config.batch_size  # these are long
    settings: dict[str, Any] = {
        "output_dir": scratch,
        "use_cpu": on_cpu,
        "bf16": False,  # the libraries' own way makes float32 of all logits at once
        "gradient_checkpointing": not on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "max_steps": steps,
        "per_device_train_batch_size": together,
        "gradient_accumulation_steps": config.batch_size // together,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": steps // 10,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "max_length": None,
        "remove_unused_columns": False,
        "seed": seed,
    }
    answers = [_row(dialogue, tokenizer) for dialogue in dialogues]
    rivals = [_row(replace(dialogue, request=dialogue.rival or dialogue.request), tokenizer) for dialogue in dialogues]
    data = Dataset.from_list(answers + rivals)
    args = trl.SFTConfig(**settings)
    trainer = _weighted(trl.SFTTrainer)(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.train_dataset = _joined(trainer.train_dataset, dialogues)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _joined(data: Any, dialogues: Sequence[Dialogue]) -> Any:
    """Rows with the tokens of a dialogue and those of its rival, if it has one. One without a token to learn from is
    left out: a batch without any would have no loss.

    Args:
        data: tokens of all dialogues, then of all rivals.
    """
    n = len(dialogues)
    rivals = [data[n + i]["input_ids"] if dialogue.rival else [] for i, dialogue in enumerate(dialogues)]
    kept = [number for number, labels in enumerate(data["labels"][:n]) if max(labels) >= 0]
    if not kept:
        raise TrainingError(
            "the chat template leaves nothing of a reply to learn from", fix="Leave out the section dialogue_gradient"
        )
    return data.select(range(n)).add_column("rival", rivals).select(kept)


def _weighted(base: Any) -> Any:
    class WeightedSFTTrainer(base):  # type: ignore[misc]  # trl has no types here
        """The mean over the dialogues of w · −log P(reply | request), logarithms being those of a token of the reply.
        Of one with a rival, which comes alone: w · (−α log P(reply | request) − log σ(β · (log P(reply | request) −
        log P(reply | rival)))): what sets the label of a reply apart.

        Conversations are padded on the left, so that all replies end together and logits are computed
        for the replies alone. What all requests of a batch begin with is read once, unless activations are not kept
        (`gradient_checkpointing`).
        """

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            padding = self.processing_class.pad_token_id

            def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
                rivals = [e["rival"] for e in examples if e["rival"]]  # one of one dialogue, or none
                rows = [*(e["input_ids"] for e in examples), *rivals]
                replies = [sum(label != -100 for label in e["labels"]) for e in examples * (1 + len(rivals))]
                requests = [row[:-said] for row, said in zip(rows, replies, strict=True)]
                shared = 0 if self.args.gradient_checkpointing else shared_beginning(requests)
                ids = _padded([row[shared:] for row in rows], padding)  # (n, t), the rival last
                mask = _padded([[1] * len(row[shared:]) for row in rows], 0)
                given = {"input_ids": ids, "attention_mask": mask, "said": torch.tensor(replies)}
                weights = torch.tensor([example["weight"] for example in examples])  # (b,)
                beginning = torch.tensor([rows[0][:shared]], dtype=torch.long)  # (1, s)
                return given | {"weight": weights, "beginning": beginning}

            self.data_collator = collate

        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
            ids, mask, said, beginning = (inputs[n] for n in ("input_ids", "attention_mask", "said", "beginning"))
            longest = int(said.max())
            shared, read = beginning.shape[1], None
            with torch.autocast(mask.device.type, torch.bfloat16, enabled=multiplies_in_bf16("auto", mask.device)):
                if shared:
                    read = model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
                    read.batch_repeat_interleave(len(mask))
                logits = model(
                    input_ids=ids,
                    attention_mask=torch.cat([mask.new_ones(len(mask), shared), mask], 1),
                    position_ids=shared + (mask.cumsum(1) - 1).clamp(min=0),
                    logits_to_keep=torch.arange(-longest - 1, -1, device=mask.device),
                    past_key_values=read,
                    use_cache=bool(shared),
                ).logits  # (n, longest, v)
            targets = ids[:, -longest:]
            losses = _Losses.apply(logits.flatten(0, 1), targets.flatten())  # type: ignore[no-untyped-call]
            own = torch.arange(longest, 0, -1, device=ids.device) <= said[:, None]
            means = torch.where(own, losses.view_as(targets), 0.0).sum(1) / said  # (n,)
            weight = inputs["weight"]  # (b,)
            of_replies, of_rival = means[: len(weight)], means[len(weight) :]
            if len(of_rival):
                of_replies = IMITATED * of_replies - nn.functional.logsigmoid(CONTRAST * (of_rival - of_replies))
            loss: Tensor = (weight * of_replies).mean()  # over the parts of a batch the base takes the mean
            return loss

    return WeightedSFTTrainer


class _Losses(torch.autograd.Function):
    """Cross entropy of each token, by a few at a time: on a CPU, float32 logits, logarithms and gradients of a whole
    batch would take a third of the time of a step, most of it for fresh memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """
        Args:
            logits: (n, v). targets: (n,).
        """
        gradients, losses = torch.empty_like(logits), []
        parts = (torch.split(x, TOKENS) for x in (logits, targets[:, None], gradients))
        for some, aims, gradient in zip(*parts, strict=True):
            chances = some.softmax(-1, dtype=torch.float32)
            own = chances.gather(1, aims)
            losses.append(-own.clamp(min=1e-38).log()[:, 0])
            gradient.copy_(chances.scatter_(1, aims, own - 1))
        ctx.save_for_backward(gradients)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return gradients.mul_(outer[0][:, None]), None


def _padded(rows: Sequence[list[int]], value: int) -> Tensor:
    """Rows of tokens (b, t), filled up on the left."""
    longest = max(map(len, rows))
    return torch.tensor([[value] * (longest - len(row)) + row for row in rows])


def _row(dialogue: Dialogue, tokenizer: Any) -> dict[str, Any]:
    """A dialogue as TRL wants it."""
    prompt = chat(tokenizer, dialogue.request, "dialogue_gradient")
    reply = [{"role": "assistant", "content": dialogue.reply}]
    return {"prompt": prompt, "completion": reply, "weight": dialogue.weight}


def _fitting(dialogues: Sequence[Dialogue], model: Any, tokenizer: Any) -> list[Dialogue]:
    """Those that fit into the model's context."""
    room = getattr(model.config, "max_position_embeddings", None) or 10**9

    def longest(dialogue: Dialogue) -> int:
        asked = [dialogue.request, *([dialogue.rival] if dialogue.rival else [])]
        return max(_length(tokenizer, _row(replace(dialogue, request=request), tokenizer)) for request in asked)

    fitting = [dialogue for dialogue in dialogues if longest(dialogue) <= room]
    if not fitting:
        raise ModelError(
            f"no dialogue fits into the context of {room} tokens",
            where="dialogue_gradient",
            fix="Shorten card.description, or lower search.history_shown",
        )
    return fitting


def _length(tokenizer: Any, row: dict[str, Any]) -> int:
    """Tokens of the conversation of a row."""
    text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _steps_callback(on_step: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step()

    return Steps()


def _complete(
    folder: Path,
    dialogues: Sequence[Dialogue],
    config: DialogueGradientConfig,
    seed: int,
    losses: Sequence[float],
    seconds: float,
) -> None:
    """Write what was taught and how beside what peft has saved, and the manifest of all but the dialogues."""
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    saved["target_modules"] = sorted(saved["target_modules"])  # a set, in the order of its hashes
    record = {
        "method": METHOD,
        **config.model_dump(mode="json"),
        "optimiser": "AdamW, linear decay",
        "seed": seed,
        "dialogues": len(dialogues),
        "losses": [round(loss, 5) for loss in losses],
        "seconds": round(seconds, 2),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    for name, content in (("adapter_config.json", saved), (STEP_FILE, record)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_manifest(folder)
    with (folder / DIALOGUES_FILE).open("w", encoding="utf-8") as file:
        for dialogue in dialogues:
            row = {
                "messages": [asdict(message) for message in dialogue.request.messages],
                "reply": dialogue.reply,
                "rival": dialogue.rival.messages[-1].content if dialogue.rival else None,
                "weight": round(dialogue.weight, 4),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Trainers seed every global generator; here they do so without a trace."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and notes of the libraries, and with `os.environ` as it was: TRL sets a
    variable that would silence a vLLM server started later."""
    import datasets

    before = dict(os.environ)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
