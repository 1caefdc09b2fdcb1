"""Scaling and tiling of decoded tensors to the size of a parameter (GHN-2, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def fan_in_scale(shape: Sequence[int]) -> float:
    """sqrt(β / fan-in) of a weight: β = 2 before a ReLU, 1 for depthwise and 1×k convolutions."""
    fan_in = math.prod(shape[1:])
    no_relu = len(shape) == 4 and (shape[1] == 1 or shape[2] < shape[3])
    return math.sqrt((1.0 if no_relu else 2.0) / fan_in)


def norm_weight(p: Tensor) -> Tensor:
    """Turn decoded values into weights of a norm layer, in (0, 2)."""
    return 2 * (p / 2).sigmoid()


def bias(p: Tensor) -> Tensor:
    """Turn decoded values into biases, in (−1, 1)."""
    return (p / 5).tanh()


def tile(w: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat ``w`` along output channels, then input channels, and crop it to ``shape``.

    Returns ``w`` itself, even a view, if it has that shape.

    Example:
        >>> import torch
        >>> tile(torch.tensor([1.0, 2.0]), (5,))
        tensor([1., 2., 1., 2., 1.])
    """
    if w.shape == shape:
        return w
    result: Tensor = _Tile.apply(w, tuple(shape))
    return result


class _Tile(torch.autograd.Function):
    """Writes every element once, into memory of the result's size."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.have = w.shape
        tiled = w.new_empty(shape)
        rows, w = tiled[: w.shape[0]], w[: shape[0]]
        if w.dim() > 1:
            times, rest = divmod(shape[1], w.shape[1])
            repeated = rows[:, : shape[1] - rest].view(len(rows), times, *w.shape[1:])
            repeated.copy_(w.unsqueeze(1))
            if rest:
                rows[:, -rest:].copy_(w[:, :rest])
        else:
            rows.copy_(w)
        if shape[0] > len(rows):
            for block in tiled.split(len(rows))[1:]:
                block.copy_(rows[: block.shape[0]])
        return tiled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        d_w = grad.new_zeros(ctx.have)
        first, *blocks = grad.split(len(d_w))
        rows = first.clone()
        for block in blocks:
            rows[: len(block)] += block
        if rows.dim() == 1:
            d_w[: len(rows)] = rows
        else:
            for part in rows.split(d_w.shape[1], dim=1):
                d_w[: len(rows), : part.shape[1]] += part
        return d_w, None


def tile_vectors(p: Tensor, size: int) -> Tensor:
    """The same for a batch of vectors: (..., n) to (..., ``size``)."""
    if size > p.shape[-1]:
        p = p.repeat(*(1,) * (p.dim() - 1), -(-size // p.shape[-1]))
    return p[..., :size]
