"""Draw a network's body, with one function per family, once widths and reductions are set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ghnq_quant.research.networks.architecture import (
    Body,
    Cell,
    CellBody,
    Edge,
    MobileBlock,
    MobileBody,
    PlainBlock,
    PlainBody,
    ResidualBlock,
    ResidualBody,
    Wiring,
)
from ghnq_quant.research.networks.draws import Draws

# Large kernels mostly in depthwise convolutions, as in deployed networks: full ones cost too much.
_EDGE_OPERATIONS = {
    ("skip", 1): 12,
    ("max_pool", 3): 8,
    ("avg_pool", 3): 8,
    ("conv", 1): 8,
    ("conv", 3): 13,
    ("conv", 5): 3,
    ("conv", 7): 1,
    ("group_conv", 3): 6,
    ("group_conv", 5): 2,
    ("dil_conv", 3): 4,
    ("sep_conv", 3): 13,
    ("sep_conv", 5): 7,
    ("sep_conv", 7): 3,
    ("dil_sep_conv", 3): 6,
    ("dil_sep_conv", 5): 4,
    ("res_conv", 3): 4,
}
_WITHOUT_PARAMETERS = ("skip", "max_pool", "avg_pool")


@dataclass(frozen=True)
class Skeleton:
    """Channels and stride of each cell or block; the stem has the channels of the first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


def _sample_cells(draws: Draws, skeleton: Skeleton) -> CellBody:
    inputs = 2 if draws.chance(70) else 1
    num_nodes = draws.weighted({1: 25, 2: 35, 3: 22, 4: 18})
    return CellBody(
        normal=_sample_wiring(draws, inputs, num_nodes),
        reduction=_sample_wiring(draws, inputs, num_nodes),
        cells=tuple(map(Cell, skeleton.channels, skeleton.strides)),
        output="concat" if draws.chance(75) else "sum",
        residual=draws.chance(35),
        preactivation=draws.chance(40),
    )


def _sample_wiring(draws: Draws, inputs: int, num_nodes: int) -> Wiring:
    """A wiring that reads the previous cell and computes something."""
    while True:
        nodes = tuple(_sample_node(draws, inputs + n) for n in range(num_nodes))
        edges = [edge for node in nodes for edge in node]
        reads_previous = any(edge.source == 0 for edge in edges)
        if reads_previous and any(e.operation not in _WITHOUT_PARAMETERS for e in edges):
            return Wiring(inputs, nodes)


def _sample_node(draws: Draws, num_states: int) -> tuple[Edge, ...]:
    num_edges = min(num_states, 2 if draws.chance(65) else 1)
    sources = draws.subset(range(num_states), num_edges)
    return tuple(Edge(source, *draws.weighted(_EDGE_OPERATIONS)) for source in sources)


def _sample_plain(draws: Draws, skeleton: Skeleton) -> PlainBody:
    groups = draws.weighted({1: 85, 2: 8, 4: 7})
    kernel = draws.weighted({3: 82, 5: 12, 7: 6})
    pointwise, dilated = 10 * draws.chance(30), 12 * draws.chance(25)
    # A reduction pools after the preceding block; the last block is followed by the head.
    pools = [stride > 1 for stride in skeleton.strides[1:]] + [False]
    return PlainBody(
        tuple(
            PlainBlock(
                channels,
                1 if draws.chance(pointwise) else kernel,
                groups,
                2 if draws.chance(dilated) else 1,
                pool,
            )
            for channels, pool in zip(skeleton.channels, pools, strict=True)
        )
    )


def _sample_residual(draws: Draws, skeleton: Skeleton) -> ResidualBody:
    kernel = draws.weighted({3: 88, 5: 12})
    bottleneck = draws.weighted({0: 55, 2: 20, 4: 25})
    groups = draws.weighted({1: 75, 2: 12, 4: 13})
    dilated = 15 * draws.chance(25)
    blocks = []
    for channels, stride in zip(skeleton.channels, skeleton.strides, strict=True):
        wide = channels * (2 if bottleneck == 4 else 1)
        # a multiple of 4, so that the groups divide it
        inner = max(4, wide // bottleneck // 4 * 4) if bottleneck else 0
        dilation = 2 if draws.chance(dilated) else 1
        blocks.append(ResidualBlock(wide, stride, kernel, inner, groups, dilation))
    return ResidualBody(tuple(blocks))


def _sample_mobile(draws: Draws, skeleton: Skeleton) -> MobileBody:
    expansion = draws.weighted({0: 25, 1: 5, 2: 15, 3: 20, 4: 20, 6: 15})
    kernels = draws.choice([{3: 1}, {3: 1, 5: 1}, {5: 1}, {3: 2, 5: 1, 7: 1}])
    blocks = [
        MobileBlock(channels, stride, draws.weighted(kernels), expansion)
        for channels, stride in zip(skeleton.channels, skeleton.strides, strict=True)
    ]
    last = draws.weighted({0: 40, 2: 20, 4: 40}) * skeleton.channels[-1]
    return MobileBody(tuple(blocks), last)


SAMPLERS: dict[str, Callable[[Draws, Skeleton], Body]] = {
    "cells": _sample_cells,
    "plain": _sample_plain,
    "residual": _sample_residual,
    "mobile": _sample_mobile,
}
