"""`gpta-local benchmark SUITE`: the same rows and seeds for every arm, one line per trial, figures and tables.

    suite.py        what is compared on which sets: the YAML file
    trials.py       suite → trials, jobs and what each needs; the results file
    arms.py         how each arm is trained and measured
    soft_prompt.py  the arm that tunes a prompt instead of the backbone
    rivals.py       the arms that a user would take instead, SetFit among them
    zero_shot.py    the arm in which the assistant labels test rows: the one place where rows reach a language model
    runner.py       jobs → engines (processes, a Ray cluster: `gpta_local.system`) → results file
    statistics.py   results → differences with intervals, goals
    report.py       results → report.html, report.md
    page.py         how they are written
    figures.py      their pictures
    speed.py        training beside the `Trainer` of transformers (`make bench-speed`); no part of a suite

What it keeps is accuracies, times, and what an assistant wrote: prefixes, label texts and example texts; no row.
"""
