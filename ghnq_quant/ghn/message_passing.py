"""Gated message passing along a network's graph, forward and backward (GHN-2, eq. 3 and 4).

The sweep is sequential: a node waits for all nodes before it. Nodes of one level (equal longest
path from the input), over all graphs of a batch, are updated together; each node's two transformed
features are computed once and gathered with one matrix product; the part of the GRU cell that
depends on a node's old state is computed for all nodes at once. The sweep is one autograd function
whose backward runs over the levels in reverse and takes the parameters' gradients as whole matrix
products at its end.

It runs in NumPy on the host, whatever the hypernetwork's device: hundreds of steps of a dozen
operations on a few rows each, whose cost is that of calling them, and NumPy calls them several times
faster than PyTorch does and a GPU can. It runs in float64, since rounding grows along the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ghnq_quant.capture import ArchGraph

Array = NDArray[np.float64]
_threads = ThreadpoolController()
#: Graphs are swept together up to as many nodes: what a sweep gathers from is quadratic in them.
MAX_NODES = 1024


@dataclass(frozen=True)
class Schedule:
    """How the nodes of some graphs are swept together.

    Attributes:
        order: (N,) positions of the nodes sorted by level.
        level_sizes: how many nodes each level has.
        gather: (N, 2N) weights of messages; row v, in the sorted order, holds at column 2u whether
            u is a 1-hop neighbour that v receives from and at column 2u + 1 the inverse of its
            distance.
        gather_back: the same for the reversed edges, with nodes in the reversed order.
    """

    order: NDArray[np.int64]
    level_sizes: tuple[int, ...]
    gather: Array
    gather_back: Array


def schedule(graphs: Sequence[ArchGraph], virtual_edges: int) -> Iterator[Schedule]:
    """Lay the graphs of a batch side by side and sort their nodes by level, some graphs at a time."""
    together: list[ArchGraph] = []
    for graph in graphs:
        if together and sum(map(len, together)) + len(graph) > MAX_NODES:
            yield _side_by_side(together, virtual_edges)
            together = []
        together.append(graph)
    if together:
        yield _side_by_side(together, virtual_edges)


def _side_by_side(graphs: Sequence[ArchGraph], virtual_edges: int) -> Schedule:
    levels = np.concatenate([graph.levels for graph in graphs])
    n = len(levels)
    order = np.argsort(levels, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(n)
    gather, gather_back = np.zeros((2, n, n, 2))
    offset = 0
    for graph in graphs:
        paths = graph.shortest_paths(virtual_edges)
        target, source = position[paths.target + offset], position[paths.source + offset]
        weights = np.stack((paths.length == 1, 1.0 / paths.length), 1)
        gather[target, source] = weights
        gather_back[n - 1 - source, n - 1 - target] = weights
        offset += len(graph)
    return Schedule(
        order=order,
        level_sizes=tuple(np.bincount(levels).tolist()),
        gather=gather.reshape(n, 2 * n),
        gather_back=gather_back.reshape(n, 2 * n),
    )


class MLP(nn.Module):
    """Linear–ReLU–Linear, then ReLU too where ``last_relu``."""

    def __init__(self, sizes: tuple[int, int, int], last_relu: bool = True) -> None:
        super().__init__()
        first, second = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.ReLU() if last_relu else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Those of a linear layer or convolution that has both."""
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    assert layer.bias is not None
    return layer.weight, layer.bias


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

        Args:
            graphs: of N nodes in all.
            virtual_edges: longest shortest path along which messages pass.
        """
        weights = tuple(w.cpu().double() for w in self._weights())
        x_host = x.cpu().double()
        swept, start = [], 0
        for plan in schedule(graphs, virtual_edges):
            order = torch.from_numpy(plan.order)
            h = x_host[start : start + len(order)][order]
            h = _Sweep.apply(h, plan.gather, plan.level_sizes, *weights)
            h = _Sweep.apply(h.flip(0), plan.gather_back, plan.level_sizes[::-1], *weights).flip(0)
            swept.append(torch.empty_like(h).index_copy(0, order, h))
            start += len(order)
        return torch.cat(swept).to(x)

    def _weights(self) -> tuple[Tensor, ...]:
        """The two MLPs as one: first layers stacked, second ones on a block diagonal."""
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


class _Sweep(torch.autograd.Function):
    """h (N, C), sorted by level, to the nodes' new states.

    In both directions rows of one level are slices, and all rows that a level reads lie before it.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, gather: Array, sizes: tuple[int, ...], *w: Tensor) -> Tensor:
        with _in_numpy():
            ctx.swept = _Swept(h.numpy(), gather, sizes, *(t.numpy() for t in w))
        return torch.from_numpy(ctx.swept.h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        with _in_numpy():
            d_h0, *d_weights = map(torch.from_numpy, ctx.swept.gradients(grad_h.numpy()))
        return d_h0, None, None, *d_weights


@contextmanager
def _in_numpy() -> Iterator[None]:
    """One thread, since on matrices this small a second one costs more than it does, and no warnings
    of values that are not finite: what they lead to is checked at the end."""
    with _threads.limit(limits=1, user_api="blas"), np.errstate(all="ignore"):
        yield


class _Swept:
    """One sweep and what its gradient needs.

    Attributes:
        h: (N, C) new states.
        message: (N, C) that each node received.
        gates: (N, 3C) of the GRU cell after their nonlinearities: reset, update, new.
        gates_h: (N, 3C) their part that depends on the old state.
        hidden, feature: (N, C) and (N, 2C) of the two MLPs, after ReLU.
    """

    def __init__(self, h0: Array, gather: Array, sizes: tuple[int, ...], *weights: Array) -> None:
        self.h0, self.gather, self.sizes, self.weights = h0, gather, sizes, weights
        w1, b1, w2, b2, w_ih, b_ih, w_hh, b_hh = weights
        n, c = h0.shape
        self.gates_h = gates_h = h0 @ w_hh.T + b_hh
        before = np.concatenate(
            (gates_h[:, : 2 * c] + b_ih[: 2 * c], np.tile(b_ih[2 * c :], (n, 1))), 1
        )
        self.message, self.h = np.empty((n, c)), np.empty((n, c))
        self.gates = np.empty((n, 3 * c))
        self.hidden, self.feature = np.empty((n, len(w1))), np.empty((n, len(w2)))
        feature_rows = self.feature.reshape(2 * n, c)
        w1_t, w2_t, w_ih_t = (np.ascontiguousarray(w.T) for w in (w1, w2, w_ih))
        start = 0
        for size in sizes:
            level = slice(start, start + size)
            m, h, g = self.message[level], self.h[level], self.gates[level]
            np.matmul(gather[level, : 2 * start], feature_rows[: 2 * start], out=m)
            np.matmul(m, w_ih_t, out=g)
            g += before[level]
            expit(g[:, : 2 * c], out=g[:, : 2 * c])
            new = g[:, 2 * c :]
            new += g[:, :c] * gates_h[level, 2 * c :]
            np.tanh(new, out=new)
            np.subtract(h0[level], new, out=h)
            h *= g[:, c : 2 * c]
            h += new
            t, f = self.hidden[level], self.feature[level]
            np.matmul(h, w1_t, out=t)
            t += b1
            np.maximum(t, 0, out=t)
            np.matmul(t, w2_t, out=f)
            f += b2
            np.maximum(f, 0, out=f)
            start += size

    def gradients(self, grad_h: Array) -> tuple[Array, ...]:
        """Of the old states and of the weights, for that of the new states."""
        w1, _, w2, _, w_ih, _, w_hh, _ = self.weights
        n, c = self.h0.shape
        r, z, new = self.gates[:, :c], self.gates[:, c : 2 * c], self.gates[:, 2 * c :]
        # derivatives of the gates, for all nodes at once
        d_z = (self.h0 - new) * z * (1 - z)
        d_new = (1 - z) * (1 - new * new)
        d_r = d_new * self.gates_h[:, 2 * c :] * r * (1 - r)
        local = np.stack((d_r, d_z, d_new), 1)
        hidden_on, feature_on = self.hidden > 0, self.feature > 0
        d_h, d_message = np.empty((n, c)), np.empty((n, c))
        d_gates = np.empty((n, 3, c))
        d_in = d_gates.reshape(n, 3 * c)
        d_hidden, d_feature = np.empty(self.hidden.shape), np.empty(self.feature.shape)
        d_feature_rows = d_feature.reshape(2 * n, c)
        end = n
        for size in reversed(self.sizes):
            start = end - size
            level = slice(start, end)
            columns = slice(2 * start, 2 * end)
            np.matmul(self.gather[end:, columns].T, d_message[end:], out=d_feature_rows[columns])
            d_f, d_t, d_h_l = d_feature[level], d_hidden[level], d_h[level]
            d_f *= feature_on[level]
            np.matmul(d_f, w2, out=d_t)
            d_t *= hidden_on[level]
            np.matmul(d_t, w1, out=d_h_l)
            d_h_l += grad_h[level]
            np.multiply(d_h_l[:, None], local[level], out=d_gates[level])
            np.matmul(d_in[level], w_ih, out=d_message[level])
            end = start
        d_gates_h = d_gates.copy()
        d_gates_h[:, 2] *= r
        d_state = d_gates_h.reshape(n, 3 * c)
        return (
            d_h * z + d_state @ w_hh,
            d_hidden.T @ self.h,
            d_hidden.sum(0),
            d_feature.T @ self.hidden,
            d_feature.sum(0),
            d_in.T @ self.message,
            d_in.sum(0),
            d_state.T @ self.h0,
            d_state.sum(0),
        )
