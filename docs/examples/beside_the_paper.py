"""Put evaluations of several checkpoints beside the paper's Table 1, in Markdown.

python docs/examples/beside_the_paper.py docs/results/table1-float docs/results/table1-first-qat
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.table1.settings import TABLE_SPLITS
from ghnq_quant.research.table1.summary import Summary
from ghnq_quant.research.table1.tables import ACCURACIES, accuracy_cell

#: Yun and Wong (2022), Table 1: mean, standard error and maximum, % of top-1 and top-5, by split.
PAPER = {
    "top1": {
        "float": ("71.1±0.3; 80.2", "68.1±0.7; 79.8", "69.8±0.5; 79.0", "37.8±1.3; 56.1"),
        "W8/A8": ("70.9±0.3; 80.1", "67.9±0.7; 79.5", "69.6±0.5; 78.6", "37.5±1.3; 56.4"),
        "W4/A8": ("47.4±0.4; 63.9", "39.0±0.7; 62.9", "43.8±0.6; 63.3", "25.7±0.9; 43.7"),
        "W4/A4": ("37.2±0.3; 52.6", "30.7±0.5; 50.2", "34.7±0.5; 50.7", "21.5±0.8; 36.7"),
        "W2/A2": ("10.0±0.0; 11.0", "10.0±0.0; 10.7", "10.0±0.0; 10.7", "9.7±0.0; 10.4"),
    },
    "top5": {
        "float": ("97.3±0.1; 99.0", "96.4±0.2; 98.8", "97.2±0.1; 98.7", "84.3±1.2; 94.8"),
        "W8/A8": ("97.3±0.1; 98.9", "96.4±0.2; 98.8", "97.2±0.1; 98.7", "84.1±1.2; 94.9"),
        "W4/A8": ("89.8±0.2; 95.9", "85.2±0.4; 95.8", "88.0±0.3; 95.5", "74.6±1.2; 89.8"),
        "W4/A4": ("83.7±0.2; 91.7", "78.6±0.4; 91.0", "82.1±0.3; 91.4", "69.3±1.1; 87.0"),
        "W2/A2": ("50.0±0.0; 51.4", "50.0±0.0; 50.9", "50.0±0.0; 51.4", "50.2±0.1; 52.0"),
    },
}
PAPER_SPLITS = ("test", "deep", "wide", "bn_free")


def cell(of_split: dict[str, Any] | None, precision: str, metric: str) -> str:
    """Empty for what was not evaluated."""
    if of_split is None or precision not in of_split:
        return ""
    return accuracy_cell(Summary(**of_split[precision][metric]))


def table(evaluations: list[dict[str, Any]], metric: str) -> str:
    lines = [["precision", "checkpoint", *TABLE_SPLITS]]
    of_paper = PAPER[metric]
    measured = [p for e in evaluations for split in e["summary"].values() for p in split]
    for precision in dict.fromkeys([*of_paper, *measured]):
        paper = dict(zip(PAPER_SPLITS, of_paper.get(precision, ("",) * 4), strict=True))
        rows = {"paper": [paper.get(split, "") for split in TABLE_SPLITS]}
        for evaluation in evaluations:
            summary, name = evaluation["summary"], f"`{evaluation['ghn']['name']}`"
            rows[name] = [cell(summary.get(split), precision, metric) for split in TABLE_SPLITS]
        told = [[name, *cells] for name, cells in rows.items() if any(cells)]
        lines += [[precision if row is told[0] else "", *row] for row in told]
    return markdown(lines, 2)


if __name__ == "__main__":
    runs = [json.loads((Path(run) / "results.json").read_text("utf-8")) for run in sys.argv[1:]]
    for metric, title in ACCURACIES:
        print(f"{title}, %, mean ± standard error; maximum\n\n{table(runs, metric)}\n")
