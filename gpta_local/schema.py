"""The records that travel between modules, all frozen. Knows no file format, model or library.

A `DatasetCard` is all that the assistant may know of the data: it has no field that could hold a
row. What goes to an assistant is a `Request`, what comes back is a `Completion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RequestKind = Literal["label-texts", "example-texts", "prefix"]
Regime = Literal["low-resource", "online"]


@dataclass(frozen=True, slots=True)
class Label:
    """A class of the data: its `name` as it stands in the files and an optional explanation."""

    name: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """What the assistant may know of a data set: words written by a person, and the labels' names. It has no count of
    rows: which rows there are changes nothing that the assistant says."""

    name: str
    task: str
    description: str
    labels: tuple[Label, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to the assistant; `kind` says how the reply will be read.

    `labels`: the labels of which each must have a line in the reply, in this order. Assistants that
    can hold a model to a form do so (`local`, `vllm`); others leave it to the words of the request.
    """

    kind: RequestKind
    messages: tuple[Message, ...]
    labels: tuple[Label, ...] = ()

    @property
    def line_starts(self) -> tuple[str, ...]:
        return tuple(f"{label.name}:" for label in self.labels)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Names as in transformers and vLLM."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, how many completions of it are wanted, and how they are drawn."""

    request: Request
    n: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """The raw reply of an assistant. Token counts are None where the server does not say them.

    `cached`: it was given to an earlier asking, and kept. `endpoint`: the address that gave it, of an assistant with
    several.
    """

    text: str
    model: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = field(default=False, compare=False)
    endpoint: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """What was sent to an assistant, and came back, to see whether it answers."""

    ask: Ask
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class ExampleText:
    """A text that the assistant, or the user (`own`), made up for a label, and what a model of the real rows says of
    it.

    `probability`: of the label that was asked for. `kept`: whether that is the most probable one. Both are None until
    the text is judged.
    """

    label: str
    text: str
    probability: float | None = None
    kept: bool | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class ScoredPrefix:
    """A prefix with its gain.

    `gain` is L(θ, no prefix) − L(θ, prefix), the mean over `rows` scoring rows of the paired
    difference of cross-entropies, in nats: higher is better. `standard_error` is that of the
    paired mean. `loss` is L(θ, prefix). The empty text has gain 0 by definition.
    """

    text: str
    gain: float
    standard_error: float
    loss: float
    rows: int

    def bound(self, margin: float = 1.0) -> float:
        """The gain less so many standard errors: what a lucky candidate has to clear."""
        return self.gain - margin * self.standard_error if self.standard_error else self.gain


@dataclass(frozen=True, slots=True)
class Share:
    """Two models trained on so many of the rows: the mean loss of plain fine-tuning less that of the start from label
    texts on the validation rows, in nats, and its standard error."""

    rows: int
    gain: float
    standard_error: float

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval of the gain is above 0."""
        return self.gain > 1.96 * self.standard_error


@dataclass(frozen=True, slots=True)
class ScoredLabelTexts:
    """A phrase for each label, and the loss with which it starts the head: the mean cross-validated
    cross-entropy over the scoring rows, in nats; lower is better."""

    texts: Mapping[str, str]
    loss: float


@dataclass(frozen=True, slots=True)
class ProposalFigures:
    """How the proposals of one adapter did in a round.

    `adapter` is the name of its folder, "" for the base model. Of `asked` completions, `fresh` were
    prefixes that had not been there before, and `hits` of these gained more than the best prefix that
    the assistant was shown. `mean_gain` is that of the fresh ones, in nats; None without any. Of example texts:
    `asked` lines, of which `fresh` are usable and `hits` of these have the label that was asked for by the judge.
    """

    adapter: str
    asked: int
    fresh: int
    hits: int
    mean_gain: float | None

    @property
    def hit_rate(self) -> float:
        """Hits over all completions asked for: what repeats or cannot be read is no hit."""
        return self.hits / self.asked if self.asked else 0.0


StepVerdict = Literal["on trial", "kept", "rolled back", "saved only"]


@dataclass(frozen=True, slots=True)
class DialogueGradientStep:
    """One fine-tuning of the assistant. `adapter`: the name of the new adapter's folder. `losses`: one
    per optimiser step, in the units of the method."""

    adapter: str
    method: str
    dialogues: int
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """What one turn of the outer loop did. `proposals` counts completions by what became of them:
    accepted, repeated (exact or near), unusable; `figures` hold them by adapter."""

    number: int
    proposals: Mapping[str, int]
    figures: tuple[ProposalFigures, ...]
    scored: tuple[ScoredPrefix, ...]
    chosen: ScoredPrefix
    training_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Selection:
    """How the product was chosen among trained contestants; the first has no prefix in front.

    `gains` are against that one, on `rows`; `names` are for the user; `chosen` is the position of the winner.
    """

    rows: str
    gains: tuple[ScoredPrefix, ...]
    names: tuple[str, ...]
    chosen: int


@dataclass(frozen=True, slots=True)
class ExampleTexts:
    """The example texts with their verdicts, whether they are trained on, and what they gained on the validation rows,
    where there are any: the loss of the control less the loss with them, in nats."""

    texts: tuple[ExampleText, ...]
    used: bool = False
    gain: float | None = None
    standard_error: float | None = None

    @property
    def kept(self) -> list[ExampleText]:
        return [text for text in self.texts if text.kept]

    def agreement(self, classes: int) -> float:
        """Cohen's kappa of the labels that were asked for and those that the control gives: 1 for always the same, 0
        for no oftener than by chance."""
        if not self.texts:
            return 0.0
        return (len(self.kept) / len(self.texts) - 1 / classes) / (1 - 1 / classes)

    @property
    def trained_on(self) -> list[ExampleText]:
        return self.kept if self.used else []


@dataclass(frozen=True, slots=True)
class Templates:
    """The prefixes that are put before the label texts; and what those that were tried gained on the validation rows,
    where there are any: the loss without less the loss with them, in nats."""

    texts: tuple[str, ...]
    gain: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """What the product says of a row that it is measured on: which row (`data.examples.Example.digest`), its label, the
    most probable one, and how probable that is."""

    row: str
    label: str
    predicted: str
    probability: float
