"""Positions of the nodes of a drawn graph: in layers from left to right (Sugiyama et al. 1981)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghnq_quant.capture import ArchGraph

_SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """Positions of nodes and of the bends of long edges.

    Attributes:
        layer: layer of each node and bend.
        height: height of each node and bend; at least 1 apart within a layer.
        segments: pairs of nodes or bends in neighboring layers; the graph's nodes come first.
    """

    layer: NDArray[np.int64]
    height: NDArray[np.float64]
    segments: list[tuple[int, int]]


def layered_layout(graph: ArchGraph) -> Layout:
    """Lay out a graph; an edge across several layers has a bend in each of them."""
    layer = graph.levels.tolist()
    segments: list[tuple[int, int]] = []
    for source, target in graph.edges.tolist():
        end = layer[target]
        while layer[source] + 1 < end:
            segments.append((source, len(layer)))
            layer.append(layer[source] + 1)
            source = len(layer) - 1
        segments.append((source, target))
    height = _heights(layer, segments, len(graph))
    return Layout(np.array(layer), np.array(height), segments)


def _heights(layer: list[int], segments: list[tuple[int, int]], num_nodes: int) -> list[float]:
    """Move each place to the mean of its neighbors', sweep after sweep, and spread them."""
    before, behind = defaultdict(list), defaultdict(list)
    for source, target in segments:
        before[target].append(source)
        behind[source].append(target)
    members: dict[int, list[int]] = defaultdict(list)
    for place, k in enumerate(layer):
        members[k].append(place)
    # Long edges start on top, so that chains of operations stay on a straight line.
    bends = range(num_nodes, len(layer))
    height = [0.0] * num_nodes + [1.0 + bend / len(layer) for bend in bends]
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for k in sorted(members, reverse=not forward):
            for place in members[k]:
                near = (before if forward else behind)[place]
                if near:
                    height[place] = sum(height[n] for n in near) / len(near)
            _spread(members[k], height, num_nodes)
    return height


def _spread(places: list[int], height: list[float], num_nodes: int) -> None:
    """Push the places of one layer at least 1 apart, in order, around their mean."""
    # At equal heights, nodes lie below bends.
    order = sorted(places, key=lambda place: (height[place], place >= num_nodes, place))
    mean = sum(height[place] for place in order) / len(order)
    pushed: list[float] = []
    for place in order:
        pushed.append(max(height[place], pushed[-1] + 1) if pushed else height[place])
    shift = mean - sum(pushed) / len(pushed)
    for place, new in zip(order, pushed, strict=True):
        height[place] = new + shift
