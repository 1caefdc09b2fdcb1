"""A finetuning run's history, as far as a report shows it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ghnq_quant.errors import GhnqError

HISTORY_FILE = "history.csv"
#: Columns that a report plots against ``step``.
CURVES = ("loss", "top1", "val_top1")


def read_history(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """The curves in ``history.csv``.

    Args:
        path: of the file: a line of names, ``step`` among them, then numbers. Half a line at the
            end, and cells that are empty or not finite, are left out.

    Returns:
        for each of :data:`CURVES` that occurs, its points (step, value).

    Raises:
        GhnqError: the file cannot be read or has no column ``step``.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise GhnqError(f"{path} cannot be read as a training history: {error}") from error
    if rows and "step" not in rows[0]:
        raise GhnqError(f"{path} has no column named step: it is no training history")
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    for row in rows:
        step = _number(row["step"])
        for name, points in curves.items():
            value = _number(row.get(name))
            if step is not None and value is not None:
                points.append((step, value))
    return {name: points for name, points in curves.items() if points}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
