"""The end of a run: the last fine-tunings, the choice among them, and the test.

Knows what is trained, compared and measured; not how, nor what becomes of the product. The choice is made on validation
rows or, without any, on the training rows: never on the test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpta_local.knowledge import prefixes
from gpta_local.knowledge.label_texts import templated
from gpta_local.metrics import paired_mean
from gpta_local.observer import Observer
from gpta_local.record.entries import hex_digest
from gpta_local.record.journal import Journal
from gpta_local.run import summary
from gpta_local.run.fine_tuning import FineTuner, Trained
from gpta_local.run.plan import Plan
from gpta_local.schema import (
    ScoredPrefix,
    Selection,
    Templates,
)


@dataclass(frozen=True, slots=True)
class Controls:
    """Trainings without any prefix: with the same label texts, and plainly. None where nothing is measured; the plain
    one also where it is not wanted or would be the same as the other."""

    no_prefix: Trained | None
    plain: Trained | None


class Finish:
    def __init__(self, plan: Plan, journal: Journal, fine_tuner: FineTuner, observer: Observer) -> None:
        self.plan, self.journal, self.fine_tuner, self.observer = plan, journal, fine_tuner, observer
        self.task, self.splits, self.fine_tune = plan.task, plan.splits, fine_tuner.fine_tune

    def contestants(
        self, label_texts: Sequence[dict[str, str]], searched: Trained
    ) -> tuple[Controls, Templates, list[Trained]]:
        """The controls; the templates; and the trained models to choose from, of which the first has no prefix in
        front of its inputs. Online it is the plain one unless label texts are clearly better as a start: with many rows
        they can be worse."""
        templates = Templates(tuple(self.best_prefixes()))
        control = bare = plain = None
        if self.plan.measured or not templates.texts:
            control = bare = self.fine_tune(self.task.build(label_texts), "", "without a prefix", "no-prefix")
        if templates.texts:
            head = self.task.build(templated(label_texts, templates.texts))
            bare = self.fine_tune(head, "", "with templates", "templates")
            if control and self.splits.validation:
                templates = self.judge_templates(templates, control, bare)
                bare = bare if templates.texts else control
        assert bare is not None  # one of the two
        if self.plan.trains_plainly:
            name = "plainly" if self.plan.online else "plainly (control)"
            plain = self.fine_tune(self.task.build_plain(), "", name, "plain")
        if plain and self.plan.online and self.splits.validation and not self.clearly_better(bare, plain):
            self.observer.note("on validation rows label texts are not clearly better as a start than a random head")
            bare = plain
        contestants = [bare, *self.with_prefixes(label_texts, templates, searched)]
        return Controls(control, plain), templates, contestants

    def clearly_better(self, ours: Trained, theirs: Trained) -> bool:
        """Whether the loss on the validation rows is lower by more than its standard error."""
        gain, standard_error = self.validation_gain(ours, theirs)
        return gain > standard_error

    def validation_gain(self, ours: Trained, theirs: Trained) -> tuple[float, float]:
        """Mean loss of theirs less that of ours on the validation rows, in nats, and its standard error."""
        losses = [self.fine_tuner.measure(trained, "validation")[0].losses for trained in (theirs, ours)]
        return paired_mean(losses[0] - losses[1])

    def best_prefixes(self) -> list[str]:
        """Those with the highest gains of those that ran longest in their races, for templates."""
        ranked = sorted(self.journal.scored(), key=lambda s: (s.rows, s.gain), reverse=True)
        return [s.text for s in ranked[: self.plan.most_templates]]

    def judge_templates(self, templates: Templates, without: Trained, with_them: Trained) -> Templates:
        """The templates with their gain on the validation rows; none of them, where that is clearly below 0."""
        gain, standard_error = self.validation_gain(with_them, without)
        if gain >= -standard_error:
            return Templates(templates.texts, gain, standard_error)
        self.observer.note(
            f"no templates: the best {len(templates.texts)} prefixes before the label texts raise the loss of the "
            f"validation rows, by {-gain:.3f} ± {standard_error:.3f} nats"
        )
        return Templates((), gain, standard_error)

    def with_prefixes(
        self, label_texts: Sequence[dict[str, str]], templates: Templates, searched: Trained
    ) -> list[Trained]:
        """Models with a prefix in front. Online, θ is there already and its prefixes compete, no prefix too. In
        low-resource runs each finalist gets a fine-tuning of its own."""
        finalists = self.plan.finalists(self.journal.comparable(self.plan.regime))
        if self.plan.online:
            return [replace(searched, prefix=text) for text in dict.fromkeys([searched.prefix, *finalists, ""])]
        head = templated(label_texts, templates.texts)
        slots = [f"finalist-{hex_digest(text.encode())[:8]}" for text in finalists]
        return [
            self.fine_tune(self.task.build(head), text, f'with "{text}"', slot)
            for text, slot in zip(finalists, slots, strict=True)
        ]

    def select(self, contestants: Sequence[Trained]) -> Selection:
        """Choose on the validation rows; without any, by the cross-validated gains of the search."""
        if self.splits.validation:
            results = [self.fine_tuner.measure(contestant, "validation")[0] for contestant in contestants]
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
            rows = "training, cross-validated"
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
        split = "test" if self.splits.test else "validation" if self.splits.validation else ""
        candidates = {"gpta": product, "no_prefix": controls.no_prefix, "plain": controls.plain} if split else {}
        arms = {name: trained for name, trained in candidates.items() if trained is not None}
        models = list(dict.fromkeys(arms.values()))  # the product can be its own control
        self.observer.stage("evaluating", len(models))
        measured = {}
        for trained in models:
            (result, seconds), (of_fitted, more) = (self.fine_tuner.measure(trained, s) for s in (split, "fitted"))
            measured[trained] = result, of_fitted, seconds + more
            self.observer.advance()
        results = {name: measured[trained][0] for name, trained in arms.items()}
        return {
            "product_is_plain": product is controls.plain,
            "evaluated_on": split,
            "arms": {
                name: summary.arm(*measured[trained], trained.prefix, trained.seconds) for name, trained in arms.items()
            },
            "differences": {
                name: summary.difference(results["gpta"], results[name])
                for name in results
                if arms[name] is not arms["gpta"]
            },
            "cost": self.journal.cost(),
        }
