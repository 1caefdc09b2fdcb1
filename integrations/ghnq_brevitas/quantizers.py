"""Brevitas quantizers with ghnq-quant's arithmetic: any bit width, straight-through gradient, batch or
moving-average ranges."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import RestrictValueType
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFixedPoint,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFixedPoint,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from ghnq_quant.quantization.affine import along_channels
from ghnq_quant.quantization.quantizer import Quantizer, as_quantizer
from ghnq_quant.quantization.ranges import make_range, make_weight_range


class _PowerOfTwo(ExtendedInjector):
    """Brevitas's setting for fixed-point quantizers, for those it has no class for."""

    restrict_scaling_type = RestrictValueType.POWER_OF_TWO


class Int8WeightPerChannelFixedPoint(_PowerOfTwo, Int8WeightPerChannelFloat):
    """``Int8WeightPerTensorFixedPoint`` with one scale per channel."""


class ShiftedUint8WeightPerTensorFixedPoint(_PowerOfTwo, ShiftedUint8WeightPerTensorFloat):
    """``ShiftedUint8WeightPerTensorFloat`` with a power of two as its scale."""


class ShiftedUint8WeightPerChannelFixedPoint(_PowerOfTwo, ShiftedUint8WeightPerChannelFloat):
    """``ShiftedUint8WeightPerChannelFloat`` with powers of two as its scales."""


#: For weights, by (symmetric, per channel, power of two).
_WEIGHTS: dict[tuple[bool, bool, bool], type] = {
    (False, False, False): ShiftedUint8WeightPerTensorFloat,
    (False, False, True): ShiftedUint8WeightPerTensorFixedPoint,
    (False, True, False): ShiftedUint8WeightPerChannelFloat,
    (False, True, True): ShiftedUint8WeightPerChannelFixedPoint,
    (True, False, False): Int8WeightPerTensorFloat,
    (True, False, True): Int8WeightPerTensorFixedPoint,
    (True, True, False): Int8WeightPerChannelFloat,
    (True, True, True): Int8WeightPerChannelFixedPoint,
}
#: For activations, by (symmetric, signed, power of two).
_ACTIVATIONS: dict[tuple[bool, bool, bool], type] = {
    (False, False, False): ShiftedUint8ActPerTensorFloat,
    (False, False, True): ShiftedUint8ActPerTensorFixedPoint,
    (True, False, False): Uint8ActPerTensorFloat,
    (True, False, True): Uint8ActPerTensorFixedPoint,
    (True, True, False): Int8ActPerTensorFloat,
    (True, True, True): Int8ActPerTensorFixedPoint,
}


class AffineTensorQuant(nn.Module):
    """A Brevitas ``tensor_quant``: x to (x̂, scale, zero point, bit width).

    Args:
        int_quant: Brevitas's own integer quantizer, which its export and analysis tools look for.
        quantizer: what it computes.
        out_channels: output channels of a weight; None for an activation.
    """

    def __init__(
        self, int_quant: nn.Module, quantizer: Quantizer, out_channels: int | None = None
    ) -> None:
        super().__init__()
        self.int_quant = int_quant
        self.quantizer = quantizer
        self.range = (
            make_range(quantizer)
            if out_channels is None
            else make_weight_range(quantizer, out_channels)
        )
        self.register_buffer("bit_width", torch.tensor(float(quantizer.bits)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, scale, zero_point = self.range.quantize(x)
        parameters = along_channels(scale, x), along_channels(zero_point, x)
        return y, *parameters, self.bit_width  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"quantizer={self.quantizer}"


class _KeepsParameters:
    """Mixin of a proxy that keeps a learned range when a state is loaded, because optimizers hold
    its parameters."""

    def init_tensor_quant(self, *args: Any, **kwargs: Any) -> None:
        if next(self.parameters(), None) is None:  # type: ignore[attr-defined]
            super().init_tensor_quant(*args, **kwargs)  # type: ignore[misc]


class LearnedWeightQuantProxy(_KeepsParameters, WeightQuantProxyFromInjector):
    """``WeightQuantProxyFromInjector`` for a learned range."""


class LearnedActQuantProxy(_KeepsParameters, ActQuantProxyFromInjector):
    """``ActQuantProxyFromInjector`` for a learned range."""


def weight_class(quantizer: Quantizer) -> type:
    """Brevitas's class of weight quantizers of this kind, at 8 bits."""
    return _WEIGHTS[quantizer.symmetric, quantizer.per_channel, quantizer.power_of_two]


def activation_class(quantizer: Quantizer) -> type:
    """Brevitas's class of activation quantizers of this kind, at 8 bits."""
    return _ACTIVATIONS[quantizer.symmetric, quantizer.signed, quantizer.power_of_two]


def weight_quantizer(quantizer: Quantizer | int) -> Any:
    """A subclass of Brevitas's quantizer of this kind, such as ``ShiftedUint8WeightPerTensorFloat``;
    the same class for equal arguments. None for 32 bits."""
    quantizer = as_quantizer(quantizer)
    if quantizer.is_float:
        return None
    return _subclass(weight_class(quantizer), quantizer, LearnedWeightQuantProxy)


def activation_quantizer(quantizer: Quantizer) -> Any:
    """A subclass of Brevitas's quantizer of this kind, such as ``ShiftedUint8ActPerTensorFloat``,
    with a moving range for ``"ema"``."""
    return _subclass(activation_class(quantizer), quantizer, LearnedActQuantProxy)


@cache
def _subclass(base: type, quantizer: Quantizer, learned_proxy: type) -> type:
    attributes = {"tensor_quant": AffineTensorQuant, "quantizer": quantizer}
    if quantizer.learned:
        attributes["proxy_class"] = learned_proxy
    name = base.__name__.replace("8", str(quantizer.bits))
    return type(name, (base,), {**attributes, **levels_of(quantizer)})


def levels_of(quantizer: Quantizer) -> dict[str, Any]:
    """The attributes of a Brevitas quantizer that set its levels."""
    return {"bit_width": quantizer.bits, "narrow_range": quantizer.signed}
