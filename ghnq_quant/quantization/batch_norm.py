"""Fold batch norm into the convolution before it, again for every batch.

The paper's equation 1: w_fold = γ w / sqrt(σ² + ε), quantized after folding. With the statistics of
the current batch the convolution runs twice, the first time with the float weight to find them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghnq_quant.errors import DataError
from ghnq_quant.quantization.channel_statistics import batch_statistics, channel_statistics
from ghnq_quant.quantization.convolution import Geometry, convolution, convolve
from ghnq_quant.quantization.folding import (
    EQUATION_1,
    Folding,
    factor_and_shift,
    folded_weight,
    ignoring_constants,
    scaled,
)
from ghnq_quant.quantization.integer_bias import RoundBias, RoundsBias, rounding_of, unrounded
from ghnq_quant.quantization.memory_layout import fast_layout, in_layout_of
from ghnq_quant.quantization.processes import in_processes, shared_statistics
from ghnq_quant.quantization.scheme import BatchNormMode
from ghnq_quant.quantization.tracing import traced_with_statistics

Quantize = Callable[[Tensor], Tensor]


def has_running_statistics(bn: _BatchNorm) -> bool:
    """Whether ``bn`` has running statistics of at least one batch; on the meta device it has not."""
    if bn.running_mean is None or bn.running_mean.is_meta:
        return False
    if torch.compiler.is_compiling():
        return traced_with_statistics(bn)
    return bn.num_batches_tracked is None or int(bn.num_batches_tracked) > 0


class FoldsBatchNorm(RoundsBias):
    """Mixin for convolutions that fold a batch norm into the weight they quantize.

    The batch norm keeps its place in the model and is not a child of this layer, so it is trained,
    saved and moved only once. Copies and pickles of the model keep the two together.

    Attributes:
        mode: the statistics to fold in eval.
        limit: the scheme's ``channel_limit``.
    """

    weight: Tensor
    mode: BatchNormMode
    limit: float | None = None
    _folded: tuple[nn.BatchNorm2d]  # a module would become a child, a tuple does not
    _norm_name: str = ""

    def fold(self, bn: nn.BatchNorm2d, name: str = "") -> None:
        """Fold ``bn`` from now on; errors refer to it by ``name``, its name in the model."""
        self._folded, self._norm_name = (bn,), name

    @property
    def bn(self) -> nn.BatchNorm2d:
        """The batch norm."""
        return self._folded[0]

    def folded_weight(self) -> Tensor:
        """The weight with the running statistics, if any, folded in; its shape is unchanged."""
        bn = self.bn
        mean, variance = bn.running_mean, bn.running_var
        if mean is None or variance is None or not has_running_statistics(bn):
            return self.weight
        variance = ignoring_constants(mean, variance)
        return folded_weight(self.weight, bn, variance, self.limit)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, folded batch norm, eval statistics={self.mode}"
        return text if self.limit is None else f"{text}, channel limit={self.limit}"


def conv_batch_norm(
    x: Tensor,
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    quantize: Quantize,
    mode: BatchNormMode,
    *,
    limit: float | None = None,
    straight_through: bool = True,
) -> Tensor:
    """Convolution with batch norm folded into its quantized weight.

    Args:
        x: (N, C_in, H, W), quantized.
        conv: the convolution; its own ``forward`` is not called. It may round the folded bias.
        bn: the batch norm; its parameters and running statistics are used and updated as in its own
            forward, and ``bn.training``, not ``conv.training``, says whether this is training.
        quantize: quantizes the folded weight.
        mode: the statistics to use in eval; the batch's, if there are no running ones yet. With
            ``"running"`` a filter whose channel has no variance is folded to zero: its output, β,
            stays the same, but it no longer sets the range of the others.
        limit: the scheme's ``channel_limit``.
        straight_through: whether ``quantize`` has the identity as its gradient and no parameters of
            its own, so that forward and backward can share most of their work.

    Returns:
        (N, C_out, H', W')

    Raises:
        DataError: there is only one value per channel in training.

    Example:
        >>> conv, bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        >>> conv_batch_norm(torch.zeros(2, 3, 8, 8), conv, bn, torch.round, "running").shape
        torch.Size([2, 8, 6, 6])
    """
    x = fast_layout(x, conv.weight)
    if bn.training or mode == "batch" or not has_running_statistics(bn):
        folding = Folding(mode == "running", limit)
        return _with_batch_statistics(x, conv, bn, quantize, straight_through, folding)
    weight, bias = fold_running_statistics(conv, bn, limit)
    quantized = quantize(weight)
    return conv._conv_forward(x, quantized, rounding_of(conv)(bias, weight))


def fold_running_statistics(
    conv: nn.Conv2d, bn: nn.BatchNorm2d, limit: float | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (C_out, …) and bias (C_out,) of the single convolution that equals ``conv`` and ``bn``
    in eval; ``bn`` must have running statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return _folded(conv, bn, bn.running_mean, bn.running_var, Folding(True, limit))


def _folded(
    conv: nn.Conv2d, bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor, folding: Folding
) -> tuple[Tensor, Tensor]:
    factor, shift, _ = factor_and_shift(
        conv.weight, mean, variance, bn.weight, bn.bias, bn.eps, folding
    )
    if conv.bias is not None:
        shift = torch.addcmul(shift, conv.bias, factor)
    return scaled(conv.weight, factor), shift


def _update_running_statistics(
    bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int
) -> None:
    """Update as ``bn``'s own forward does, from mean and biased variance of ``count`` values."""
    if not bn.training or bn.running_mean is None or bn.running_var is None:
        return
    momentum = bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    if momentum is None:
        assert bn.num_batches_tracked is not None
        momentum = 1.0 / float(bn.num_batches_tracked)
    bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
    unbiased = variance * (count / max(count - 1, 1))
    bn.running_var.lerp_(unbiased.to(bn.running_var.dtype), momentum)


