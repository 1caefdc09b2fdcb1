"""Histograms of the splits' networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ghnq_quant.capture import PRIMITIVES
from ghnq_quant.research.networks.drawing import COLORS
from ghnq_quant.research.networks.statistics import (
    QUANTITIES,
    NetworkStatistics,
    by_split,
    primitive_shares,
    shortened,
    values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOGARITHMIC = ("parameters", "MACs")
_LABELS = {
    "parameters": "parameters",
    "MACs": "multiply-accumulates, 3×32×32 image",
    "depth": "convolutions and linear layers\non the longest path",
    "nodes": "nodes of the graph",
}


def plot_statistics(statistics: Sequence[NetworkStatistics], path: str | os.PathLike[str]) -> None:
    """Save histograms as one picture: a row per split, a column per quantity.

    Args:
        statistics: statistics of one or more splits' networks, as from :func:`space_statistics`.
        path: the picture; its suffix, such as ``.png``, is its format.
    """
    from matplotlib.figure import Figure

    groups = by_split(statistics)
    figure = Figure(figsize=(16, 1.2 + 1.35 * len(groups)), layout="constrained")
    grid = figure.subplots(
        len(groups), len(QUANTITIES) + 1, squeeze=False, sharex="col", width_ratios=[3] * 4 + [4]
    )
    for column, quantity in enumerate(QUANTITIES):
        bins = _bins(values(statistics, quantity), quantity in _LOGARITHMIC)
        for axes, networks in zip(grid[:, column], groups.values(), strict=True):
            _histogram(axes, networks, quantity, bins)
        grid[-1, column].set_xlabel(_LABELS[quantity])
    _plot_primitives(list(grid[:, -1]), list(groups.values()))
    for axes, (split, networks) in zip(grid[:, 0], groups.items(), strict=True):
        axes.set_ylabel(
            f"$\\bf{{{split.replace('_', chr(92) + '_')}}}$\n{len(networks)} networks",
            rotation=0,
            ha="right",
            va="center",
        )
    figure.savefig(path, dpi=110)


def _bins(all_values: NDArray[np.int64], logarithmic: bool) -> list[float]:
    low, high = max(1, all_values.min()), all_values.max() + 1
    if logarithmic:
        return np.geomspace(low, high, 31).tolist()
    return np.linspace(0, high, 31).tolist()


def _histogram(
    axes: Axes, networks: Sequence[NetworkStatistics], quantity: str, bins: Sequence[float]
) -> None:
    of_split = values(networks, quantity)
    axes.hist(of_split, bins=bins, color="#4878a8", edgecolor="white", linewidth=0.4)
    median = float(np.median(of_split))
    if quantity in _LOGARITHMIC:
        axes.set_xscale("log")
    top = axes.get_ylim()[1]
    axes.vlines(median, 0, top, color="#c8503c", linewidth=1.4)
    label = f"median {shortened(median)}"
    axes.text(median, 1.05 * top, label, ha="center", va="bottom", fontsize=8.5, color="#c8503c")
    axes.set_yticks([])
    axes.set_ylim(0, 1.35 * top)  # room for the label
    axes.spines[["left", "top", "right"]].set_visible(False)


def _plot_primitives(column: Sequence[Axes], groups: list[list[NetworkStatistics]]) -> None:
    """Bars of each primitive's share of the nodes."""
    shares = [primitive_shares(networks) for networks in groups]
    names = [p for p in PRIMITIVES if any(p in share for share in shares)]
    for axes, share in zip(column, shares, strict=True):
        heights = [100 * share.get(name, 0.0) for name in names]
        bars = axes.bar(names, heights, color=[COLORS[name] for name in names])
        labels = [f"{h:.0f}" if h >= 0.5 else "" for h in heights]
        axes.bar_label(bars, labels, fontsize=8, padding=1)
        axes.set_yticks([])
        axes.set_ylim(top=max(heights) * 1.3)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.tick_params(axis="x", rotation=90, length=0)
    column[-1].set_xlabel("% of the nodes")
