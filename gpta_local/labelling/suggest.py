"""`suggest`: which unlabelled rows to label next, by uncertainty and diversity.

Knows products and files of rows. Labels nothing, and knows no label of these rows.

Shapes: n rows, d features, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpta_local.data.readers import files_of
from gpta_local.downstream.inference import columns_of, output_like, reading_of, records_of
from gpta_local.downstream.loaded import LoadedTorch
from gpta_local.downstream.outputs import opened
from gpta_local.downstream.predicting import LABEL, PROBABILITY, texts_of
from gpta_local.downstream.product import Prediction, Product, open_product
from gpta_local.errors import DataError, ModelError

ROW = "input_row"
"""The column of the row's number among all that were read, from 1."""
BATCH = 64
LEAST_WEIGHT = 1e-6
"""Of a row of which the model is certain."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`row`: the position among the rows, from 0. `prediction`: what the model says of it now."""

    row: int
    prediction: Prediction


def suggest_from(
    run: Path, inputs: Sequence[str], output: Path | None, count: int, overrides: Sequence[str] = ()
) -> None:
    """Write the rows of files that are worth labelling, with all their columns and what the model says of them.

    Args:
        inputs, output, overrides: as for `predict`. Rows without text are left out.
    """
    product = open_product(run)
    how, files = reading_of(product, overrides), files_of(inputs)
    output, kind = output_like(files, output)
    columns = columns_of(product, how)
    numbered = enumerate(records_of(files, columns, how), start=1)
    rows = [(number, record, texts) for number, record in numbered if (texts := texts_of(record, columns))]
    if not rows:
        raise DataError("no row has text", where=files[0])
    found = suggest(product, [texts for _, _, texts in rows], count)
    with opened(output, kind, key="") as out:
        for suggestion in found:
            number, record, _ = rows[suggestion.row]
            label = suggestion.prediction.label
            said = {ROW: number, LABEL: label, PROBABILITY: suggestion.prediction.probabilities[label]}
            out.write({**record.values, **said})


def suggest(product: Product, rows: Sequence[tuple[str, ...]], count: int) -> list[Suggestion]:
    """At most `count` different rows that are worth labelling, the least certain first."""
    places = {texts: number for number, texts in reversed(list(enumerate(rows)))}  # of equal rows the first
    different = sorted(places.values())
    model, parts = product.load(), []
    if not isinstance(model, LoadedTorch):
        raise ModelError("an ONNX folder gives no embeddings", where=str(product.folder), fix="Give the run")
    for start in range(0, len(different), BATCH):
        parts.append(model.logits_and_features([rows[row] for row in different[start : start + BATCH]]))
    logits, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    predictions = list(product.predictions(logits))
    chances = np.array([list(prediction.probabilities.values()) for prediction in predictions])
    return [Suggestion(different[i], predictions[i]) for i in choose(features, chances, count)]


def choose(features: NDArray[np.float64], chances: NDArray[np.float64], count: int) -> list[int]:
    """Positions of rows that are both uncertain and unlike each other, the least certain first.

    The features are clustered into `count` groups by k-means with the rows weighted by their uncertainty, 1 less the
    margin between the two most probable labels; of each group the row nearest to its centre is taken. That is Zhdanov
    (2019), *Diverse mini-batch active learning*, without the pre-selection of uncertain rows (docs/LOG.md).

    Args:
        features: (n, d).
        chances: probabilities (n, c).
    """
    from sklearn.cluster import KMeans

    ordered = np.sort(chances, axis=1)
    uncertainty = 1 - (ordered[:, -1] - ordered[:, -2])  # (n,)
    if count >= len(features):
        chosen = list(range(len(features)))
    else:
        groups = KMeans(count, random_state=0, n_init=1)
        distances = groups.fit_transform(features, sample_weight=uncertainty + LEAST_WEIGHT)  # (n, count)
        own = np.where(groups.labels_[:, None] == np.arange(count), distances, np.inf)
        chosen = sorted({int(row) for row in own.argmin(axis=0)})
    return sorted(chosen, key=lambda row: -float(uncertainty[row]))
