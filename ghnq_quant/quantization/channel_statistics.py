"""Mean and variance of each channel, as batch norm computes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def batch_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of z (N, C, H, W), without gradient."""
    if z.device.type != "cpu":
        variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
        return mean, variance
    channels = z.shape[1]
    groups = 1
    if z.is_contiguous(memory_format=torch.channels_last):
        # Rows of several pixels mean shorter sums, so less rounding, and longer vectors.
        count = z.numel() // channels
        groups = math.gcd(count, 64) if count > 1024 else 1
        z = z.permute(0, 2, 3, 1).reshape(count // groups, groups * channels, 1, 1)
    mean, variance = torch.batch_norm_update_stats(z, None, None, 0.0)
    if groups == 1:
        return mean, variance
    mean, variance = mean.view(groups, channels), variance.view(groups, channels).mean(0)
    total = mean.mean(0)
    return total, variance.add_((mean - total).square_().mean(0))


def channel_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`batch_statistics` with gradient.

    Example:
        >>> channel_statistics(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
        (tensor([3.]), tensor([4.]))
    """
    if torch.compiler.is_compiling():
        variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
        return mean, variance
    statistics: tuple[Tensor, Tensor] = _Statistics.apply(z)
    return statistics


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = batch_statistics(z)
        ctx.save_for_backward(z, mean)
        return mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        z, mean = ctx.saved_tensors
        count = z.numel() / len(mean)
        slope = of_variance * (2 / count)
        shift = of_mean / count - mean * slope
        return torch.addcmul(shift.view(-1, 1, 1), z, slope.view(-1, 1, 1))
