"""The tensorwise, asymmetric, uniform quantizer (Jacob et al. 2018, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ghnq_quant.quantization.scheme import FLOAT_BITS, check_bits


@dataclass(frozen=True)
class QuantParams:
    """A quantizer whose range is known: the levels 0 … 2^bits − 1 stand for (level − zero point) ·
    scale.

    Attributes:
        scale, zero_point: scalars of the quantized tensor's dtype.
        bits: 2 to 8.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    def levels(self, x: Tensor) -> Tensor:
        """The level of each element of ``x``, as uint8."""
        level = torch.round(x / self.scale) + self.zero_point
        return level.clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, levels: Tensor) -> Tensor:
        """What levels stand for."""
        return (levels - self.zero_point) * self.scale


def tensor_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """[min(x, 0), max(x, 0)] of a tensor of any shape, as two scalars without gradient."""
    low, high = _in_memory_order(x.detach()).aminmax()
    return low.clamp_max_(0), high.clamp_min_(0)


def _in_memory_order(x: Tensor) -> Tensor:
    """The elements of a dense tensor as a flat view; ``x`` itself where its layout has gaps."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x.as_strided((x.numel(),), (1,))
    return x


def affine_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the levels 0 … 2^bits − 1 over the range [low, high] around zero.

    scale = (high − low) / (2^bits − 1) and zero point = round(−low / scale), clamped to the
    levels; an empty range has scale 1. Both are scalars of the range's dtype.

    Example:
        >>> affine_parameters(torch.tensor(-1.0), torch.tensor(2.0), bits=2)
        (tensor(1.), tensor(1.))
    """
    levels = 2**bits - 1
    span = high - low
    scale = span / levels
    limits = torch.finfo(scale.dtype)
    if scale.device.type == "cpu" and 0 < scale.item() < limits.max / 512:
        return scale, _zero_point(low, scale, levels)  # on CPU what follows costs more than asking
    # a span of more than the largest float is divided before it overflows
    scale = torch.where(span.isinf(), high / levels - low / levels, scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = _zero_point(low, scale, levels)
    # the ends of the levels lie up to half a level outside of the range, which must not be infinite
    most = torch.maximum(zero_point, levels - zero_point)
    return torch.minimum(scale, (1 - 2 * limits.eps) * limits.max / most), zero_point


def _zero_point(low: Tensor, scale: Tensor, levels: int) -> Tensor:
    return (-low / scale).round_().clamp_(0, levels)


def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """x̂ = (clamp(round(x / scale) + zero point, 0, 2^bits − 1) − zero point) · scale.

    Rounds half to even; the gradient passes straight through. ``scale`` and ``zero_point`` are
    scalars without gradient.
    """
    result: Tensor = _StraightThrough.apply(x, scale, zero_point, 2**bits - 1)
    return result


#: Elements that a CPU thread takes through all passes at a time: source and result fit its cache.
_PIECE = 2**17


class _StraightThrough(torch.autograd.Function):
    # On CPU these in-place passes take less than a tenth of the time of torch's own fake
    # quantization, which computes and saves a mask that a straight-through gradient has no use for.
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, levels: int) -> Tensor:
        result = torch.empty_like(x)
        zero: Any = zero_point
        pieces = [(x, result)]
        if x.device.type == "cpu":
            zero = zero_point.item()  # faster, and there is no device to wait for
            size = _PIECE * torch.get_num_threads()
            flat = _in_memory_order(x), _in_memory_order(result)
            if x.numel() > size and x.stride() == result.stride() and flat[0].dim() == 1:
                pieces = list(zip(flat[0].split(size), flat[1].split(size), strict=True))
        for source, target in pieces:
            torch.div(source, scale, out=target).round_().clamp_(-zero, levels - zero).mul_(scale)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None


def fake_quantize(x: Tensor, bits: int) -> Tensor:
    """Quantize a tensor over its own range and return the values that the levels stand for.

    Args:
        x: of any shape.
        bits: 2 to 8; 32 returns ``x``.

    Raises:
        SchemeError: no such bit width.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.4, 2.0]), bits=2)
        tensor([-1.,  0.,  2.])
    """
    if check_bits(bits) == FLOAT_BITS or x.numel() == 0:
        return x
    return quantize_dequantize(x, *affine_parameters(*tensor_range(x), bits), bits)
