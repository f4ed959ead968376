"""What a run keeps of label texts and example texts: models of the rows judge them, and validation rows.

Knows which models are trained for that; not who asks for texts, nor which model becomes the product. It may be asked
again: a training is found in its slot, once it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from gpta_local.run.fine_tuning import JUDGE, OWN, TEXTS, Contestant, FineTuner, Trained, contestant, ready
from gpta_local.schema import ExampleText, ExampleTexts

LEAST_AGREEMENT = 0.2
"""Kappa of example texts with a model of the rows below which they are left out: "slight" agreement by Landis and Koch
(1977). With small assistants it saves half of what such texts cost (docs/LOG.md)."""


@dataclass(frozen=True, slots=True)
class OfLabelTexts:
    """`label_texts`: those to go on with. `control`: a model that was trained from them alone. `own`: one from the
    card's own, where there is one."""

    label_texts: Sequence[dict[str, str]]
    control: Trained
    own: Trained


class Judges:
    """
    Args:
        label_texts: those that start the model.
    """

    def __init__(self, fine_tuner: FineTuner, label_texts: Sequence[dict[str, str]]) -> None:
        self.fine_tuner, self.label_texts = fine_tuner, label_texts
        self.plan, self.journal, self.observer = fine_tuner.plan, fine_tuner.journal, fine_tuner.observer
        self.task = self.plan.task

    @cached_property
    def of_label_texts(self) -> OfLabelTexts:
        """The card's own label texts are gone on with where those of the assistant beside them raise the loss of the
        validation rows."""
        tune, label_texts, own = self.fine_tuner.fine_tune, self.label_texts, self.task.own_label_texts()
        control = tune(self.task.build(label_texts), "", "without a prefix", "no-prefix")
        if not self.plan.trains_from_card or len(label_texts) == len(own):
            return OfLabelTexts(label_texts, control, control)
        without = tune(self.task.build(own), "", "from the card's label texts", OWN)
        if not self.plan.judges_label_texts:
            return OfLabelTexts(label_texts, control, without)
        gain, standard_error = self.fine_tuner.validation_gain(control, without)
        if gain > 0:
            return OfLabelTexts(label_texts, control, without)
        self.observer.note(
            f"no label texts of the assistant: {len(label_texts) - len(own)} sets beside the card's raise the loss of "
            f"the validation rows, by {-gain:.3f} ± {standard_error:.3f} nats"
        )
        return OfLabelTexts(own, without, without)

    def by_control(self, texts: Sequence[ExampleText]) -> ExampleTexts:
        """The texts with the verdicts of the first judge: a model of the rows alone."""
        return ExampleTexts(tuple(self.task.judged(self.of_label_texts.control.model, texts)))

    def second(self, found: ExampleTexts) -> Trained:
        """The second judge, which knows more: it is trained on what the first keeps of these texts too. Of more texts
        it is another one."""
        head, number = self.task.build(self.of_label_texts.label_texts), len(found.texts)
        title = f"with example texts, to judge {number} of them"
        return self.fine_tuner.fine_tune(head, "", title, f"{JUDGE}-{number}", found.kept)

    def judge_example_texts(self, texts: Sequence[ExampleText]) -> tuple[ExampleTexts, Contestant]:
        """The texts with their verdicts, and the model to go on with: one that was trained on those that it would label
        as asked, unless that clearly raises the loss of the validation rows."""
        control, found = self.of_label_texts.control, self.by_control(texts)
        agreement = found.agreement(len(self.task.label_names))
        if agreement < LEAST_AGREEMENT:
            self.journal.add_example_texts(found.texts)
            self.observer.note(
                f"no example texts: a model of the rows labels {len(found.kept)} of {len(texts)} as was asked for, "
                "little oftener than by chance"
            )
            return found, ready(control)
        found = ExampleTexts(tuple(self.task.judged(self.second(found).model, texts)))
        self.journal.add_example_texts(found.texts)
        build, kept = partial(self.task.build, self.of_label_texts.label_texts), found.kept
        with_texts = self.fine_tuner.with_texts
        with_them = contestant("", TEXTS, lambda: with_texts(build(), "", "with example texts", TEXTS, kept, control))
        if not self.plan.splits.validation:
            return replace(found, used=True), with_them
        gain, standard_error = self.fine_tuner.validation_gain(with_them.train(), control)
        found = replace(found, used=gain >= -standard_error, gain=gain, standard_error=standard_error)
        if not found.used:
            self.observer.note(
                f"no example texts: training on {len(found.kept)} of them clearly raises the loss of the validation "
                f"rows, by {-gain:.3f} ± {standard_error:.3f} nats"
            )
        return found, with_them if found.used else ready(control)
