"""The public functions: train, predict and evaluate from Python, as the commands do.

The network guard of the command line is not put in place here, since it is for the life of a process; what is
configured goes to the same addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpta_local.config import load_config
from gpta_local.downstream import inference
from gpta_local.downstream.product import Prediction, open_product
from gpta_local.observer import Observer
from gpta_local.record import folder as run_folder
from gpta_local.report import summary

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of the product less that of a control on the same rows, with its 95 % interval, from -1 to 1."""

    value: float
    low: float
    high: float
    verdict: str
    """"gain", "loss" or "no clear difference"."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run. Figures are None where there were no test or validation rows to measure them on."""

    folder: Path
    accuracy: float | None
    interval: tuple[float, float] | None
    """95 %, of the accuracy."""
    macro_f1: float | None
    measured_on: str
    """"test", "validation", "cross-validated training", or "" for nothing."""
    against: dict[str, Difference]
    """By control: "plain" fine-tuning; "card", from the card's label names and meanings alone; "no_prefix", the same
    label texts without example texts and prefixes. Of a cross-validation: "plain" alone."""
    prefix: str
    labels: list[str]
    seconds: float
    verdict: str
    """The result in sentences."""
    summary: dict[str, Any]
    """All of `summary.json`."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the beginning of the report."""
        from gpta_local.report.run_report import beginning

        return beginning(self.summary)

    @property
    def model(self) -> Path:
        """The folder of the product, which stock libraries load."""
        return self.folder / run_folder.MODEL_FOLDER

    @property
    def report(self) -> Path:
        """The page that shows all of this; `report.md` beside it is the same as Markdown."""
        return self.folder / run_folder.REPORT_FILE

    def predict(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """Label texts, or pairs of texts, in their order."""
        return predict(self.folder, texts)

    def load(self) -> SentenceTransformer:
        """The product as a SentenceTransformer, whose `encode` gives logits in the order of `labels`.

        Raises:
            ModelError: the product is no sentence-transformers folder: its backbone was a plain checkpoint.
        """
        return open_product(self.folder).sentence_transformer()


def train(
    config: Path | str | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Run `gpta-local train`.

    Args:
        config: a configuration file, or its content as a mapping (paths relative to the working directory).
        overrides: dotted keys and their values, as in {"search.rounds": 2}.
        output: the run directory; runs/NAME-DATE-TIME if not given.
        resume: go on with the run that was stopped in `output`, if there is one.
        observer: told of each stage; nothing is printed without one.

    Raises:
        GptaError: what is wrong, where, and how to mend it.
    """
    from gpta_local.run.loop import Run

    settings = load_config(config, overrides)
    folder = Path(output) if output else run_folder.new(settings)
    match run_folder.check(folder, settings, resume=resume):
        case "finished":
            return open_result(folder)
        case "nothing":
            run_folder.check_folder(folder)
    run = Run(settings, observer or Observer())
    with closing(run.assistant):
        run.run(folder, resume=resume)
    return open_result(folder)


def predict(run: Path | str, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
    """Label texts, or pairs of texts, with the model of a run or an exported folder, in their order."""
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    return list(open_product(Path(run)).predict(rows))


def evaluate(run: Path | str, data: Path | str | None = None) -> dict[str, Any]:
    """Rows, accuracy with its 95 % interval, macro-F1, and rows, precision and recall of each label.

    Args:
        data: a labelled file; the test rows of the run's configuration if not given.
    """
    return inference.evaluate(Path(run), Path(data) if data else None)


def open_result(folder: Path | str) -> Result:
    """The result of a finished run.

    Raises:
        InputError: there is none in this folder.
    """
    folder = Path(folder)
    found = run_folder.summary(folder)
    ours = found["arms"].get("gpta", {})
    return Result(
        folder=folder,
        accuracy=ours.get("accuracy"),
        interval=tuple(ours["interval"]) if ours else None,
        macro_f1=ours.get("macro_f1"),
        measured_on=found["evaluated_on"],
        against={name: Difference(**figures) for name, figures in found["differences"].items()},
        prefix=found["prefix"],
        labels=[label["name"] for label in found["card"]["labels"]],
        seconds=found["seconds"]["total"],
        verdict="\n".join(summary.verdict(found)),
        summary=found,
    )
