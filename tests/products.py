"""Products of small random models, written as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samples import config_of, pair_rows, sentiment_rows

from gpta_local.downstream.product import Product, open_product, write_product
from gpta_local.tasks.classification import ClassificationTask

PREFIX = "Review of a guest:"


def untrained(folder: Path, backbone: Path, *, pair: bool = False) -> Product:
    """A product without any training; its data and configuration lie beside it."""
    folder.mkdir(exist_ok=True)
    changes: dict[str, Any] = {"downstream": {"backbone": str(backbone)}}
    if pair:
        changes["task"] = "text-pair-classification"
    config = config_of(folder, pair_rows() if pair else sentiment_rows(), changes)
    task = ClassificationTask(config)
    model = task.build(task.own_label_texts())
    write_product(folder / "model", model, PREFIX, task.name, task.label_names, config.data)
    return open_product(folder)
