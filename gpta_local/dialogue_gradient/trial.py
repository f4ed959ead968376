"""The assistant as it learns from its own history: which adapter answers, when a new one is trained,
and the guard that keeps it or rolls it back.

Knows adapters, dialogues and figures of proposals. Does not know rows, prefixes or their scores.

A new adapter is on trial for one round: it gets half of the round's proposals, the adapter before
gets the other half, both are shown the same history, and what they propose runs in the same race. No
proposal is spent on the comparison alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpta_local.assistant import Assistant
from gpta_local.assistant.local import LocalAssistant
from gpta_local.assistant.vllm import VLLMAssistant
from gpta_local.config import AssistantConfig, Config, LocalAssistantConfig, ReplayAssistantConfig
from gpta_local.dialogue_gradient.dialogues import Dialogue
from gpta_local.dialogue_gradient.train import taught_kinds, train_adapter
from gpta_local.dialogue_gradient.worker import train_in_process_of_its_own
from gpta_local.errors import AdapterRefused, ConfigError, EndpointError
from gpta_local.schema import DialogueGradientStep, ProposalFigures, RequestKind, StepVerdict
from gpta_local.system.library import assistant_folder
from gpta_local.system.manifests import verify_manifest
from gpta_local.system.models import checked_folder

COLLAPSE = 1 / 3
"""A new adapter with less than this share of the fresh proposals of the one before has collapsed."""


class AdapterTrials:
    """`folder` is where each step makes a folder for its adapter: 001, 002, …; a run sets it.

    Raises:
        ConfigError: the assistant cannot be trained: a replay, or an endpoint whose weights are not
            on this machine.
        ModelError, AdapterRefused: the adapter that the configuration names cannot be used.
    """

    def __init__(self, assistant: Assistant, config: Config) -> None:
        self._assistant, self._config = assistant, config.dialogue_gradient
        self._seed = config.seed
        self._weights = weights_to_train(assistant, config.assistant) if self._config else None
        self._given = Path(adapter) if (adapter := getattr(config.assistant, "adapter", None)) else None
        self.folder = Path("adapters")
        self.trusted = self.start("prefix")
        """The adapter that answers; None is the base model."""
        self.trial: Path | None = None
        """A newer one, not yet trusted."""
        assistant.use_adapter(self._given)  # it is said at once if that cannot be used
        if self.trusted != self._given:
            assistant.use_adapter(self.trusted)

    def start(self, kind: RequestKind) -> Path | None:
        """The adapter that answers requests of a kind at first, and that steps go on from: that of the configuration,
        if it was taught replies of this kind. Others it would spoil: one that writes example texts makes prefixes too
        long (docs/LOG.md)."""
        return self._given if self._given and kind in taught_kinds(self._given) else None

    def resume(self, steps: Sequence[tuple[int, DialogueGradientStep, str]]) -> None:
        """Go on after the steps of a run that was stopped, as the history has them. Adapters that are not among
        them, finished or not, are deleted: they will be trained again."""
        known = {self.folder / step.adapter: verdict for _, step, verdict in steps}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path not in known:
                shutil.rmtree(path)
        for adapter, verdict in known.items():
            if verdict == "kept":
                self.trusted = adapter
            elif verdict == "on trial":
                self.trial = adapter
        with suppress(AdapterRefused):  # after a new start of the server; the next request tells
            self._assistant.use_adapter(self.trusted)

    def shares(self, proposals: int) -> list[tuple[Path | None, int]]:
        """How many proposals to ask of which adapter."""
        if self.trial is None:
            return [(self.trusted, proposals)]
        half = proposals // 2
        return [(self.trusted, proposals - half), (self.trial, half)]

    def judge(self, figures: Sequence[ProposalFigures]) -> StepVerdict:
        """Keep the adapter on trial, or go back to the one before: where its hit rate is lower, where
        hit rates are equal and its mean gain is lower, or where too few of its proposals are new.

        Args:
            figures: of the trusted adapter and of the one on trial, in the same round.
        """
        assert self.trial is not None
        before, after = figures
        collapsed = after.fresh * before.asked < COLLAPSE * before.fresh * after.asked
        keep = not collapsed and _quality(after) >= _quality(before)
        loser = self.trusted if keep else self.trial
        self.trusted, self.trial = self.trial if keep else self.trusted, None
        self._assistant.use_adapter(self.trusted)
        if loser is not None:
            with suppress(EndpointError):  # only tidying up; the next request tells of a server that is gone
                self._assistant.drop_adapter(loser)
        return "kept" if keep else "rolled back"

    def go_back_to_base(self) -> None:
        """Answer with the base model from now on; no adapter is trusted or on trial."""
        self.trusted = self.trial = None
        self._assistant.use_adapter(None)

    def step(
        self, dialogues: Sequence[Dialogue], kind: RequestKind, on_step: Callable[[], None]
    ) -> tuple[DialogueGradientStep, str]:
        """Train a new adapter and put it on trial. Returns the step and, where the adapter can only be
        saved, why. The number of the step names the folder and varies the seed.

        Args:
            kind: of the requests that it is on trial with.
        """
        assert self._config is not None
        number = 1 + sum(path.is_dir() for path in self.folder.glob("[0-9]*"))
        folder = self.folder / f"{number:03d}"
        settings: dict[str, Any] = {"seed": self._seed + number, "start": self.start(kind), "on_step": on_step}
        if self._weights is None:
            assert isinstance(self._assistant, LocalAssistant)
            step = train_adapter(*self._assistant.base(), dialogues, self._config, folder, **settings)
            self._assistant.use_adapter(self.trusted)
        else:
            step = train_in_process_of_its_own(self._weights, dialogues, self._config, folder, **settings)
        try:
            self._assistant.use_adapter(folder)
        except (AdapterRefused, EndpointError) as exc:
            return step, str(exc)
        self.trial = folder
        return step, ""


def weights_to_train(assistant: Assistant, config: AssistantConfig) -> Path | None:
    """The folder of the base model that a process of its own trains; None where the model itself is in this one and can
    be trained here. Where several GPUs are visible TRL would refuse: the other process sees one.

    Raises:
        ConfigError: the assistant cannot be trained here.
    """
    if isinstance(config, LocalAssistantConfig):
        import torch

        several = config.device != "cpu" and torch.cuda.device_count() > 1
        return assistant_folder(config.model) if several else None
    if isinstance(config, ReplayAssistantConfig):
        raise ConfigError(
            "a replay cannot be taught",
            where="dialogue_gradient",
            fix="Leave the section out, or use another assistant",
        )
    if config.weights is not None:
        return checked_folder(config.weights, "assistant.weights")
    if isinstance(assistant, VLLMAssistant) and assistant.weights is not None:
        verify_manifest(assistant.weights)
        return assistant.weights
    raise ConfigError(
        "the weights of the served model are not known, so no adapter can be trained on them",
        where="dialogue_gradient",
        fix="Set assistant.weights to their folder on this machine, or leave the section out",
    )


def _quality(figures: ProposalFigures) -> tuple[float, float]:
    return figures.hit_rate, -math.inf if figures.mean_gain is None else figures.mean_gain
