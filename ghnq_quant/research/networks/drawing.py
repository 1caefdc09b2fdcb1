"""A picture of one network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from ghnq_quant.capture import ArchGraph, Node
from ghnq_quant.research.networks.dataset import SampledNetwork
from ghnq_quant.research.networks.layout import Layout, layered_layout

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

#: Color of each primitive.
COLORS = {
    "input": "#333333",
    "conv": "#3b75af",
    "sep_conv": "#5ab4ac",
    "dil_conv": "#8c6bb1",
    "bias": "#b9c7d6",
    "bn": "#f2c45a",
    "ln": "#d9a441",
    "max_pool": "#c8503c",
    "avg_pool": "#ee9a76",
    "glob_avg": "#8c2d1f",
    "sum": "#5b9a4b",
    "concat": "#a6cf8f",
    "cse": "#d174a8",
    "msa": "#9a4f7d",
    "pos_enc": "#7f7f7f",
}
_MAX_LAYERS_PER_ROW = 36
_GAP = 1.6  # between rows, in units of the distance between neighboring nodes


def draw_network(item: SampledNetwork, path: str | os.PathLike[str]) -> None:
    """Save a picture of a network's graph, wrapped like text if it is long.

    A node's color is its primitive; inside it is the side of its window, below it its channels.

    Args:
        item: a network, as from :class:`ConvNets250K`.
        path: the picture; its suffix, such as ``.png``, is its format.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    dots, x, y = draw_graph(axes, item.graph)
    figure.set_size_inches(0.46 * (x.max() + 1) + 0.8, 0.46 * np.ptp(y) + 1.7)
    axes.set_title(_title(item), fontsize=11, loc="left")
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), frameon=False)
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.15)


def draw_graph(axes: Axes, graph: ArchGraph) -> tuple[list[Artist], np.ndarray, np.ndarray]:
    """Draw a network's graph into ``axes``.

    Returns:
        a dot with a label for each primitive that occurs, for a legend; and the nodes' x and y, in
        units of the distance between neighbors, followed by those of the edges' corners.
    """
    layout = layered_layout(graph)
    x, y, rows = _wrap(layout)
    _draw_edges(axes, layout, x, y, rows)
    _draw_nodes(axes, graph, x, y)
    axes.set(xlim=(-1.0, x.max() + 1.0), ylim=(y.min() - 1.0, y.max() + 0.8), aspect="equal")
    axes.axis("off")
    used = [p for p in COLORS if p in graph.counts()]
    return [axes.scatter([], [], s=70, color=COLORS[p], label=p) for p in used], x, y


def _title(item: SampledNetwork) -> str:
    description, program = item.description, item.program
    return (
        f"{item.split} {item.index}: {description.family}, {description.num_cells} cells, "
        f"{program.num_parameters / 1e3:,.0f} k parameters, {program.macs / 1e6:.1f} M MACs, "
        f"{len(item.graph)} nodes, {description.activation}"
    )


def _wrap(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions on the page, and the row of each: rows of equal length, as high as they need."""
    num_layers = int(layout.layer.max()) + 1
    per_row = -(-num_layers // -(-num_layers // _MAX_LAYERS_PER_ROW))
    rows = layout.layer // per_row
    x = (layout.layer % per_row).astype(float)
    y = layout.height.copy()
    floor = 0.0
    for row in range(rows.max() + 1):
        in_row = rows == row
        y[in_row] += floor - _GAP - y[in_row].max()
        floor = y[in_row].min()
    return x, y, rows


def _draw_edges(axes: Axes, layout: Layout, x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> None:
    """Curves between neighboring layers; where a row ends, a stub on each side of the page."""
    lines = []
    for a, b in layout.segments:
        if rows[a] == rows[b]:
            lines.append(_curve(x[a], y[a], x[b], y[b]))
        else:
            lines.append([(x[a], y[a]), (x[a] + 0.8, y[a])])
            lines.append([(x[b] - 0.8, y[b]), (x[b], y[b])])
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors="#8a8a8a", linewidths=1.0, zorder=1))


def _curve(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    t = np.linspace(0, 1, 13)
    heights = y0 + (y1 - y0) * t * t * (3 - 2 * t)
    return list(zip((x0 + (x1 - x0) * t).tolist(), heights.tolist(), strict=True))


def _draw_nodes(axes: Axes, graph: ArchGraph, x: np.ndarray, y: np.ndarray) -> None:
    places = range(len(graph))
    colors = [COLORS[node.primitive] for node in graph.nodes]
    axes.scatter(x[places], y[places], s=150, color=colors, zorder=2, edgecolor="white")
    for i, node in enumerate(graph.nodes):
        window, channels = _labels(node)
        inside = axes.text(x[i], y[i], window, color="white", fontsize=7.5)
        inside.set(ha="center", va="center_baseline")
        axes.text(x[i], y[i] - 0.35, channels, fontsize=6.5, ha="center", va="top")


def _labels(node: Node) -> tuple[str, str]:
    """The text in a node and below it."""
    shape = node.shape or ()
    window = str(shape[2]) if len(shape) == 4 else ""
    is_weight = len(shape) > 1 and node.primitive not in ("max_pool", "avg_pool")
    return window, str(shape[0]) if is_weight else ""
