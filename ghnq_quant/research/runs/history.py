"""``history.csv``: loss and accuracy over a training run, one line every few steps."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing

HISTORY_FILE = "history.csv"
COLUMNS = ("step", "seconds", "loss", "top1", "lr", "grad_norm", "failed", "val_top1")
#: Columns that a report plots against ``step``.
CURVES = ("loss", "top1", "val_top1")


def append_history(path: Path, row: Mapping[str, float | int | None]) -> None:
    """Append one line, with :data:`COLUMNS`; the first call creates the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow({name: _rounded(value) for name, value in row.items()})


def truncate_history(path: Path, step: int) -> None:
    """Drop what a killed run wrote after its last saved state, at ``step``."""
    rows = _rows(path) if path.exists() else []
    kept = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= step]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)


def read_curves(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """The curves that a report shows.

    Args:
        path: the file: a line of names, including ``step``, then numbers. An incomplete last line,
            and cells that are empty or not finite, are left out.

    Returns:
        for each of :data:`CURVES` that occurs, its points (step, value).

    Raises:
        GhnqError: the file cannot be read or has no column ``step``.
    """
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    for row in _rows(path):
        step = _number(row["step"])
        for name, points in curves.items():
            value = _number(row.get(name))
            if step is not None and value is not None:
                points.append((step, value))
    return {name: points for name, points in curves.items() if points}


def _rows(path: str | Path) -> list[dict[str, str]]:
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise GhnqError(f"{path} cannot be read as a training history: {error}") from error
    if rows and "step" not in rows[0]:
        raise GhnqError(f"{path} has no column named step: it is not a training history")
    return rows


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rounded(value: float | int | None) -> float | int | None:
    return float(f"{value:.6g}") if isinstance(value, float) else value
