"""A run of a few steps, and its output."""

from __future__ import annotations

import csv
from pathlib import Path

from ghnq_quant.research.finetuning import FinetuneSettings

SETTINGS = FinetuneSettings(
    steps=6,
    meta_batch_size=2,
    image_batch_size=8,
    architectures=30,
    image_sizes=((32, 1.0),),
    log_every=1,
    checkpoint_every=2,
    validate_every=3,
    val_networks=2,
    val_images=64,
)


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
