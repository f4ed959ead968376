"""With thousands of rows: shares of them tell first what all of them are worth training with.

Label texts help most where rows are few, and less with each row more. So a model that starts from them and one with a
random head are trained on growing shares of the rows and compared on the validation rows; the winner alone is trained
on all. Knows what is trained and compared; not how.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gpta_local.metrics import Losses, paired_mean
from gpta_local.run.fine_tuning import ready
from gpta_local.run.finish import Contest, Controls, Finish
from gpta_local.run.search import Search
from gpta_local.schema import ExampleTexts, Share, Templates


def compared_on_shares(finish: Finish, search: Search) -> Contest:
    """The winner's model, trained on all rows, and what the shares have told. The label texts that are compared are the
    card's own: the assistant is asked for more only where these win."""
    plan, task, tuner = finish.plan, finish.task, finish.fine_tuner
    shares, label_texts, clear = dict[int, Losses](), task.own_label_texts(), bool(plan.shares)

    def gains(part: int) -> Losses:
        ours, theirs = (
            tuner.fine_tune(model, "", f"{how}, on 1/{part} of the rows", f"{slot}-{part}", part=part)
            for model, how, slot in (
                (task.build(label_texts), "from the label texts", "no-prefix"),
                (task.build_plain(), "plainly", "plain"),
            )
        )
        return tuner.validation_gains(ours, theirs)

    for part in plan.shares:
        shares[plan.rows_of(part)] = gains(part)
        if not (clear := told(shares)[-1].clear):
            break
    with_label_texts = clear and projected(shares, len(finish.splits.train)).clear
    if shares:
        last = told(shares)[-1]
        finish.observer.note(
            f"trained on {last.rows} of {len(finish.splits.train)} rows, the start from label texts lowers the loss of "
            f"the validation rows by {last.gain:.3f} ± {last.standard_error:.3f} nats: all rows are trained on "
            + ("from it" if with_label_texts else "plainly")
        )
    control = plain = None
    if with_label_texts:
        label_texts = search.choose_label_texts()
        winner = control = tuner.fine_tune(task.build(label_texts), "", "from the label texts", "no-prefix")
    else:
        winner = plain = tuner.fine_tune(task.build_plain(), "", "plainly", "plain")
    controls = Controls(no_prefix=control, card=None, plain=plain)
    return Contest([ready(winner)], controls, label_texts, Templates(()), ExampleTexts(()), told(shares))


def told(shares: Mapping[int, Losses]) -> tuple[Share, ...]:
    """
    Args:
        shares: by the rows that were trained on, the gain of each validation row.
    """
    return tuple(Share(rows, *paired_mean(gains)) for rows, gains in shares.items())


def projected(shares: Mapping[int, Losses], rows: int) -> Share:
    """What two shares promise of so many rows, if each doubling took away as many nats as that between them, so that it
    may end below nothing; a gain that grows is taken to stay. The standard error is that of such a line, also where it
    stays: that it does not fall is as uncertain."""
    (before, first), (now, last) = shares.items()
    doublings = math.log(rows / now) / math.log(now / before)
    gain, standard_error = paired_mean(last - doublings * (first - last))
    return Share(rows, min(gain, float(last.mean())), standard_error)
