"""Draws the finished networks of a comparison of starts, of which others may still be training.

python docs/examples/plot_ladder.py docs/results/ladder/cifar10 docs/results/ladder/cifar10.png
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ghnq_quant.research.runs.seeds import CHOICE_SEED
from ghnq_quant.research.starts import CompareSettings, Comparison
from ghnq_quant.research.starts.plotting import plot_curves
from ghnq_quant.research.starts.results import TrialResult
from ghnq_quant.research.starts.tables import markdown_page


def main(folder: Path, picture: Path) -> None:
    """Read ``trials.jsonl``; write the picture and print the tables."""
    header, *trials = map(json.loads, (folder / "trials.jsonl").read_text("utf-8").splitlines())
    names = [field.name for field in fields(CompareSettings)]
    settings = CompareSettings(**{name: _tuples(header["settings"][name]) for name in names})
    results = {r.trial: r for r in map(TrialResult.from_json, trials)}
    wanted = len(settings.starts) * len(settings.steps) * settings.seeds
    done = [
        arch
        for arch in settings.archs
        if sum(t.arch == arch and t.seed != CHOICE_SEED for t in results) == wanted
    ]
    comparison = Comparison(replace(settings, archs=tuple(done)), header, results)
    plot_curves(comparison, picture)
    print(markdown_page(comparison))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
