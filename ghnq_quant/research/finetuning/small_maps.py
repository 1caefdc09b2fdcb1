"""Convolutions with maps that are small relative to their kernels, in forms that are fast on CPUs.

oneDNN has no kernel for a map smaller than the convolution's reach, nor for the weight gradient of a
dilated convolution; it multiplies matrices instead, one for each image and group. In networks for
small images these few layers took a quarter of a training step.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.quantization.convolution import Geometry


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``conv2d`` with an odd kernel and "same" padding: the same sums in another order.

    Args:
        x: (N, C, H, W).
        weight: (C_out, C / groups, k, k).
        bias: (C_out,) or None.
        geometry: stride, padding, dilation and groups.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 4, 2, 2).double(), torch.randn(4, 1, 5, 5).double()
        >>> geometry = Geometry((1, 1), (4, 4), (2, 2), 4)
        >>> torch.allclose(convolve(x, weight, None, geometry), torch.conv2d(x, weight, None, *geometry))
        True
    """
    dilation = geometry.dilation[0]
    weight = _taps_that_reach(weight, x, dilation)
    side = weight.shape[2]
    if side == 1 and geometry.groups == len(weight) == x.shape[1] and geometry.stride == (1, 1):
        y = x * weight.view(1, -1, 1, 1)
        return y if bias is None else y + bias.view(1, -1, 1, 1)
    padding = side // 2
    if dilation == 2 and side > 1 and not (x.shape[2] % 2 or x.shape[3] % 2):
        if geometry.stride == (2, 2):  # every other row and column
            return F.conv2d(x[:, :, ::2, ::2], weight, bias, 1, padding, 1, geometry.groups)
        if geometry.stride == (1, 1):
            y = F.conv2d(_apart(x), weight, bias, 1, padding, 1, geometry.groups)
            return _together(y)
    reach = dilation * padding
    return F.conv2d(x, weight, bias, geometry.stride, reach, geometry.dilation, geometry.groups)


def _taps_that_reach(weight: Tensor, x: Tensor, dilation: int) -> Tensor:
    """The weight without outer taps that meet only padding at every position."""
    half = weight.shape[2] // 2
    kept = min(half, (max(x.shape[2:]) - 1) // dilation)
    return weight[:, :, half - kept : half + kept + 1, half - kept : half + kept + 1]


def _apart(x: Tensor) -> Tensor:
    """Even and odd rows and columns as separate images: (N, C, H, W) to (4N, C, H / 2, W / 2)."""
    n, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2)


def _together(parts: Tensor) -> Tensor:
    """The reverse of :func:`_apart`."""
    n, c, h, w = parts.shape
    x = parts.permute(0, 2, 3, 1).reshape(n // 4, 2, 2, h, w, c).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
