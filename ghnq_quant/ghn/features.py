"""Node features: the operation and the shape of its parameter (Knyazev et al. 2021, app. B)."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph, Node
from ghnq_quant.ghn.per_graph import once_per_graph

Index = tuple[int, int, int, int]


class ShapeEncoder(nn.Module):
    """Embeds (c_out, c_in, kh, kw) as the concatenation of four vectors of ``hid // 4``.

    Args:
        hid: size C of the node features.
        num_classes: number of classes, a channel count with its own row.
        spatial_size: kernel size of the decoder, the largest odd size with its own row.
    """

    def __init__(self, hid: int, num_classes: int, spatial_size: int) -> None:
        super().__init__()
        self.channels = _channel_values(num_classes)
        self.spatial = _spatial_values(spatial_size)
        self.embed_spatial = nn.Embedding(len(self.spatial) + 1, hid // 4)
        self.embed_channel = nn.Embedding(len(self.channels) + 1, hid // 4)

    def indices(self, node: Node) -> Index:
        """Rows of the two tables for a node's shape; the extra last rows if it has none."""
        return _indices(node, self.channels, self.spatial)

    def rows(self, graph: ArchGraph) -> Tensor:
        """(N, 4) rows of a graph's nodes."""
        return _rows(graph, self.channels, self.spatial)

    def forward(self, indices: Tensor) -> Tensor:
        """(N, 4) rows to (N, C) features."""
        channel = self.embed_channel(indices[:, :2]).flatten(1)
        spatial = self.embed_spatial(indices[:, 2:]).flatten(1)
        return torch.cat((channel, spatial), dim=1)


@once_per_graph
def _rows(graph: ArchGraph, channels: tuple[int, ...], spatial: tuple[int, ...]) -> Tensor:
    return torch.tensor([_indices(node, channels, spatial) for node in graph.nodes])


def _indices(node: Node, channels: tuple[int, ...], spatial: tuple[int, ...]) -> Index:
    if node.shape is None:
        return (len(channels),) * 2 + (len(spatial),) * 2
    c_out, c_in, kh, kw = (*node.shape, *(1,) * (4 - len(node.shape)))
    return (
        _channel_row(c_out, channels),
        _channel_row(c_in, channels),
        _spatial_row(kh, spatial),
        _spatial_row(kw, spatial),
    )


def _channel_values(num_classes: int) -> tuple[int, ...]:
    fine, middle, coarse = range(8, 64, 8), range(64, 4096, 16), range(4096, 8193, 32)
    return tuple(sorted({1, 3, num_classes, *fine, *middle, *coarse}))


def _spatial_values(size: int) -> tuple[int, ...]:
    return tuple(sorted({*range(1, max(12, size), 2), 14, 16}))


def _channel_row(count: int, values: tuple[int, ...]) -> int:
    # 4 to 7 share a row even if num_classes is one of them, as in the public code
    return _nearest(8 if 4 <= count <= 7 else count, values)


def _spatial_row(size: int, values: tuple[int, ...]) -> int:
    return _nearest(3 if size == 2 else size, values)


def _nearest(value: int, values: tuple[int, ...]) -> int:
    """Position of the nearest of the sorted ``values``; the smaller one on a tie."""
    above = bisect_left(values, value)
    if above == len(values):
        return above - 1
    if above == 0 or values[above] == value:
        return above
    return above - 1 if value - values[above - 1] <= values[above] - value else above
