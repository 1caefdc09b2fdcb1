"""Ranges and batch statistics across several training processes (``torch.distributed``)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def in_processes(group: Any = None) -> bool:
    """Whether this process trains in a group with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def of_all_processes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The widest of the processes' ranges, as if one process had all images.

    With gradients disabled it is the process's own, so calibration need not run in all of them.
    """
    if not (in_processes() and torch.is_grad_enabled()):
        return low, high
    ends = torch.stack((-low, high))
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]


def shared_statistics(z: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
    """What ``nn.SyncBatchNorm`` normalizes with: the (biased) variance and mean of each channel of
    z (N, C, H, W) over all processes of a group, with gradient, and the number of values."""
    count = z.numel() // z.shape[1]
    variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    total: Tensor = _Sum.apply(torch.cat((mean * count, mean.new_tensor([count]))), group)
    everything = total[-1].detach()
    shared = total[:-1] / everything
    squares: Tensor = _Sum.apply((variance + (mean - shared).square()) * count, group)
    return squares / everything, shared, int(everything)


class _Sum(torch.autograd.Function):
    """The sum over a group's processes; the gradient is then the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        values = values.clone()
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
