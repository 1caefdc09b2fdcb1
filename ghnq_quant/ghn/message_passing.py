"""Gated message passing along a network's graph, forward and backward (GHN-2, eq. 3 and 4).

The sweep is sequential: a node waits for all nodes before it. Nodes of one level (equal longest
path from the input), over all graphs of a batch, are updated together; each node's two transformed
features are computed once and gathered with one matrix product; the part of the GRU cell that
depends on a node's old state is computed for all nodes at once. The sweep is one autograd function
whose backward runs over the levels in reverse and takes the parameters' gradients as whole matrix
products at its end.

It runs in float64, whatever the hypernetwork's own precision: rounding grows along the hundreds of
steps of a deep network, and matrices this small cost the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ghnq_quant.capture import ArchGraph


def sweep_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Schedule:
    """How the nodes of a batch of graphs are swept.

    Attributes:
        order: (N,) positions of the batch's nodes sorted by level.
        level_sizes: how many nodes each level has.
        gather: (N, 2N) weights of messages; row v, in the sorted order, holds at column 2u whether
            u is a 1-hop neighbour that v receives from and at column 2u + 1 the inverse of its
            distance.
        gather_back: the same for the reversed edges, with nodes in the reversed order.
    """

    order: Tensor
    level_sizes: tuple[int, ...]
    gather: Tensor
    gather_back: Tensor


def schedule(graphs: Sequence[ArchGraph], virtual_edges: int, device: torch.device) -> Schedule:
    """Lay the graphs of a batch side by side and sort all nodes by level."""
    levels = np.concatenate([graph.levels for graph in graphs])
    order = np.argsort(levels, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    gather = np.zeros((len(order), len(order), 2))
    offset = 0
    for graph in graphs:
        paths = graph.shortest_paths(virtual_edges)
        target, source = position[paths.target + offset], position[paths.source + offset]
        gather[target, source, 0] = paths.length == 1
        gather[target, source, 1] = 1.0 / paths.length
        offset += len(graph)
    back = np.ascontiguousarray(gather.transpose(1, 0, 2)[::-1, ::-1])
    dtype = sweep_dtype(device)
    return Schedule(
        order=torch.from_numpy(order).to(device),
        level_sizes=tuple(np.bincount(levels).tolist()),
        gather=torch.from_numpy(gather.reshape(len(order), -1)).to(device, dtype),
        gather_back=torch.from_numpy(back.reshape(len(order), -1)).to(device, dtype),
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

    def forward(self, x: Tensor, plan: Schedule) -> Tensor:
        """(N, C) features of a batch's nodes to their updated (N, C) features."""
        dtype = plan.gather.dtype
        weights = tuple(w.to(dtype) for w in self._weights())
        h = x[plan.order].to(dtype)
        h = _Sweep.apply(h, plan.gather, plan.level_sizes, *weights)
        h = _Sweep.apply(h.flip(0), plan.gather_back, plan.level_sizes[::-1], *weights).flip(0)
        return torch.empty_like(x).index_copy(0, plan.order, h.to(x.dtype))

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
    def forward(ctx: Any, h0: Tensor, gather: Tensor, sizes: tuple[int, ...], *w: Tensor) -> Tensor:
        w1, b1, w2, b2, w_ih, b_ih, w_hh, b_hh = w
        n, c = h0.shape
        gates_h = torch.addmm(b_hh, h0, w_hh.t())
        message, h = torch.empty_like(h0), torch.empty_like(h0)
        gates = h0.new_empty(n, 3 * c)
        hidden, feature = h0.new_empty(n, w1.shape[0]), h0.new_empty(n, w2.shape[0])
        feature_rows = feature.view(2 * n, c)
        w1_t, w2_t, w_ih_t = w1.t(), w2.t(), w_ih.t()
        rows = zip(
            *(t.split(sizes) for t in (gather, h0, gates_h, message, h, gates, hidden, feature)),
            strict=True,
        )
        start = 0
        for gather_l, h0_l, gates_h_l, m, h_l, g, t, f in rows:
            torch.mm(gather_l[:, : 2 * start], feature_rows[: 2 * start], out=m)
            torch.addmm(b_ih, m, w_ih_t, out=g)
            rz, new = g[:, : 2 * c], g[:, 2 * c :]
            rz.add_(gates_h_l[:, : 2 * c]).sigmoid_()
            new.addcmul_(g[:, :c], gates_h_l[:, 2 * c :]).tanh_()
            torch.lerp(new, h0_l, g[:, c : 2 * c], out=h_l)
            torch.addmm(b1, h_l, w1_t, out=t).relu_()
            torch.addmm(b2, t, w2_t, out=f).relu_()
            start += len(m)
        ctx.sizes = sizes
        ctx.save_for_backward(h0, gather, gates_h, message, h, gates, hidden, feature, *w)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        h0, gather, gates_h, message, h, gates, hidden, feature, *w = ctx.saved_tensors
        w1, _, w2, _, w_ih, _, w_hh, _ = w
        n, c = h0.shape
        r, z, new = gates.split(c, dim=1)
        # derivatives of the gates, for all nodes at once
        d_z = (h0 - new) * z * (1 - z)
        d_new = (1 - z) * (1 - new * new)
        d_r = d_new * gates_h[:, 2 * c :] * r * (1 - r)
        local = torch.cat((d_r, d_z, d_new), dim=1).view(n, 3, c)
        hidden_on, feature_on = (hidden > 0).to(h0.dtype), (feature > 0).to(h0.dtype)
        d_h, d_message = torch.empty_like(h), torch.empty_like(h)
        d_gates = h0.new_empty(n, 3, c)
        d_hidden, d_feature = torch.empty_like(hidden), torch.empty_like(feature)
        d_feature_rows = d_feature.view(2 * n, c)
        end = n
        for size in reversed(ctx.sizes):
            start = end - size
            level = slice(start, end)
            torch.mm(
                gather[end:, 2 * start : 2 * end].t(),
                d_message[end:],
                out=d_feature_rows[2 * start : 2 * end],
            )
            d_f, d_t, d_h_l = d_feature[level], d_hidden[level], d_h[level]
            d_f.mul_(feature_on[level])
            torch.mm(d_f, w2, out=d_t).mul_(hidden_on[level])
            torch.addmm(grad_h[level], d_t, w1, out=d_h_l)
            torch.mul(d_h_l.unsqueeze(1), local[level], out=d_gates[level])
            torch.mm(d_gates[level].view(size, 3 * c), w_ih, out=d_message[level])
            end = start
        d_gates_h = d_gates.clone()
        d_gates_h[:, 2].mul_(r)
        d_in, d_state = d_gates.view(n, 3 * c), d_gates_h.view(n, 3 * c)
        d_h0 = (d_h * z).addmm_(d_state, w_hh)
        return (
            d_h0,
            None,
            None,
            d_hidden.t() @ h,
            d_hidden.sum(0),
            d_feature.t() @ hidden,
            d_feature.sum(0),
            d_in.t() @ message,
            d_in.sum(0),
            d_state.t() @ h0,
            d_state.sum(0),
        )
