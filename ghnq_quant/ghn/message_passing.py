"""Gated message passing along a network's graph, forward and backward (GHN-2, eq. 3 and 4).

The sweep is sequential: a node waits for all nodes before it. Nodes at the same level (longest path
from the input), across all graphs of a batch, are updated together; each node's two transformed
features are computed once and gathered with one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph
from ghnq_quant.ghn.layers import MLP, not_compiled, takes_fast_path, weight_and_bias
from ghnq_quant.ghn.numpy_sweep import numpy_sweep

#: Most nodes in graphs that are swept together: what a sweep gathers from is quadratic in them.
MAX_NODES = 1024
#: (h, gather, level sizes) to the new h
Sweep = Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How the nodes of some graphs are swept together.

    Attributes:
        order: (N,) positions of the nodes sorted by level.
        level_sizes: number of nodes at each level.
        gather: (N, 2N) weights of messages; row v, in the sorted order, holds at column 2u whether
            u is a 1-hop neighbor that v receives from, and at column 2u + 1 the inverse of its
            distance.
        gather_back: the same for reversed edges, with nodes in reversed order.
    """

    order: Tensor
    level_sizes: tuple[int, ...]
    gather: Tensor
    gather_back: Tensor

    def to(self, device: torch.device) -> Schedule:
        """The same on another device."""
        order, gather, back = (t.to(device) for t in (self.order, self.gather, self.gather_back))
        return Schedule(order, self.level_sizes, gather, back)


def schedule(
    graphs: Sequence[ArchGraph], virtual_edges: int, dtype: torch.dtype = torch.float32
) -> Iterator[Schedule]:
    """Lay out the graphs of a batch side by side, some at a time, and sort their nodes by level."""
    together: list[ArchGraph] = []
    for graph in graphs:
        if together and sum(map(len, together)) + len(graph) > MAX_NODES:
            yield _side_by_side(together, virtual_edges, dtype)
            together = []
        together.append(graph)
    if together:
        yield _side_by_side(together, virtual_edges, dtype)


@not_compiled
def _side_by_side(graphs: Sequence[ArchGraph], virtual_edges: int, dtype: torch.dtype) -> Schedule:
    levels = np.concatenate([graph.levels for graph in graphs])
    n = len(levels)
    order = np.argsort(levels, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(n)
    gather, gather_back = torch.zeros(2, n, n, 2, dtype=dtype)
    offset = 0
    for graph in graphs:
        paths = graph.shortest_paths(virtual_edges)
        target, source = position[paths.target + offset], position[paths.source + offset]
        weights = torch.from_numpy(np.stack((paths.length == 1, 1.0 / paths.length), 1)).to(dtype)
        gather[target, source] = weights
        gather_back[n - 1 - source, n - 1 - target] = weights
        offset += len(graph)
    sizes = tuple(np.bincount(levels).tolist())
    return Schedule(torch.from_numpy(order), sizes, gather.flatten(1), gather_back.flatten(1))


class GatedGNN(nn.Module):
    """One forward and one backward sweep over a batch of graphs.

    Args:
        hid: size C of the node features.
    """

    def __init__(self, hid: int) -> None:
        super().__init__()
        self.mlp = MLP((hid, hid // 2, hid))
        self.mlp_ve = MLP((hid, hid // 2, hid))
        self.gru = nn.GRUCell(hid, hid)

    def forward(self, x: Tensor, graphs: Sequence[ArchGraph], virtual_edges: int) -> Tensor:
        """(N, C) features of a batch's nodes to their updated (N, C) features.

        On a CPU the sweeps run in NumPy: in float64, because rounding errors grow along the steps,
        and in training in float32, which is faster and off by 1e-6 after 500 levels.

        Args:
            graphs: N nodes in total.
            virtual_edges: longest shortest path along which messages pass.
        """
        sweep: Sweep = self.sweep
        dtype = x.dtype
        if takes_fast_path(x):
            dtype = torch.float32 if self.training and dtype != torch.float64 else torch.float64
            sweep = partial(numpy_sweep, weights=[w.to(dtype) for w in self._stacked_weights()])
        swept, start = [], 0
        for plan in schedule(graphs, virtual_edges, dtype):
            end = start + len(plan.order)
            swept.append(pass_messages(sweep, x[start:end].to(dtype), plan.to(x.device)))
            start = end
        return torch.cat(swept).to(x.dtype)

    def sweep(self, h: Tensor, gather: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
        """(N, C) states, sorted by level, to the nodes' new states: the plain form, for any device.

        Rows of one level are consecutive, and all rows that a level reads come before it.
        ``torch.compile`` unrolls it, so it compiles again for each new ``level_sizes``.
        """
        new, sent = [], h.new_empty(0, h.shape[1])
        for old, weights in zip(h.split(level_sizes), gather.split(level_sizes), strict=True):
            message = weights[:, : len(sent)] @ sent
            state = self.gru(message, old)
            new.append(state)
            # two rows per node: what 1-hop neighbors receive, and what all do
            features = torch.stack((self.mlp(state), self.mlp_ve(state)), 1)
            sent = torch.cat((sent, features.flatten(0, 1)))
        return torch.cat(new)

    def _stacked_weights(self) -> tuple[Tensor, ...]:
        """The two MLPs as one: first layers stacked, second ones block-diagonal."""
        (first, first_ve), (second, second_ve) = (
            (weight_and_bias(self.mlp.fc[i]), weight_and_bias(self.mlp_ve.fc[i])) for i in (0, 2)
        )
        gru = self.gru
        return (
            torch.cat((first[0], first_ve[0])),
            torch.cat((first[1], first_ve[1])),
            torch.block_diag(second[0], second_ve[0]),
            torch.cat((second[1], second_ve[1])),
            gru.weight_ih,
            gru.bias_ih,
            gru.weight_hh,
            gru.bias_hh,
        )


def pass_messages(sweep: Sweep, x: Tensor, plan: Schedule) -> Tensor:
    """Sweep over a batch's (N, C) features along the edges, then against them."""
    h = sweep(x[plan.order], plan.gather, plan.level_sizes)
    h = sweep(h.flip(0), plan.gather_back, plan.level_sizes[::-1]).flip(0)
    return torch.empty_like(h).index_copy(0, plan.order, h)
