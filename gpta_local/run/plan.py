"""What a run is before it begins: a configuration, a task with its rows, the card, and what follows from them.

Knows what will be trained and measured; not where what is found is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpta_local.assistant.prompts import (
    TEXTS_OF_A_REPLY,
    UnusableReply,
    example_texts_request,
    label_texts_request,
    parts_of,
    phrases_that_fit,
    prefix_request,
    reply_room,
)
from gpta_local.config import Config, ReplayAssistantConfig
from gpta_local.data.examples import Example
from gpta_local.data.splits import Splits
from gpta_local.downstream.model import DownstreamModel
from gpta_local.downstream.team import Team
from gpta_local.downstream.training import Training, total_steps
from gpta_local.errors import ConfigError
from gpta_local.knowledge import prefixes
from gpta_local.knowledge.label_texts import Leak
from gpta_local.schema import Ask, DatasetCard, ExampleText, Regime, Request, Sampling, ScoredPrefix
from gpta_local.system.catalogue import known_model
from gpta_local.tasks.base import Task

EXAMPLE_TEXTS, OF_ALL_LABELS = 32, 640
"""Of each label: with one plain request, four replies of eight. Of more than twenty labels fewer, down to one reply
each, or the asking would take most of an hour on two cores."""
WATCHED = 32
"""Rows on which the course of a training is watched: few, as it is only shown."""
WITH_TEXTS = 2
"""Times the steps of a training with example texts among the rows: there is as much again to learn (docs/LOG.md)."""


THOUSANDS_OF_ROWS = 2000
"""From so many training rows on, shares of them tell first whether label texts are worth anything."""
SHARES = (16, 8)
"""A sixteenth of the rows, then an eighth: two trainings on each take 3/8 of the time of one on all rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    config: Config
    task: Task
    splits: Splits
    card: DatasetCard
    team: Team | None = None
    """The processes of a launch; they share the trainings on many rows."""
    all_controls: bool = False
    """Search and train every control in full however many rows there are."""

    @property
    def regime(self) -> Regime:
        auto: Regime = "online" if self.splits.many else "low-resource"
        return auto if self.config.search.regime == "auto" else self.config.search.regime

    @property
    def online(self) -> bool:
        return self.regime == "online"

    @property
    def steps(self) -> int:
        """Of a fine-tuning that starts from label texts, where there are any."""
        label_texts = self.task.uses_label_texts and self._label_texts_go_along
        return total_steps(self.config.training, len(self.splits.train), label_texts=label_texts)

    @property
    def _label_texts_go_along(self) -> bool:
        return self.config.training.label_text_loss and not self.online

    def training(
        self,
        model: DownstreamModel,
        times: int = 1,
        texts: Sequence[ExampleText] = (),
        watch: Sequence[Example] = (),
        part: int = 1,
    ) -> Training:
        """A model's fine-tuning on the training rows as the configuration says, or with so many times the steps; with
        example texts among the rows it takes twice as many.

        Args:
            watch: rows on which its course is shown.
            part: 16 for a sixteenth of the rows, the same each time, and of the steps.
        """
        settings, rows, label_texts = self.config.training, self.splits.train, self._label_texts_go_along
        if part > 1:
            numbers = self.task.scoring_rows(rows, self.rows_of(part), self.config.seed)
            rows = [rows[number] for number in numbers]
            settings = settings.model_copy(update={"steps": settings.steps and max(1, settings.steps // part)})
        if texts:
            settings = settings.model_copy(update={"steps": WITH_TEXTS * self.steps})
            rows = self.task.mixed(rows, texts)
        return Training(
            model,
            rows,
            settings,
            seed=self.config.seed,
            label_texts=label_texts,
            times=times,
            watch=watch,
            team=self.team if self.online else None,
            part=part,
        )

    @property
    def searches(self) -> bool:
        """Whether prefixes are searched, and every control is trained in full. With thousands of rows that must be
        asked for: otherwise one model alone is trained on all of them."""
        search, more = self.config.search, self.config.dialogue_gradient is not None or self.all_controls
        as_usual = search.regime == "auto" and not search.own_prefixes and not more
        enough = len(self.splits.train) >= THOUSANDS_OF_ROWS
        compared = self.trains_plainly or not self.task.uses_label_texts
        return not (enough and as_usual and self.online and compared)

    @property
    def shares(self) -> tuple[int, ...]:
        """The parts of the rows on which plain fine-tuning and the start from label texts are compared, instead of a
        search. None of pairs of texts, which no label texts can start."""
        return () if self.searches or not self.task.uses_label_texts else SHARES

    def rows_of(self, part: int) -> int:
        return len(self.splits.train) // part

    @property
    def watched(self) -> Sequence[Example]:
        """Some of the rows that the run is measured on, evenly spread over them."""
        rows = self.splits.test or self.splits.validation
        return rows[:: -(-len(rows) // WATCHED)] if rows else ()

    @property
    def takes_example_texts(self) -> bool:
        """There are none of pairs of texts, and none where there are many rows: they would know more."""
        return self.task.uses_label_texts and not self.online

    @property
    def own_example_texts(self) -> list[ExampleText]:
        """Those of the user, in the order of the labels."""
        own = self.config.knowledge.own_example_texts if self.takes_example_texts else {}
        return [ExampleText(name, text, own=True) for name in self.card.label_names for text in own.get(name, [])]

    @property
    def trains_with_texts(self) -> bool:
        return self.example_texts > 0 or bool(self.own_example_texts)

    @property
    def example_texts(self) -> int:
        """How many are asked for, of each label."""
        wanted, assistant = self.config.knowledge.example_texts, self.config.assistant
        if not self.takes_example_texts:
            return 0
        if wanted is None:
            known = None if isinstance(assistant, ReplayAssistantConfig) else known_model(assistant.model)
            in_vain = known and known.example_texts_help is False and not getattr(assistant, "adapter", None)
            enough = min(EXAMPLE_TEXTS, max(TEXTS_OF_A_REPLY, OF_ALL_LABELS // len(self.card.labels)))
            return 0 if in_vain else enough
        return wanted

    @property
    def text_steps(self) -> int:
        """Steps of the dialogue gradient that teach example texts."""
        config = self.config.dialogue_gradient
        return config.text_steps if config and "example-texts" in config.taught and self.example_texts else 0

    @property
    def measured(self) -> bool:
        """Whether there are rows besides those of the training."""
        return bool(self.splits.validation or self.splits.test)

    @property
    def cross_validates(self) -> bool:
        """Whether the training rows are measured in parts, since there are no others."""
        return bool(self.splits.train) and not self.measured and self.config.finish.folds > 0

    @property
    def trains_plainly(self) -> bool:
        """Whether there is a training with a random head besides: where all heads are random it is the same."""
        return self.measured and self.compares_with_plain

    @property
    def compares_with_plain(self) -> bool:
        wanted = self.config.finish.plain_control and bool(self.splits.train)
        return wanted and self.task.uses_label_texts

    @property
    def compares_with_card(self) -> bool:
        """Whether what the card's own label texts are worth by themselves is shown."""
        return self.measured and self.config.finish.card_control and self.task.uses_label_texts

    @property
    def judges_label_texts(self) -> bool:
        """Whether validation rows decide on those that the assistant wrote. Online they are judged as a whole."""
        asked = self.task.uses_label_texts and self.config.search.label_text_samples > 0
        return asked and bool(self.splits.validation) and not self.online

    @property
    def trains_from_card(self) -> bool:
        """Whether there is a training from the card's own label texts alone, where others have joined them."""
        return self.judges_label_texts or self.compares_with_card

    @property
    def most_templates(self) -> int:
        """How many prefixes may go before the label texts. Online θ has left its head's start behind when they are
        known."""
        searched = self.config.search.rounds > 0 and not self.online
        return self.config.finish.templates if searched and self.task.uses_label_texts else 0

    @property
    def first_heat(self) -> int:
        """Scoring rows in the first heat of a race."""
        return max(prefixes.FIRST_HEAT, 4 * len(self.card.labels))

    def room(self, weights: int) -> int:
        """Bytes of weights that a run has on the disk before its end, of a model of so many."""
        if not self.searches:
            return (2 + 2 * len(self.shares)) * weights
        few = 1 + 2 * self.trains_with_texts + (self.text_steps > 0) + self.config.finish.finalists
        contestants = 2 + self.trains_from_card + (1 if self.online else few)
        return (1 + contestants) * weights

    def scoring_rows(self, number: int) -> list[int]:
        """Those of a round: the same in all rounds unless θ moves."""
        seed = self.config.seed + (number if self.online else 0)
        return self.task.scoring_rows(self.splits.train, self.config.search.scoring_rows, seed)

    def finalists(self, scored: Sequence[ScoredPrefix]) -> list[str]:
        """The prefixes with the best lower bounds above 0, of those that were measured on the most rows. Where
        validation rows will tell them apart, one standard error is enough to be among them; otherwise the best must be
        clear by itself.

        Args:
            scored: prefixes whose gains compare.
        """
        margin = 1.0 if self.splits.validation else prefixes.margin(len(scored))
        size = self.config.finish.finalists if self.splits.validation else 1
        ranked = prefixes.ranked(scored, margin)
        return [s.text for s in ranked[:size] if s.bound(margin) > 0]

    def prefix_reader(self, model: DownstreamModel, leak: Leak) -> Callable[[str], list[str]]:
        """What reads a reply into the prefixes that this card and model can have.

        Args:
            leak: what it finds something in cannot be used.
        """

        def tokens(text: str) -> int:
            return len(model.tokenizer.prefix_ids(text))

        return prefixes.PrefixReader(self.card, tokens, self.config.search.max_prefix_tokens, leak).read

    def check_own_texts(self) -> str:
        """A word on `knowledge.own_example_texts` where they are not used; else "".

        Raises:
            ConfigError: they are for a label that there is not.
        """
        own = self.config.knowledge.own_example_texts
        for label in own:
            if label not in self.card.label_names:
                fix = f"The labels are {', '.join(self.card.label_names[:20])}"
                raise ConfigError(f"{label!r} is no label", where="knowledge.own_example_texts", fix=fix)
        if own and not self.takes_example_texts:
            return "knowledge.own_example_texts are not used: they are for single texts and fewer than 500 rows"
        return ""

    def check_own_prefixes(self, model: DownstreamModel, leak: Leak) -> None:
        """
        Raises:
            ConfigError: one of `search.own_prefixes` cannot be used.
        """
        read = self.prefix_reader(model, leak)
        for number, text in enumerate(self.config.search.own_prefixes, start=1):
            try:
                usable = read(text) == [text]
            except UnusableReply as exc:
                raise ConfigError(f"the prefix cannot be used: {exc}", where=f"search.own_prefixes, {number}") from exc
            if not usable:
                fix = "Write it without quotes, list marks and spaces around it"
                raise ConfigError("the prefix is not plain text", where=f"search.own_prefixes, {number}", fix=fix)

    @property
    def label_text_parts(self) -> list[DatasetCard]:
        """The card in parts of whose labels a reply with a phrase for each has room."""
        return parts_of(self.card, phrases_that_fit(self.config.assistant.max_new_tokens))

    @property
    def label_text_samples(self) -> int:
        """Replies that are asked for, for each of those parts."""
        wanted = self.config.search.label_text_samples if self.task.uses_label_texts else 0
        calls = self.config.budget.calls
        return wanted if calls is None else min(wanted, calls // len(self.label_text_parts))

    def first_ask(self) -> Ask:
        """What the assistant is asked first: for label texts, or for prefixes without a history; without labelled rows
        for example texts."""
        if n := self.label_text_samples:
            request, number = label_texts_request(self.label_text_parts[0]), 0
        elif not self.splits.train and self.example_texts:
            request, number, n = example_texts_request(parts_of(self.card)[0], self.card.labels[0]), 0, 1
        else:
            n, budget = self.config.search.proposals, self.config.budget
            request, number = prefix_request(self.card, []), 1
            n = min(n, *(limit or n for limit in (budget.calls, budget.trials)))
        return Ask(request, n, self.sampling(number, request))

    def sampling(self, round_number: int, request: Request) -> Sampling:
        """How a request is drawn. What is asked before the first round depends on the card alone, and its seed too: the
        same card is answered alike whatever the rows are."""
        assistant = self.config.assistant
        room = assistant.max_new_tokens or reply_room(request)
        seed = self.config.seed * 1000 + round_number if round_number else 0
        return Sampling(assistant.temperature, assistant.top_p, room, seed)
