"""The order in which a tensor's elements are stored, which decides how fast CPUs are with it."""

from __future__ import annotations

import torch
from torch import Tensor


def fast_layout(x: Tensor, weight: Tensor) -> Tensor:
    """On CPU, ``x`` in the memory layout in which its convolution and batch norm are fastest.

    Convolutions, and channel statistics even more, are faster in channels-last. But oneDNN then
    converts the weight on each call, which costs more than it gains if the weight is large.
    """
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        return x
    channels_last = x.numel() >= 2 * weight.numel()
    return x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def in_layout_of(x: Tensor, grad: Tensor) -> Tensor:
    """A gradient in the memory layout of ``x``, of the same shape."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return grad.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
