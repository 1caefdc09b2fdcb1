"""Draw the curves of finetuning runs: accuracy of predicted networks against steps and hours.

    python docs/examples/plot_training.py RUN=history.csv … -o figure.png

Each history is that of a run's folder; one that goes on from another is drawn behind it with a plus:
``main=b.csv+main.csv``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from ghnq_quant.research.report.plots import colours

#: Rows of the history that a point of the training curve is the mean of.
WINDOW = 25


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw(runs: dict[str, list[Path]], output: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    by_steps, by_hours = figure.subplots(1, 2, sharey=True)
    colour = colours(list(runs))
    for name, paths in runs.items():
        steps = hours = 0.0
        for path in paths:
            rows = read(path)
            for axes, key, start, unit in (
                (by_steps, "step", steps, 1.0),
                (by_hours, "seconds", hours, 3600.0),
            ):
                x = [start + float(r[key]) / unit for r in rows]
                trained = [
                    (at, 100 * float(r["top1"])) for at, r in zip(x, rows, strict=True) if r["top1"]
                ]
                ends = range(WINDOW, len(trained) + 1, WINDOW)
                means = [sum(top1 for _, top1 in trained[e - WINDOW : e]) / WINDOW for e in ends]
                axes.plot([trained[e - 1][0] for e in ends], means, color=colour[name], linewidth=1)
                validated = [
                    (at, 100 * float(r["val_top1"]))
                    for at, r in zip(x, rows, strict=True)
                    if r["val_top1"]
                ]
                label = name if path is paths[0] else None
                axes.plot(
                    [at for at, _ in validated],
                    [top1 for _, top1 in validated],
                    "o",
                    color=colour[name],
                    markersize=4,
                    label=label,
                )
            steps += float(rows[-1]["step"])
            hours += float(rows[-1]["seconds"]) / 3600
    by_steps.set(xlabel="steps", ylabel="top-1 (%)")
    by_hours.set(xlabel="hours")
    for axes in (by_steps, by_hours):
        axes.set_ylim(bottom=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    by_steps.legend(frameon=False, fontsize=8)
    by_hours.set_title(
        "points: validation networks and images; lines: training", loc="right", fontsize=8
    )
    figure.savefig(output, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN=history.csv")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    named = dict(run.split("=", 1) for run in arguments.runs)
    draw({n: [Path(p) for p in files.split("+")] for n, files in named.items()}, arguments.output)
