"""What the user sees. Knows the terminal; prints no row of the data.

On a terminal: progress bars with the time left, tables, colour. Elsewhere: plain lines, one for
each stage, and one every half minute while a stage goes on. The result goes to standard output,
everything else to standard error.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from gpta_local.observer import Observer
from gpta_local.report.summary import arms_shown, verdict
from gpta_local.schema import (
    DialogueGradientStep,
    ExampleText,
    ProposalFigures,
    Round,
    ScoredPrefix,
    Selection,
    StepVerdict,
)

if TYPE_CHECKING:
    from gpta_local.dialogue_gradient.evaluate import ProposalQuality
    from gpta_local.doctor.findings import Finding

HEARTBEAT_SECONDS = 30.0
SHOWN_PREFIXES = 2
"""Prefixes of a round in its table; all of them with --verbose."""
QUICK_SECONDS = 5.0
"""A stage that takes less is not told of where there is no terminal."""
SHOWN_TEXTS = 3
"""Phrases for a label."""


class Console(RichConsole):
    def on_broken_pipe(self) -> None:
        """Rich would end the program here, with a status of its own."""
        raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone")

    def say(self, markup: str) -> None:
        """Lines that break between words on a terminal, and are whole elsewhere: others search and count them."""
        self.print(markup, soft_wrap=not self.is_terminal)

    def columns(self, rows: Sequence[tuple[str, str]], indent: int = 2) -> None:
        """Two columns; on a terminal the second breaks between words, below itself."""
        if not self.is_terminal:
            width = max(len(name) for name, _ in rows)
            self.say("\n".join(escape(f"{' ' * indent}{name:<{width}}  {text}") for name, text in rows))
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, text in rows:
            table.add_row(escape(name), escape(text))
        self.print(Padding(table, (0, 0, 0, indent)))


class TerminalObserver(Observer):
    """Shows a run (`observer.Observer`) on a terminal or as plain lines.

    Args:
        rounds: rounds of the run, for "round 2 of 4".
        verbose: show all prefixes of a round and all sets of label texts.
        quiet: show warnings and the result only.
    """

    def __init__(self, rounds: int, *, verbose: bool = False, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self._warnings = Console(stderr=True, highlight=False)
        self._rounds, self._verbose = rounds, verbose
        self._stage = ("", 0, 0, 0.0)  # title, steps, done, start
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._said = 0.0  # when a line last told of the stage
        self._ended = threading.Event()

    def __enter__(self) -> TerminalObserver:
        self._progress.start()
        if not self.console.is_terminal:
            threading.Thread(target=self._tell_what_is_waited_for, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._progress.stop()

    def stage(self, title: str, steps: int) -> None:
        self._said = time.monotonic()
        self._stage = (title, steps, 0, self._said)
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(title), total=steps)

    def advance(self) -> None:
        title, steps, done, start = self._stage
        self._stage = (title, steps, done + 1, start)
        if self._task is not None:
            self._progress.advance(self._task)
        took = time.monotonic() - start
        if done + 1 == steps and took >= QUICK_SECONDS and not self.console.is_terminal:
            self._print(f"{title}: done in {took:.1f} s")

    def note(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._warnings.say(f"[yellow]warning:[/yellow] {escape(text)}")

    def label_texts(self, chosen: Sequence[Mapping[str, str]], joined: int, usable: int, asked: int) -> None:
        if not asked:
            return
        if not usable:
            self.warn(f"none of {asked} replies had usable label texts; the head starts from the card's own")
            return
        kept = f"the best {joined} join" if joined else "none is clearly better than"
        self._print(
            f"label texts: {asked} replies; of {usable} usable sets {kept} the card's own. The head starts from"
        )
        shown = chosen if self._verbose else chosen[:SHOWN_TEXTS]
        self.console.columns([(name, " · ".join(texts[name] for texts in shown)) for name in chosen[0]])

    def example_texts(self, texts: Sequence[ExampleText], asked: int) -> None:
        if not texts:
            self.warn(f"no example texts: none of {asked} asked for is usable")
            return
        self._print(f"example texts: {len(texts)} usable of {asked} asked for, such as")
        shown = texts if self._verbose else list({text.label: text for text in reversed(texts)}.values())[::-1]
        self.console.columns([(text.label, text.text) for text in shown])

    def round(self, entry: Round) -> None:
        scored = [s for s in entry.scored if s.text]
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(entry.proposals.items())) or "none"
        self._print(
            f"round {entry.number} of {self._rounds}: proposals {counts}; {len(scored)} scored, {entry.seconds:.1f} s"
        )
        if not scored:
            self.warn(f"round {entry.number} brought no new prefix")
        if scored:
            shown = scored if self._verbose else scored[:SHOWN_PREFIXES]
            self.console.say(_gains([(s, s.text) for s in shown], entry.chosen))
        if entry.training_loss is not None:
            self._print(f"  trained with {_name(entry.chosen.text)}, mean loss {entry.training_loss:.3f}")

    def judged(self, before: ProposalFigures, after: ProposalFigures, verdict: StepVerdict) -> None:
        self._print(
            f"adapter {after.adapter} {verdict}: {_figures(after)}, against {_figures(before)} of {_who(before)}"
        )

    def texts_judged(self, before: ProposalFigures, after: ProposalFigures, verdict: StepVerdict) -> None:
        self._print(
            f"adapter {after.adapter} {verdict}: {after.hits} of {after.asked} example texts have the label that was "
            f"asked for ({after.fresh} usable), against {before.hits} of {before.asked} ({before.fresh} usable) of "
            f"{_who(before)}"
        )

    def taught(self, step: DialogueGradientStep, refused: str) -> None:
        self._print(
            f"dialogue gradient ({step.method}): {step.dialogues} dialogues, {len(step.losses)} steps, "
            f"loss {step.losses[0]:.3f} → {step.losses[-1]:.3f}, {step.seconds:.1f} s; adapter {step.adapter}"
        )
        if refused:
            self.warn(f"adapter {step.adapter} is saved but does not answer: {refused}")

    def selection(self, selection: Selection) -> None:
        self._print(f"choice of the prefix, on {selection.rows} rows:")
        named = zip(selection.gains, selection.names, strict=True)
        self.console.say(_gains(named, selection.gains[selection.chosen]))

    def _tell_what_is_waited_for(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS / 10):
            title, steps, done, start = self._stage
            now = time.monotonic()
            if done < steps and now - self._said >= HEARTBEAT_SECONDS:
                self._said = now
                self._print(f"{title}: {done} of {steps} after {now - start:.0f} s")

    def _print(self, text: str) -> None:
        self.console.say(escape(text))


def show_result(result: Mapping[str, Any], folder: str) -> None:
    """The verdict and the table of arms, on standard output."""
    console = Console(highlight=False)
    if result["arms"]:
        table = Table(box=None, pad_edge=False, show_edge=False)
        table.add_column(f"{result['arms']['gpta']['rows']} {result['evaluated_on']} rows", no_wrap=True)
        for title in ("accuracy", "95 % interval", "macro-F1"):
            table.add_column(title, justify="right", no_wrap=True)
        for name, figures in reversed(_compared(result).items()):  # the model itself comes last
            low, high = figures["interval"]
            table.add_row(name, f"{figures['accuracy']:.3f}", f"{low:.3f} – {high:.3f}", f"{figures['macro_f1']:.3f}")
        console.print(table)
        console.print()
    for line in verdict(result):
        console.say(f"[bold]{escape(line)}[/bold]")
    seconds, completions = result["seconds"]["total"], result["cost"]["completions"]
    console.say(f"\n[dim]{seconds:.0f} s, {completions} completions. Model: {escape(folder)}/model[/dim]")
    console.say(f"[dim]report: {escape(folder)}/report.html[/dim]")
    console.print(f"[dim]audit head: {result['audit_head']}[/dim]", soft_wrap=True)  # to be copied in one piece


def show_seeds(found: Mapping[str, Any]) -> None:
    """A row for each run, then their mean with its interval; differences in points."""
    console, runs, mean = Console(highlight=False), found["runs"], found["mean"]
    titles = {name: name.replace("no_prefix", "same label texts") for name in mean if name != "macro_f1"}
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("seed", *titles.values(), "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        figures = [_of_seeds(name, run["figures"].get(name, 0.0)) for name in titles]
        table.add_row(str(run["seed"]), *figures, f"{run['seconds']:.0f}")
    table.add_row("mean", *(_of_seeds(name, mean[name]["value"]) for name in titles), "", style="bold")
    if len(runs) > 1:
        for end in ("low", "high"):
            table.add_row(end, *(_of_seeds(name, mean[name][end]) for name in titles), "", style="dim")
    console.print(table)
    if runs and runs[0]["rows"]:
        measured = f"Measured on {runs[0]['rows']} {runs[0]['measured_on']} rows; differences in points"
        interval = (
            "; low and high: 95 % interval of the mean over seeds, on the same test rows" if len(runs) > 1 else ""
        )
        console.say(f"\n[dim]{measured}{interval}[/dim]")


def _of_seeds(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "accuracy" else f"{100 * value:+.1f}"


def _compared(result: Mapping[str, Any]) -> dict[str, Any]:
    """The model and what one would have without it; the controls between them are in the report."""
    arms = {name: arm for name, arm in result["arms"].items() if name != "no_prefix" or "card" not in result["arms"]}
    return arms_shown({**result, "arms": arms})


def show_comparison(found: Mapping[str, Any]) -> None:
    """A line for each run, what each took, then the settings in which they differ."""
    console = Console(highlight=False, soft_wrap=True)
    title = f"{found['rows']} shared test rows"
    names = [Path(of["run"]).name for of in found["runs"]]
    width = max(len(title), *map(len, names))
    console.print(f"{title:<{width}}  accuracy  95 % interval  less the first, points")
    for name, of in zip(names, found["runs"], strict=True):
        low, high = of["interval"]
        line = escape(f"{name:<{width}}  {of['accuracy']:8.3f}  {low:.3f} – {high:.3f}")
        if difference := of["difference"]:
            value, least, most = (100 * difference[end] for end in ("value", "low", "high"))
            line += f"  {value:+.1f} ({least:+.1f} to {most:+.1f}): [bold]{difference['verdict']}[/bold]"
        console.print(line)
    costs = [(name, _cost(of)) for name, of in zip(names, found["runs"], strict=True)]
    settings = [(key, "  |  ".join(map(str, values))) for key, values in found["settings"].items()]
    for heading, lines in (("cost", costs), ("settings that differ", settings)):
        if lines:
            console.print(f"\n{heading}")
            console.columns(lines)


def _cost(of: Mapping[str, Any]) -> str:
    tokens = [of[kind] for kind in ("prompt_tokens", "completion_tokens")]
    counted = "" if None in tokens else f", {sum(tokens):,} tokens"
    return f"{of['seconds']:,.0f} s, {of['completions']:,} completions{counted}"


def show_proposals(results: Sequence[ProposalQuality], adapters: Sequence[str]) -> None:
    """A row for each sample and assistant, then what each adapter changes on average."""
    from gpta_local.dialogue_gradient.evaluate import BASE, compare

    console = Console(highlight=False, soft_wrap=True)
    names = {BASE: BASE, **{adapter: f"adapter {number}" for number, adapter in enumerate(adapters, start=1)}}
    titles = ("hit rate", "new", "on topic", "mean gain", "best gain", "best shown")
    width = max(len("data"), *(len(r.card) for r in results))
    console.print(f"{'data':<{width}}  seed  assistant  " + "  ".join(titles))
    for r in results:
        values = (r.hit_rate, r.fresh, r.on_topic, r.mean_gain, r.best_gain, r.best_shown)
        signs = ("", "", "", "+", "+", "+")
        figures = "  ".join(f"{v:{sign}{len(t)}.3f}" for v, sign, t in zip(values, signs, titles, strict=True))
        console.print(escape(f"{r.card:<{width}}  {r.seed:>4}  {names[r.assistant]:<9}  {figures}"))
    for adapter in adapters:
        interval, samples = compare(results, adapter), sum(r.assistant == adapter for r in results)
        spread = f"95 % interval over samples {interval.low:+.3f} to {interval.high:+.3f}"
        console.print(
            f"[bold]{names[adapter]}: hit rate {interval.value:+.3f} against the base[/bold] "
            f"({spread if samples > 1 else 'one sample: no interval'}); {escape(adapter)}"
        )


def show_checks(findings: Sequence[Finding]) -> None:
    """A line for each finding, what to do below it, and how many there are of each grade."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("check", "grade"):
        table.add_column(title, no_wrap=True)
    table.add_column("finding, and → what to do", overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "error": "bold red"}
    before = ""
    for f in findings:
        text = escape(f.finding) + (f"\n→ {escape(f.fix)}" if f.fix else "")
        table.add_row("" if f.check == before else f.check, f"[{colours[f.grade]}]{f.grade}[/]", text)
        before = f.check
    console.print(table)
    counts = Counter[str](f.grade for f in findings)
    errors, warnings = (f"{counts[g]} {g}" + "s" * (counts[g] != 1) for g in ("error", "warning"))
    console.print(f"\n{errors}, {warnings}, {counts['ok']} ok")


def _who(figures: ProposalFigures) -> str:
    return f"adapter {figures.adapter}" if figures.adapter else "the base model"


def _figures(figures: ProposalFigures) -> str:
    gain = "" if figures.mean_gain is None else f", mean gain {figures.mean_gain:+.3f}"
    return f"{figures.hits} hits among {figures.fresh} new of {figures.asked} proposals{gain}"


def _gains(named: Iterable[tuple[ScoredPrefix, str]], chosen: ScoredPrefix) -> str:
    """A line for each; long names are not cut."""
    lines = []
    for s, name in named:
        error = f" ± {s.standard_error:.3f}" if s.standard_error else " " * 8
        line = escape(f"  {s.gain:+.3f}{error}  {name}")
        lines.append(f"[green]{line}  ← chosen[/green]" if s is chosen else line)
    return "\n".join(lines)


def _name(prefix: str) -> str:
    return prefix or "(no prefix)"
