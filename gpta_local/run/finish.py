"""The end of a run: the last fine-tunings, the choice among them, and the test.

Knows what is trained, compared and measured; not how, nor what becomes of the product. The choice is made on validation
rows or, without any, on the training rows: never on the test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from gpta_local.data.examples import Example
from gpta_local.knowledge import prefixes
from gpta_local.knowledge.label_texts import templated
from gpta_local.metrics import fit_temperature, paired_mean, softmax
from gpta_local.observer import Observer
from gpta_local.record.entries import hex_digest
from gpta_local.record.journal import Journal
from gpta_local.report import summary
from gpta_local.run.cross_validation import Recipe, cross_validated
from gpta_local.run.fine_tuning import Contestant, FineTuner, Trained, contestant, ready
from gpta_local.run.judging import Judges
from gpta_local.run.plan import Plan
from gpta_local.schema import (
    ExampleText,
    ExampleTexts,
    MeasuredRow,
    ScoredPrefix,
    Selection,
    Share,
    Templates,
)
from gpta_local.tasks.base import Evaluation


@dataclass(frozen=True, slots=True)
class Controls:
    """Trainings without any prefix: with the same label texts, from the card's own alone, and plainly. None where
    nothing is measured; the last two also where they are not wanted or there are no label texts."""

    no_prefix: Trained | None
    card: Trained | None
    plain: Trained | None


@dataclass(frozen=True, slots=True)
class Contest:
    """The models to choose from, of which the first has no prefix in front of its inputs, and what they are made of."""

    contestants: list[Contestant]
    controls: Controls
    label_texts: Sequence[dict[str, str]]
    templates: Templates
    example_texts: ExampleTexts
    shares: tuple[Share, ...] = ()


class Finish:
    def __init__(self, plan: Plan, journal: Journal, fine_tuner: FineTuner, observer: Observer) -> None:
        self.plan, self.journal, self.fine_tuner, self.observer = plan, journal, fine_tuner, observer
        self.task, self.splits = plan.task, plan.splits
        self.fine_tune, self.with_texts = fine_tuner.fine_tune, fine_tuner.with_texts

    def contest(self, judges: Judges, example_texts: Sequence[ExampleText], searched: Trained) -> Contest:
        """Train the controls, and the contestants where validation rows choose among them; without any, the choice is
        made before, and the chosen one is trained alone. What the assistant gave is left out where validation rows
        speak for plain fine-tuning: with many rows unless it is clearly better, with few where it is clearly worse."""
        templates, made_up = Templates(tuple(self.best_prefixes())), ExampleTexts(())
        label_texts, control, own, bare, plain = judges.label_texts, None, None, None, None
        if self.plan.measured or example_texts or not templates.texts:
            of = judges.of_label_texts
            label_texts, control, own, bare = of.label_texts, of.control, of.own, ready(of.control)
        if example_texts:
            made_up, bare = judges.judge_example_texts(example_texts)
        if templates.texts:
            head = partial(self.task.build, templated(label_texts, templates.texts))
            texts = made_up.trained_on
            with_them = contestant(
                "", "templates", lambda: self.with_texts(head(), "", "with templates", "templates", texts, control)
            )
            if bare and self.splits.validation:
                templates = self.judge_templates(templates, bare.train(), with_them.train())
            bare = with_them if templates.texts or bare is None else bare
        assert bare is not None  # one of the two
        if self.plan.trains_plainly:
            name = "plainly" if self.plan.online else "plainly (control)"
            plain = self.fine_tune(self.task.build_plain(), "", name, "plain")
        if plain and self.splits.validation and self.plain_wins(plain, bare.train()):
            bare = ready(plain)
        contestants = [bare, *self.with_prefixes(label_texts, templates, made_up, control, searched)]
        controls = Controls(control, own if self.plan.compares_with_card else None, plain)
        return Contest(contestants, controls, label_texts, templates, made_up)

    def plain_wins(self, plain: Trained, bare: Trained) -> bool:
        if self.plan.online and not self.clearly_better(bare, plain):
            self.observer.note("on validation rows label texts are not clearly better as a start than a random head")
            return True
        if not self.plan.online and self.clearly_better(plain, bare):
            self.observer.note("on validation rows plain fine-tuning is clearly better than what the assistant gave")
            return True
        return False

    def clearly_better(self, ours: Trained, theirs: Trained) -> bool:
        """Whether the loss on the validation rows is lower by more than its standard error."""
        gain, standard_error = self.fine_tuner.validation_gain(ours, theirs)
        return gain > standard_error

    def best_prefixes(self) -> list[str]:
        """Those with the highest gains of those that ran longest in their races, for templates; the gain must exceed
        its standard error."""
        ranked = sorted(self.journal.scored(), key=lambda s: (s.rows, s.gain), reverse=True)
        ranked = [s for s in ranked if s.bound() > 0]
        return [s.text for s in ranked[: self.plan.most_templates]]

    def judge_templates(self, templates: Templates, without: Trained, with_them: Trained) -> Templates:
        """The templates with their gain on the validation rows; none of them, where that is clearly below 0."""
        gain, standard_error = self.fine_tuner.validation_gain(with_them, without)
        if gain >= -standard_error:
            return Templates(templates.texts, gain, standard_error)
        self.observer.note(
            f"no templates: the best {len(templates.texts)} prefixes before the label texts raise the loss of the "
            f"validation rows, by {-gain:.3f} ± {standard_error:.3f} nats"
        )
        return Templates((), gain, standard_error)

    def with_prefixes(
        self,
        label_texts: Sequence[dict[str, str]],
        templates: Templates,
        example_texts: ExampleTexts,
        control: Trained | None,
        searched: Trained,
    ) -> list[Contestant]:
        """Models with a prefix in front. Online, θ is there already and its prefixes compete, no prefix too. In
        low-resource runs each finalist gets a fine-tuning of its own."""
        finalists = self.plan.finalists(self.journal.comparable(self.plan.regime))
        if self.plan.online:
            prefixes_of_it = dict.fromkeys([searched.prefix, *finalists, ""])
            return [ready(replace(searched, prefix=text)) for text in prefixes_of_it]
        head, texts = partial(self.task.build, templated(label_texts, templates.texts)), example_texts.trained_on

        def finalist(text: str) -> Contestant:
            slot = f"finalist-{hex_digest(text.encode())[:8]}"
            return contestant(text, slot, lambda: self.with_texts(head(), text, f'with "{text}"', slot, texts, control))

        return [finalist(text) for text in finalists]

    def select(self, contestants: Sequence[Contestant]) -> Selection:
        """Choose on the validation rows; without any, by the cross-validated gains of the search."""
        if self.splits.validation:
            results = [self.fine_tuner.measure(c.train(), "validation")[0] for c in contestants]
            gains = [
                ScoredPrefix(
                    c.prefix, *paired_mean(results[0].losses - r.losses), float(r.losses.mean()), len(r.losses)
                )
                for c, r in zip(contestants[1:], results[1:], strict=True)
            ]
            rows = "validation"
        else:
            known = {scored.text: scored for scored in self.journal.scored()}
            gains = [known.get(c.prefix, ScoredPrefix(c.prefix, 0.0, 0.0, 0.0, 0)) for c in contestants[1:]]
            rows = summary.CROSS_VALIDATED
        none = ScoredPrefix(
            "", 0.0, 0.0, gains[0].loss + gains[0].gain if gains else 0.0, gains[0].rows if gains else 0
        )
        tried = len(gains) if self.splits.validation else len(self.journal.scored())
        selection = Selection(
            rows, (none, *gains), tuple(c.name for c in contestants), prefixes.best([none, *gains], tried)
        )
        self.observer.selection(selection)
        return selection

    def evaluate(self, product: Trained, controls: Controls) -> dict[str, Any]:
        """The product and its controls, once, on the test rows."""
        split = "test" if self.splits.test else "validation"
        candidates = {"gpta": product, **{of.name: getattr(controls, of.name) for of in fields(controls)}}
        arms = {name: trained for name, trained in candidates.items() if trained is not None}
        models = list(dict.fromkeys(arms.values()))  # the product can be its own control
        self.observer.stage("evaluating", len(models))
        measured = {}
        for trained in models:
            result, seconds = self.fine_tuner.measure(trained, split)
            of_fitted, more = self.fine_tuner.measure(trained, "fitted") if self.splits.fitted else (None, 0.0)
            measured[trained] = result, of_fitted, seconds + more
            self.observer.advance()
        results = {name: measured[trained][0] for name, trained in arms.items()}
        fitted = self.fine_tuner.measure(product, "validation")[0] if self.splits.validation else None
        rows = getattr(self.splits, split)
        return {
            "product_is_plain": product is controls.plain,
            "product": self.of_product(results["gpta"], rows, fitted, "validation"),
            "evaluated_on": split,
            "arms": {
                name: summary.arm(*measured[trained], trained.prefix, trained.slot, trained.seconds)
                for name, trained in arms.items()
            },
            "differences": {
                name: summary.difference(results["gpta"], results[name])
                for name in results
                if arms[name] is not arms["gpta"]
            },
        }

    def of_product(
        self, measured: Evaluation, rows: Sequence[Example], fitted: Evaluation | None, fitted_on: str
    ) -> dict[str, Any]:
        """Class by class, and how sure it is. What the product says of each row goes on record.

        Args:
            fitted: what it says of the rows that its temperature is fitted on; None without any: on the rows that it
                was trained on a model is surer than elsewhere.
        """
        names = self.task.label_names
        temperature = fit_temperature(fitted.logits, fitted.targets) if fitted else None
        self.journal.add_predictions(measured_rows(rows, measured, names, temperature or 1.0))
        return summary.of_product(measured, names, temperature, fitted, fitted_on)

    def cross_validate(self, product: Trained, contest: Contest) -> dict[str, Any]:
        """The product's recipe and plain fine-tuning on parts of the training rows, for want of others."""
        head = templated(contest.label_texts, contest.templates.texts)
        texts = contest.example_texts.trained_on
        control = partial(self.task.build, contest.label_texts)
        recipes = {"gpta": Recipe(partial(self.task.build, head), product.prefix, texts, control)}
        if self.plan.compares_with_plain:
            recipes["plain"] = Recipe(self.task.build_plain)
        found = cross_validated(self.fine_tuner, recipes) if self.plan.cross_validates else {}
        of_product = None
        if found:
            evaluation = found["gpta"].evaluation
            of_product = self.of_product(evaluation, self.splits.train, evaluation, summary.CROSS_VALIDATED)
        return {
            "product_is_plain": False,
            "product": of_product,
            "evaluated_on": summary.CROSS_VALIDATED if found else "",
            "arms": {
                name: summary.arm(
                    of.evaluation, None, of.evaluation_seconds, recipes[name].prefix, "", of.training_seconds
                )
                for name, of in found.items()
            },
            "differences": {
                name: summary.difference(found["gpta"].evaluation, of.evaluation)
                for name, of in found.items()
                if name != "gpta"
            },
        }


def measured_rows(
    examples: Sequence[Example], evaluation: Evaluation, names: Sequence[str], temperature: float
) -> list[MeasuredRow]:
    """Row by row: which it is, its label, the most probable label, and how probable that is."""
    return [
        MeasuredRow(example.digest, names[example.label], names[int(chances.argmax())], round(float(chances.max()), 6))
        for example, chances in zip(examples, softmax(evaluation.logits, temperature), strict=True)
    ]
