"""Scaling and tiling of decoded tensors to a network's parameters (GHN-2, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def fan_in_scale(shape: Sequence[int]) -> float:
    """sqrt(β / fan-in) of a weight: β = 2 before a ReLU, 1 for depthwise and 1×k convolutions."""
    fan_in = math.prod(shape[1:])
    no_relu = len(shape) == 4 and (shape[1] == 1 or shape[2] < shape[3])
    return math.sqrt((1.0 if no_relu else 2.0) / fan_in)


def norm_weight(p: Tensor) -> Tensor:
    """Decoded values to weights of a norm layer, in (0, 2)."""
    return 2 * (p / 2).sigmoid()


def bias(p: Tensor) -> Tensor:
    """Decoded values to biases, in (−1, 1)."""
    return (p / 5).tanh()


def tile(w: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat ``w`` along output channels, then input channels, and crop it to ``shape``.

    A view of ``w`` where nothing has to be repeated.

    Example:
        >>> import torch
        >>> tile(torch.tensor([1.0, 2.0]), (5,))
        tensor([1., 2., 1., 2., 1.])
    """
    channels = min(2, w.dim())
    repeats = [-(-shape[d] // w.shape[d]) for d in range(channels)]
    if max(repeats) > 1:
        sizes: list[int] = []
        for d in range(channels):
            w = w.unsqueeze(2 * d)
            sizes += [repeats[d], w.shape[2 * d + 1]]
        kernel = w.shape[2 * channels :]
        w = w.expand(*sizes, *kernel)
        w = w.reshape(*(repeats[d] * sizes[2 * d + 1] for d in range(channels)), *kernel)
    for d in range(channels):
        w = w.narrow(d, 0, shape[d])
    return w
