"""`gpta-local benchmark SUITE`: the same rows and seeds for every arm, one line per trial, figures and tables.

    suite.py        what is compared on which sets: the YAML file
    trials.py       suite → trials, jobs and what each needs; the results file
    arms.py         how each arm is trained and measured
    soft_prompt.py  the arm that tunes a prompt instead of the backbone
    setfit_arm.py   the arm of the extra `setfit`
    worker.py       a process that does one job after another
    runner.py       jobs → processes → results file
    statistics.py   results → differences with intervals, goals
    report.py       results → report.html, report.md
    figures.py      their pictures

What it keeps is accuracies, times, prefixes and label texts; no row.
"""
