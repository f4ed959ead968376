"""With thousands of rows: shares of them tell first what all of them are worth training with.

Label texts help most where rows are few, and less with each row more. So a model that starts from them and one with a
random head are trained on growing shares of the rows and compared on the validation rows; the winner alone is trained
on all. Knows what is trained and compared; not how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gpta_local.run.fine_tuning import ready
from gpta_local.run.finish import Contest, Controls, Finish
from gpta_local.run.search import Search
from gpta_local.schema import ExampleTexts, Share, Templates


def compared_on_shares(finish: Finish, search: Search) -> Contest:
    """The winner's model, trained on all rows, and what the shares have told. The label texts that are compared are the
    card's own: the assistant is asked for more only where these win."""
    plan, task, tuner = finish.plan, finish.task, finish.fine_tuner
    shares, label_texts = list[Share](), task.own_label_texts()

    def share(part: int) -> Share:
        ours, theirs = (
            tuner.fine_tune(model, "", f"{how}, on 1/{part} of the rows", f"{slot}-{part}", part=part)
            for model, how, slot in (
                (task.build(label_texts), "from the label texts", "no-prefix"),
                (task.build_plain(), "plainly", "plain"),
            )
        )
        return Share(plan.rows_of(part), *finish.validation_gain(ours, theirs))

    for part in plan.shares:
        shares.append(share(part))
        if not shares[-1].clear:
            break
    with_label_texts = projected(shares, len(finish.splits.train)).clear
    last = shares[-1]
    finish.observer.note(
        f"trained on {last.rows} of {len(finish.splits.train)} rows, the start from label texts lowers the loss of the "
        f"validation rows by {last.gain:.3f} ± {last.standard_error:.3f} nats: "
        + ("all rows are trained on from it" if with_label_texts else "all rows are trained on plainly")
    )
    control = plain = None
    if with_label_texts:
        label_texts = search.choose_label_texts()
        winner = control = tuner.fine_tune(task.build(label_texts), "", "from the label texts", "no-prefix")
    else:
        winner = plain = tuner.fine_tune(task.build_plain(), "", "plainly", "plain")
    controls = Controls(no_prefix=control, card=None, plain=plain)
    return Contest([ready(winner)], controls, label_texts, Templates(()), ExampleTexts(()), tuple(shares))


def projected(shares: Sequence[Share], rows: int) -> Share:
    """What would be seen with so many rows, if the gain went on to shrink by the same factor with each doubling; its
    standard error by the delta method, as if the two last shares were independent. Where the gain does not shrink, or
    is none, it is taken to stay."""
    *before, last = shares
    if not before or last.gain <= 0 or last.gain >= before[-1].gain:
        return replace(last, rows=rows)
    first = before[-1]
    power = math.log(rows / last.rows) / math.log(last.rows / first.rows)
    gain = last.gain * (last.gain / first.gain) ** power
    relative = math.hypot(
        (1 + power) * last.standard_error / last.gain,
        power * first.standard_error / first.gain,
    )
    return Share(rows, gain, gain * relative)
