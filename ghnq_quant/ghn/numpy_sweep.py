"""Sweeps of message passing on the CPU, in NumPy with gradients written by hand.

A sweep is hundreds of steps of a dozen operations on a few rows each, so its cost is the cost of
calls, and NumPy's calls are several times faster than PyTorch's or a GPU's. (So ``dot`` stands for
``matmul``, which takes twice as long, and biases are added without broadcasting.) The part of the
GRU cell that depends on a node's old state is computed for all nodes at once. The gradient runs
over the levels in reverse; those of the weights are whole matrix products at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.autograd.function import once_differentiable

#: float32 or float64
Array = NDArray[Any]
_threads = ThreadpoolController()


def numpy_sweep(
    h: Tensor, gather: Tensor, level_sizes: tuple[int, ...], weights: Sequence[Tensor]
) -> Tensor:
    """Compute ``GatedGNN.sweep``, with ``weights`` stacked by ``GatedGNN`` and the dtype of ``h``."""
    swept: Tensor = _Sweep.apply(h, gather, level_sizes, *weights)
    return swept


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, gather: Tensor, sizes: tuple[int, ...], *w: Tensor) -> Tensor:
        with _in_numpy():
            ctx.swept = _Swept(h.numpy(), gather.numpy(), sizes, *(t.numpy() for t in w))
        return torch.from_numpy(ctx.swept.h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        with _in_numpy():
            d_h0, *d_weights = map(torch.from_numpy, ctx.swept.gradients(grad_h.numpy()))
        return d_h0, None, None, *d_weights


@contextmanager
def _in_numpy() -> Iterator[None]:
    """Use one thread, because a second one costs more than it gains on such small matrices, and no
    warnings about values that are not finite: the result is checked at the end."""
    with _threads.limit(limits=1, user_api="blas"), np.errstate(all="ignore"):
        yield


class _Swept:
    """One sweep and what its gradient needs.

    Attributes:
        h: (N, C) new states.
        message: (N, C) received by each node.
        gates: (N, 3C) gates of the GRU cell after their nonlinearities: reset, update, new.
        gates_h: (N, 3C) the part of the gates that depends on the old state.
        hidden, feature: (N, C) and (N, 2C) activations of the two MLPs, after ReLU.
    """

    def __init__(self, h0: Array, gather: Array, sizes: tuple[int, ...], *weights: Array) -> None:
        from scipy.special import expit  # takes a fifth of a second to import, torch a second

        self.h0, self.gather, self.sizes, self.weights = h0, gather, sizes, weights
        w1, b1, w2, b2, w_ih, b_ih, w_hh, b_hh = weights
        n, c = h0.shape
        self.gates_h = gates_h = h0 @ w_hh.T + b_hh
        before = np.concatenate(
            (gates_h[:, : 2 * c] + b_ih[: 2 * c], np.tile(b_ih[2 * c :], (n, 1))), 1
        )
        empty = partial(np.empty, dtype=h0.dtype)
        self.message, self.h, self.gates = empty((n, c)), empty((n, c)), empty((n, 3 * c))
        self.hidden, self.feature = np.tile(b1, (n, 1)), np.tile(b2, (n, 1))
        feature_rows = self.feature.reshape(2 * n, c)
        w1_t, w2_t, w_ih_t = (np.ascontiguousarray(w.T) for w in (w1, w2, w_ih))
        start = 0
        for size in sizes:
            level = slice(start, start + size)
            m, h, g = self.message[level], self.h[level], self.gates[level]
            np.dot(gather[level, : 2 * start], feature_rows[: 2 * start], out=m)
            np.dot(m, w_ih_t, out=g)
            g += before[level]
            expit(g[:, : 2 * c], out=g[:, : 2 * c])
            new = g[:, 2 * c :]
            new += g[:, :c] * gates_h[level, 2 * c :]
            np.tanh(new, out=new)
            np.subtract(h0[level], new, out=h)
            h *= g[:, c : 2 * c]
            h += new
            t, f = self.hidden[level], self.feature[level]
            t += np.dot(h, w1_t)
            np.maximum(t, 0, out=t)
            f += np.dot(t, w2_t)
            np.maximum(f, 0, out=f)
            start += size

    def gradients(self, grad_h: Array) -> tuple[Array, ...]:
        """Gradients of the old states and the weights, given that of the new states."""
        w1, _, w2, _, w_ih, _, w_hh, _ = self.weights
        n, c = self.h0.shape
        r, z, new = self.gates[:, :c], self.gates[:, c : 2 * c], self.gates[:, 2 * c :]
        # derivatives of the gates, for all nodes at once
        d_z = (self.h0 - new) * z * (1 - z)
        d_new = (1 - z) * (1 - new * new)
        d_r = d_new * self.gates_h[:, 2 * c :] * r * (1 - r)
        local = np.stack((d_r, d_z, d_new), 1)
        hidden_on, feature_on = self.hidden > 0, self.feature > 0
        d_h, d_message = np.empty_like(self.h), np.empty_like(self.message)
        d_gates = np.empty_like(local)
        d_in = d_gates.reshape(n, 3 * c)
        d_hidden, d_feature = np.empty_like(self.hidden), np.empty_like(self.feature)
        d_feature_rows = d_feature.reshape(2 * n, c)
        end = n
        for size in reversed(self.sizes):
            start = end - size
            level = slice(start, end)
            columns = slice(2 * start, 2 * end)
            np.dot(self.gather[end:, columns].T, d_message[end:], out=d_feature_rows[columns])
            d_f, d_t, d_h_l = d_feature[level], d_hidden[level], d_h[level]
            d_f *= feature_on[level]
            np.dot(d_f, w2, out=d_t)
            d_t *= hidden_on[level]
            np.dot(d_t, w1, out=d_h_l)
            d_h_l += grad_h[level]
            np.multiply(d_h_l[:, None], local[level], out=d_gates[level])
            np.dot(d_in[level], w_ih, out=d_message[level])
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