def _with_batch_statistics(
    x: Tensor,
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    quantize: Quantize,
    straight_through: bool,
    folding: Folding,
) -> Tensor:
    padding = conv.padding
    if isinstance(padding, str) or conv.padding_mode != "zeros":
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
        padding = (0, 0)
    geometry = Geometry(conv.stride, padding, conv.dilation, conv.groups)
    places = math.prod(geometry.output_size(x.shape[2:], conv.weight.shape[2:]))
    if bn.training and len(x) * places == 1:
        name = getattr(conv, "_norm_name", "")
        which = f"batch norm {name!r}" if name else f"a batch norm of {bn.num_features} channels"
        raise DataError(
            f"{which} got one value per channel in training, which has no variance: use batches of "
            "more images (drop_last=True in the loader) or larger images"
        )
    parameters = conv.weight, conv.bias, bn.weight, bn.bias
    if bn.training and isinstance(bn, nn.SyncBatchNorm) and in_processes(bn.process_group):
        z = F.conv2d(x, conv.weight, conv.bias, *geometry)
        variance, mean, count = shared_statistics(_full(z, conv.weight), bn.process_group)
        weight, shift = _folded(conv, bn, mean, variance, folding)
        _update_running_statistics(bn, mean.detach(), variance.detach(), count)
        quantized = quantize(weight)
        return F.conv2d(x, quantized, rounding_of(conv)(shift, weight), *geometry)
    y, mean, variance = conv_batch_statistics_norm(
        x,
        *parameters,
        bn.eps,
        geometry,
        quantize,
        straight_through=straight_through,
        folding=folding,
        round_bias=rounding_of(conv),
    )
    _update_running_statistics(bn, mean, variance, y.numel() // y.shape[1])
    return y


def conv_batch_statistics_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    geometry: Geometry,
    quantize: Quantize,
    *,
    straight_through: bool = True,
    folding: Folding = EQUATION_1,
    round_bias: RoundBias = unrounded,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`conv_batch_norm` with the statistics of the batch, as a function of all its inputs.

    Args:
        weight, bias: the convolution's parameters.
        gamma, beta, eps: the batch norm's parameters.
        round_bias: rounds the folded bias, given the folded weight.

    Returns:
        (N, C_out, H', W'), and each channel's mean and biased variance, without gradient.
    """
    if straight_through and not torch.is_autocast_enabled(x.device.type):
        if torch.compiler.is_compiling():  # the compiler fuses on its own
            return _traced(
                *(x, weight, bias, gamma, beta, eps, geometry, quantize, folding, round_bias)
            )
        y, mean, variance = _ConvBatchNorm.apply(
            *(x, weight, bias, gamma, beta, eps, geometry, quantize, folding, round_bias)
        )
        with torch.no_grad():
            return y, mean if bias is None else mean + bias, variance
    z = convolve(x, weight, bias, geometry)
    mean, variance = channel_statistics(_full(z, weight))
    factor, shift, _ = factor_and_shift(weight, mean, variance, gamma, beta, eps, folding)
    if bias is not None:
        shift = torch.addcmul(shift, bias, factor)
    folded = scaled(weight, factor)
    quantized = quantize(folded)
    y = convolve(x, quantized, round_bias(shift, folded), geometry)
    return y, mean.detach(), variance.detach()


def _traced(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    geometry: Geometry,
    quantize: Quantize,
    folding: Folding,
    round_bias: RoundBias,
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`_ConvBatchNorm` for a compiler: the float batch norm, plus a convolution with the
    weight's quantization error, through which the weight gets no gradient."""
    z = F.conv2d(x, weight, bias, *geometry)
    variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
    factor, shift, _ = factor_and_shift(weight, mean, variance, gamma, beta, eps, folding)
    with torch.no_grad():
        folded = scaled(weight, factor)
        error = quantize(folded) - folded
    shift = round_bias(shift, folded)
    y = torch.addcmul(shift.view(-1, 1, 1), z, factor.view(-1, 1, 1))
    return y + F.conv2d(x, error, None, *geometry), mean.detach(), variance.detach()


def _full(z: Tensor, weight: Tensor) -> Tensor:
    """``z`` in the parameters' dtype, in which statistics are kept: autocast's is less precise."""
    return z.to(weight.dtype)


class _ConvBatchNorm(torch.autograd.Function):
    """Float convolution, its statistics, folding, quantization and the quantized convolution in
    one function.

    With a straight-through quantizer the gradient is that of a plain convolution and batch norm,
    plus the input's gradient through the convolution with the quantization error. So a single
    weight gradient serves both convolutions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        geometry: Geometry,
        quantize: Quantize,
        folding: Folding,
        round_bias: RoundBias,
    ) -> tuple[Tensor, Tensor, Tensor]:
        convolve = convolution(x, weight, geometry)
        weight = convolve.arranged(weight)
        z = convolve(weight)  # its bias would only shift the mean
        mean, variance = batch_statistics(z)
        factor, shift, caps = factor_and_shift(weight, mean, variance, gamma, beta, eps, folding)
        folded = scaled(weight, factor)
        quantized = quantize(folded)
        y = convolve(quantized, round_bias(shift, folded))
        error = None
        if ctx.needs_input_grad[0] and quantized is not folded:
            error = torch.sub(quantized, folded, out=folded)
        if caps is not None:
            gamma = caps if gamma is None else gamma * caps
        inverse_std = (variance + eps).rsqrt_()
        ctx.save_for_backward(x, weight, bias, gamma, z, mean, inverse_std, error, caps)
        ctx.eps, ctx.geometry = eps, geometry
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gamma, z, mean, inverse_std, error, caps = ctx.saved_tensors
        of_x, of_weight, of_bias, of_gamma, of_beta, *_ = ctx.needs_input_grad
        if grad is None:
            return (None,) * 10
        grad = in_layout_of(z, grad)
        of_norm = [True, of_gamma, of_beta]
        through_norm, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, z, gamma, None, None, mean, inverse_std, True, ctx.eps, of_norm
        )
        if of_gamma and caps is not None:
            grad_gamma = grad_gamma * caps
        convolve = convolution(x, weight, ctx.geometry)
        grad_weight = convolve.grad_weight(through_norm) if of_weight else None
        grad_x = None
        if of_x:
            terms = [(through_norm, weight)]
            grad_x = convolve.grad_input(terms if error is None else [*terms, (grad, error)])
        grad_bias = torch.zeros_like(bias) if of_bias else None
        return grad_x, grad_weight, grad_bias, grad_gamma, grad_beta, *(None,) * 5
