"""The files of a comparison's folder."""

from __future__ import annotations

from pathlib import Path

from ghnq_quant.files import replacing, save_json
from ghnq_quant.research.starts.plotting import plot_curves
from ghnq_quant.research.starts.record import Comparison
from ghnq_quant.research.starts.tables import markdown_page

TRIALS_FILE = "trials.jsonl"
RESULTS_FILE = "results.json"
TABLE_FILE = "table.md"
CURVES_FILE = "curves.png"


def save_comparison(comparison: Comparison, folder: str | Path) -> None:
    """Write ``results.json``, ``table.md`` and ``curves.png``."""
    folder = Path(folder)
    save_json(comparison.to_json(), folder / RESULTS_FILE)
    with replacing(folder / TABLE_FILE) as temporary:
        temporary.write_text(markdown_page(comparison), "utf-8")
    with replacing(folder / CURVES_FILE) as temporary:
        plot_curves(comparison, temporary)
