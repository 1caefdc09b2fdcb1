"""Layers that compute on torch's quantized tensors with its integer kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ghnq_quant.deployment.engine import engine, exact_engine, quantized_tensor
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, stretch
from ghnq_quant.quantization.affine import QuantParams

#: A bias beyond this many steps of its accumulator leaves no room for the sum in 32 bits.
_LARGEST_BIAS = 2**30


class _Output(nn.Module):
    """Where a kernel's result lies: scale, zero point, and the levels it is clamped to.

    Args:
        qparams: of the result; torch's own levels are always 0 … 255, which fewer bits narrow, and
            128 above those of a signed quantizer.
        low, high: values that an activation function clamps the result to.
    """

    def __init__(
        self, qparams: QuantParams, low: float = -math.inf, high: float = math.inf
    ) -> None:
        super().__init__()
        self.bits = qparams.quantizer.bits
        self.scale = float(qparams.scale)
        shift = 128 if qparams.quantizer.signed else 0
        self.zero_point = int(qparams.zero_point) + shift
        bottom, top = (level + shift for level in qparams.quantizer.levels)
        self.lowest = self._level(low, bottom, bottom, top)
        self.highest = self._level(high, top, bottom, top)

    def _level(self, value: float, unbounded: int, bottom: int, top: int) -> int:
        if math.isinf(value):
            return unbounded
        return min(max(round(value / self.scale) + self.zero_point, bottom), top)

    def clamp(self, q: Tensor) -> Tensor:
        if (self.lowest, self.highest) == (0, 255):
            return q
        low, high = (
            (level - self.zero_point) * self.scale for level in (self.lowest, self.highest)
        )
        return torch.clamp(q, low, high)

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, scale={self.scale:g}, zero_point={self.zero_point}, "
            f"levels={self.lowest}…{self.highest}"
        )


class IntegerQuantize(_Output):
    """From float to torch's quint8."""

    def forward(self, x: Tensor) -> Tensor:
        q = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        return self.clamp(q)


class IntegerAdd(_Output):
    """Sum of two quint8 tensors, requantized."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.clamp(torch.ops.quantized.add(a, b, self.scale, self.zero_point))


class IntegerMultiply(_Output):
    """Product of two quint8 tensors, requantized."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.clamp(torch.ops.quantized.mul(a, b, self.scale, self.zero_point))


class IntegerLayer(_Output):
    """A convolution or linear layer with 8-bit weights and 32-bit sums.

    The weight is kept as int8 levels, half the range below unsigned ones, and packed for an exact
    engine (:func:`ghnq_quant.deployment.engine.exact_engine`) on first use.

    Args:
        layer: with a quantized weight.
        quantizer: of the result.
        low, high: values that the activation function between them clamps the result to.

    Shape:
        (N, C_in, H, W) or (N, …, C_in), quint8, to (N, C_out, H', W') or (N, …, C_out), quint8.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        layer: FoldedLayer,
        quantizer: FixedQuantizer,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> None:
        super().__init__(quantizer.qparams, low, high)
        assert layer.weight_quant is not None
        weight = layer.weight_quant
        factor, shift = stretch(weight.quantizer), 0 if weight.quantizer.signed else 128
        levels = layer.weight_levels().to(torch.int16) * factor - shift
        self.register_buffer("weight", levels.to(torch.int8))
        zeros = torch.zeros(levels.shape[0])
        self.register_buffer("bias", zeros if layer.bias is None else layer.bias.detach().clone())
        self.weight_scale = float(weight.scale) / factor
        self.weight_zero_point = int(weight.zero_point) * factor - shift
        self._geometry: tuple[Any, ...] | None = None
        if isinstance(layer, FoldedConv2d):
            padding = integer_padding(layer)
            assert padding is not None
            geometry = (layer.stride, padding, layer.dilation)
            self._geometry = (*map(list, geometry), layer.groups)
        self._packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            self._packed = self._pack()
        linear = self._geometry is None
        kernel = torch.ops.quantized.linear if linear else torch.ops.quantized.conv2d.new
        return self.clamp(kernel(x, self._packed, self.scale, self.zero_point))

    def _pack(self) -> Any:
        weight = quantized_tensor(self.weight, self.weight_scale, self.weight_zero_point)
        with engine(exact_engine()):
            if self._geometry is None:
                return torch.ops.quantized.linear_prepack(weight, self.bias)
            return torch.ops.quantized.conv2d_prepack(weight, self.bias, *self._geometry)

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights are of one machine's engine; a copy packs its own."""
        return {**super().__getstate__(), "_packed": None}

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}, {super().extra_repr()}"


def integer_padding(conv: FoldedConv2d) -> tuple[int, int] | None:
    """(height, width) of the zeros on each side, None where torch's kernel has no such padding."""
    if conv.padding_mode != "zeros":
        return None
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    if isinstance(conv.padding, str):
        return (top, left) if (left, top) == (right, bottom) else None
    return conv.padding[0], conv.padding[1]


def fits_integers(layer: FoldedLayer, input_scale: float) -> bool:
    """Whether torch has an integer kernel for the layer after an input of that scale."""
    if layer.weight_quant is None or layer.weight_quant.quantizer.per_channel:
        return False
    if isinstance(layer, FoldedConv2d) and integer_padding(layer) is None:
        return False
    step = float(layer.weight_quant.scale) / stretch(layer.weight_quant.quantizer) * input_scale
    largest = 0.0 if layer.bias is None else float(layer.bias.detach().abs().max())
    return step > 0 and largest / step < _LARGEST_BIAS
