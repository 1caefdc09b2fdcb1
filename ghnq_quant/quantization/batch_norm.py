"""Folding of batch norm into the convolution before it, anew on every batch (design rule «Batch norm»).

The paper's equation 1: w_fold = γ w / sqrt(σ² + ε), quantized after folding; with the statistics of the
batch at hand the convolution runs twice, once with the float weight to find them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnq_quant.quantization.scheme import BatchNormMode

Conv = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def has_running_statistics(bn: nn.BatchNorm2d) -> bool:
    """Whether ``bn`` holds running statistics of at least one batch."""
    return bn.running_mean is not None and (
        bn.num_batches_tracked is None or int(bn.num_batches_tracked) > 0
    )


def conv_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn: nn.BatchNorm2d,
    conv: Conv,
    quantize: Callable[[Tensor], Tensor],
    mode: BatchNormMode,
) -> Tensor:
    """Convolution with batch norm folded into its quantized weight.

    Args:
        x: (N, C_in, H, W), quantized.
        weight: (C_out, C_in / groups, kh, kw), float.
        bias: (C_out,) of the convolution, or None.
        bn: the batch norm; its parameters and running statistics are used and updated as by its own
            forward, and it alone decides (``bn.training``) whether this batch's statistics count.
        conv: the convolution as a function of input, weight and bias.
        quantize: of the folded weight.
        mode: statistics in eval; those of the batch are used too while there are no running ones.

    Returns:
        (N, C_out, H', W')
    """
    if bn.training or mode == "batch" or not has_running_statistics(bn):
        variance, mean = _batch_statistics(conv(x, weight, bias), bn)
    else:
        assert bn.running_mean is not None and bn.running_var is not None
        variance, mean = bn.running_var, bn.running_mean
    factor = (variance + bn.eps).rsqrt()
    if bn.weight is not None:
        factor = factor * bn.weight
    shift = -mean if bias is None else bias - mean
    b_fold = shift * factor if bn.bias is None else torch.addcmul(bn.bias, shift, factor)
    return conv(x, quantize(weight * factor.view(-1, 1, 1, 1)), b_fold)


def _batch_statistics(z: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of each channel of z (N, C, H, W); updates running ones in training."""
    variance, mean = torch.var_mean(z, dim=(0, 2, 3), correction=0)
    if bn.training and bn.running_mean is not None and bn.running_var is not None:
        count = z.numel() // z.shape[1]
        with torch.no_grad():
            momentum = bn.momentum
            if bn.num_batches_tracked is not None:
                bn.num_batches_tracked.add_(1)
            if momentum is None:
                assert bn.num_batches_tracked is not None
                momentum = 1.0 / float(bn.num_batches_tracked)
            bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
            unbiased = variance * (count / max(count - 1, 1))
            bn.running_var.lerp_(unbiased.to(bn.running_var.dtype), momentum)
    return variance, mean


def conv2d_of(module: nn.Conv2d) -> Conv:
    """``module``'s convolution (stride, padding, groups, …) as a function of input, weight and bias."""
    return module._conv_forward
