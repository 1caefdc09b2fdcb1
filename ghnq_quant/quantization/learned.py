"""Quantization with learned scale and offset: LSQ (Esser et al. 2020) or, with a zero point, LSQ+
(Bhalgat et al. 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ghnq_quant.quantization.affine import (
    PIECE,
    along_channels,
    in_pieces,
    power_of_two,
    quantize_dequantize,
)
from ghnq_quant.quantization.quantizer import Quantizer

#: Where the squareplus bends: distance from zero as a share of the initial scale, squared.
_BEND = 1 / 16


def scale_parameter(scale: Tensor) -> Tensor:
    """The parameter for which :func:`positive_scale` returns ``scale`` at the start."""
    return scale * (1 - _BEND / 4)


def positive_scale(parameter: Tensor, start: Tensor, quantizer: Quantizer) -> Tensor:
    """The scale that belongs to a parameter of about its value; positive whatever an optimizer does.

    scale = start · (t + √(t² + 1/16)) / 2 with t = parameter / start, the squareplus of Barron (2021).
    Its slope is 64/65 at the start and falls to 0 with the scale, with ½ at an eighth of the initial
    scale. So a step that would have crossed zero makes the scale small, and small scales move slowly.

    Args:
        parameter, start: scalars, or (C,) per channel; ``start`` is the initial scale.

    Example:
        >>> start = torch.tensor(0.5)
        >>> parameter = scale_parameter(start)
        >>> [float(positive_scale(p, start, Quantizer(4))) for p in (parameter, -parameter)]
        [0.5, 0.0078125]
    """
    t = parameter / start
    size = t.abs() + (t.square() + _BEND).sqrt()
    scale = start * torch.where(t > 0, size / 2, _BEND / 2 / size)  # the same, without cancellation
    limits, highest = torch.finfo(scale.dtype), quantizer.levels[1]
    most = (1 - 2 * limits.eps) * limits.max / highest  # levels must be finite values
    if not quantizer.power_of_two:
        return scale.clamp(limits.tiny, most)
    scale = scale.clamp(limits.tiny, 2.0 ** (math.frexp(most)[1] - 1))
    return scale + (power_of_two(scale) - scale).detach()


def learned_zero_point(offset: Tensor | None, scale: Tensor, quantizer: Quantizer) -> Tensor:
    """round(−offset / scale), clamped to the levels, without gradient; 0 without an offset. LSQ+ does
    not round it; here zero has a level of its own, as with every other range."""
    scale = scale.detach()
    if offset is None:
        return torch.zeros_like(scale)
    return (-offset.detach() / scale).round_().clamp_(0, quantizer.levels[1])


def learned_quantize(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    zero_point: Tensor,
    quantizer: Quantizer,
    count: int,
) -> Tensor:
    """x̂ of :func:`~ghnq_quant.quantization.quantize_dequantize` with the gradients of LSQ and LSQ+.

    Within the range the gradient of x is 1, that of the scale round(x / scale) − x / scale, and that of
    the offset 0; outside it they are 0, the lowest or highest level, and 1. The gradients of scale and
    offset are multiplied by 1 / √(count · highest level).

    Args:
        x: of any shape; (C, …) per channel.
        scale, offset: scalars, or (C,); the offset, the value of level 0, is None if symmetric.
        zero_point: from :func:`learned_zero_point`.
        count: how many values share a scale, N in the papers.
    """
    y: Tensor = _Learned.apply(x, scale, offset, zero_point, quantizer, count)
    return y


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        zero_point: Tensor,
        quantizer: Quantizer,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.quantizer, ctx.count = quantizer, count
        return quantize_dequantize(x, scale, zero_point, quantizer)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad = torch.empty_like(x).copy_(grad)  # in the layout of x
        pieces = _pieces((x, grad, grad_x, scale, zero_point))
        totals = [_gradients(piece, ctx.quantizer) for piece in pieces]
        join: Any = torch.cat if scale.dim() else sum
        factor = 1 / math.sqrt(ctx.count * ctx.quantizer.levels[1])
        of_scale, of_offset = (join(parts) * factor for parts in zip(*totals, strict=True))
        return grad_x, of_scale, of_offset if ctx.needs_input_grad[2] else None, None, None, None


#: x, the output's gradient, the tensor for x's gradient, scale and zero point.
_Piece = tuple[Tensor, ...]


def _pieces(whole: _Piece) -> list[_Piece]:
    """Pieces that fit a CPU's cache, as in :func:`in_pieces`; per channel, a few channels each."""
    *tensors, scale, zero_point = whole
    if not scale.dim():
        return [(*piece, scale, zero_point) for piece in in_pieces(*tensors)]
    if torch.compiler.is_compiling() or scale.device.type != "cpu":
        return [whole]
    channels = max(1, PIECE // tensors[0][0].numel())
    return list(zip(*(tensor.split(channels) for tensor in whole), strict=True))


def _gradients(piece: _Piece, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Gradients of scale and offset, summed but not yet multiplied by the factor; writes x's."""
    x, grad, grad_x, scale, zero_point = piece
    lowest, highest = quantizer.levels
    shift = along_channels(zero_point, x)
    steps = x / along_channels(scale, x)
    clamped = torch.minimum(torch.maximum(steps, lowest - shift), highest - shift)
    beyond = steps.sub_(clamped)  # zero within the ends
    # zero where ``beyond`` is at least the smallest number; on CPU a boolean mask would take longer
    # than everything else here
    least = torch.finfo(x.dtype).tiny * torch.finfo(x.dtype).eps
    torch.ops.aten.hardtanh_backward(grad, beyond, -least, least, grad_input=grad_x)
    of_ends = grad - grad_x
    rounding = torch.round(clamped).sub_(clamped)

    def total(values: Tensor) -> Tensor:
        dims = tuple(range(1, x.dim())) if scale.dim() else None
        return values.sum(dims, dtype=scale.dtype)

    of_offset = total(of_ends)
    return total(rounding.mul_(grad).addcmul_(clamped.add_(shift), of_ends)), of_offset
