"""Quantization over a tensor's own range, with a gradient that knows what the range costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghnq_quant.quantization.affine import affine_parameters, quantize_dequantize, tensor_range
from ghnq_quant.quantization.memory_layout import in_layout_of
from ghnq_quant.quantization.quantizer import FLOAT_BITS


def fake_quantize_with_range_gradient(x: Tensor, bits: int) -> Tensor:
    """:func:`ghnq_quant.quantization.fake_quantize`, whose gradient also reaches the range.

    With the straight-through gradient alone the largest and smallest element never learn that they
    set the step for all others. Here the gradient of the step, Σ g (x̂ − x) / step as in LSQ (Esser
    et al. 2020, equation 3), is passed on to them, divided evenly where several are equal.

    Args:
        x: of any shape.
        bits: of the default quantizer; 32 return ``x``.

    Example:
        >>> x = torch.tensor([-1.0, 0.4, 2.0], requires_grad=True)
        >>> fake_quantize_with_range_gradient(x, 2).sum().backward()
        >>> x.grad  # the step is 1, and 0.4 is rounded to 0
        tensor([1.1333, 1.0000, 0.8667])
    """
    if bits == FLOAT_BITS or x.numel() == 0:
        return x
    quantized: Tensor = _RangeGradient.apply(x, bits)
    return quantized


class _RangeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        low, high = tensor_range(x)
        quantized = quantize_dequantize(x, *affine_parameters(low, high, bits), bits)
        ctx.save_for_backward(x, quantized, low, high)
        return quantized

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, quantized, low, high = ctx.saved_tensors
        grad = in_layout_of(x, grad)
        tiny = torch.finfo(x.dtype).tiny
        of_range = (quantized - x).mul_(grad).sum() / (high - low).clamp(min=tiny)
        for end, slope in ((high, of_range), (low, -of_range)):
            if x.is_cpu and end == 0:  # no element sets an end at zero; a GPU would have to wait
                continue
            # as numbers, with which a CPU computes several times as fast as with truth values
            extreme = torch.eq(x, end, out=torch.empty_like(x))
            each = slope * (end != 0) / extreme.sum().clamp(min=1)
            grad = torch.addcmul(grad, extreme, each)
        return grad, None
