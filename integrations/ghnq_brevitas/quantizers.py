"""Brevitas quantizers with ghnq-quant's numbers: any bit width, straight-through gradient, batch or
moving-average ranges."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from brevitas.quant import ShiftedUint8ActPerTensorFloat, ShiftedUint8WeightPerTensorFloat
from torch import Tensor, nn

from ghnq_quant.quantization.affine import affine_parameters, quantize_dequantize
from ghnq_quant.quantization.ranges import make_range


class AffineTensorQuant(nn.Module):
    """What Brevitas calls a ``tensor_quant``: x to (x̂, scale, zero point, bit width).

    Args:
        int_quant: Brevitas's own integer quantizer, which its export and analysis tools look for.
        bit_width: of the levels.
        act_range: where the range comes from.
    """

    def __init__(
        self, int_quant: nn.Module, bit_width: int, act_range: Literal["ema", "batch"]
    ) -> None:
        super().__init__()
        self.int_quant = int_quant
        self.bits = bit_width
        self.range = make_range(act_range)
        self.register_buffer("bit_width", torch.tensor(float(bit_width)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = self.range(x)
        scale, zero_point = affine_parameters(low, high, self.bits)
        y = quantize_dequantize(x, scale, zero_point, self.bits)
        return y, scale, zero_point, self.bit_width  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"bit_width={self.bits}"


@cache
def weight_quantizer(bits: int) -> type[ShiftedUint8WeightPerTensorFloat]:
    """Brevitas's ``ShiftedUint8WeightPerTensorFloat`` at ``bits`` bits."""
    return type(
        f"ShiftedUint{bits}WeightPerTensorFloat",
        (ShiftedUint8WeightPerTensorFloat,),
        {"bit_width": bits, "tensor_quant": AffineTensorQuant, "act_range": "batch"},
    )


@cache
def activation_quantizer(
    bits: int, act_range: Literal["ema", "batch"]
) -> type[ShiftedUint8ActPerTensorFloat]:
    """Brevitas's ``ShiftedUint8ActPerTensorFloat`` at ``bits`` bits over ``act_range``."""
    return type(
        f"ShiftedUint{bits}ActPerTensorFloat",
        (ShiftedUint8ActPerTensorFloat,),
        {"bit_width": bits, "tensor_quant": AffineTensorQuant, "act_range": act_range},
    )
