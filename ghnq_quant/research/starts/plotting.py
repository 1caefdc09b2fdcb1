"""A comparison as a picture: accuracy against the number of steps spent."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ghnq_quant.quantization.scheme import precision_name
from ghnq_quant.research.report.plots import colours
from ghnq_quant.research.starts.results import Comparison, Curve
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.research.starts.tables import accuracy_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osDv^<>p*hX"
#: Of networks at one precision.
_COLUMNS = 3


def plot_curves(comparison: Comparison, path: Path) -> None:
    """A grid of networks (rows) and precisions (columns), or of networks alone, as PNG."""
    from matplotlib.figure import Figure

    settings = comparison.settings
    cases = list(comparison.cases())
    columns = len(settings.bits) if len(settings.bits) > 1 else min(_COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(1 + 3.4 * columns, 1.5 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    colour = colours(settings.starts)
    for axes in grid.flat[len(cases) :]:
        axes.remove()
    for axes, (arch, bits) in zip(grid.flat, cases, strict=False):
        axes.set_title(f"{arch}, {precision_name(bits)}", loc="left", fontsize=10)
        for number, (start, curve) in enumerate(comparison.curves(arch, bits).items()):
            _draw(axes, curve, STARTS[start].title, colour[start], _MARKERS[number % 11])
        axes.set_xscale("log", base=2)
        axes.set_xticks(settings.steps, [str(steps) for steps in settings.steps])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_xlabel("steps of training")
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1 (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(columns, len(labels)), frameon=False
    )
    width = round(17 * (1 + 3.4 * columns))
    figure.supxlabel(textwrap.fill(accuracy_caption(comparison), width), fontsize=7.5, color="0.35")
    figure.savefig(path, format="png", dpi=130)


def _draw(axes: Axes, curve: Curve, title: str, colour: str, marker: str) -> None:
    means = [s.mean or 0.0 for s in curve.accuracy]
    errors = [s.standard_error or 0.0 for s in curve.accuracy]
    axes.errorbar(
        curve.steps, means, errors, fmt=f"{marker}-", color=colour, capsize=3, markersize=5,
        label=title,
    )  # fmt: skip
    axes.axhline(curve.first.mean or 0.0, color=colour, linewidth=0.9, linestyle=(0, (2, 3)))
