"""The arm of prompt tuning (Lester et al. 2021) by peft: trained vectors before the input of a frozen backbone, and
a head on the mean over all positions. Knows modules; not who compares it with what.
"""

from __future__ import annotations

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from gpta_local.config import TrainingConfig
from gpta_local.downstream.model import DownstreamModel, SentenceClassifier
from gpta_local.downstream.tokenization import PrefixTokenizer
from gpta_local.downstream.training import total_steps
from gpta_local.errors import ModelError

LEARNING_RATE = 1e-2
STEPS = 200
"""A frozen backbone learns slowly: five times the steps of a small fine-tuning."""


class SoftPromptClassifier(SentenceClassifier):
    """A sentence-transformers backbone, frozen, with `tokens` trained vectors before its input."""

    def __init__(self, model: DownstreamModel, tokens: int, seed: int) -> None:
        nn.Module.__init__(self)
        if not isinstance(model, SentenceClassifier):
            raise ModelError("the arm 'soft_prompt' needs a sentence-transformers folder", where="downstream.backbone")
        config = PromptTuningConfig(
            task_type="FEATURE_EXTRACTION", num_virtual_tokens=tokens, prompt_tuning_init="SAMPLE_VOCAB"
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # which words of the vocabulary the vectors start from
            self.network = get_peft_model(model.network, config)
        self.head = model.head
        self.tokenizer = PrefixTokenizer(model.tokenizer.tokenizer, model.tokenizer.max_length - tokens)
        self._tokens = tokens
        self.to(model.device)

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"]  # (b, s); the segment ids are left out: the vectors would have none
        hidden = self.network(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state  # (b, t + s, d)
        weight = torch.cat([mask.new_ones(len(mask), self._tokens), mask], dim=1).unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def input_embeddings(self) -> nn.Module:
        """What is frozen: the whole backbone."""
        backbone: nn.Module = self.network.base_model  # type: ignore[assignment]  # a peft model
        return backbone


def settings(config: TrainingConfig, rows: int) -> TrainingConfig:
    """The training of the prompt on so many rows: its vectors take the place of the encoder's weights. They do not
    decay, which `Training` is told apart."""
    steps = max(STEPS, total_steps(config, rows))
    return config.model_copy(update={"encoder_learning_rate": LEARNING_RATE, "steps": steps})
