"""torch.ao's fake quantizers and observers with ghnq-quant's numbers: any bit width,
straight-through gradient, batch or moving-average ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ghnq_quant.quantization.observers import AffineFakeQuantization, BatchObserver, EmaObserver
from ghnq_quant.quantization.ranges import MOMENTUM
from ghnq_quant.quantization.scheme import FLOAT_BITS, ActRange
from ghnq_torch_ao.torch_ao import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver


class BatchMinMaxObserver(BatchObserver, MinMaxObserver):  # type: ignore[misc]
    """``MinMaxObserver`` that holds the range of the last tensor alone."""


class EmaMinMaxObserver(EmaObserver, MovingAverageMinMaxObserver):  # type: ignore[misc]
    """``MovingAverageMinMaxObserver`` that is frozen in eval."""


class AffineFakeQuantize(AffineFakeQuantization, FakeQuantize):
    """``torch.ao.quantization.FakeQuantize`` with a straight-through gradient.

    Example:
        >>> weight_quantizer(2)()(torch.tensor([-1.0, 0.4, 2.0]))
        tensor([-1.,  0.,  2.])
    """


class ActivationFakeQuantize(AffineFakeQuantize):
    """A quantizer of an activation tensor."""

    @property
    def act_bits(self) -> int:
        return self.bits

    @property
    def act_range(self) -> ActRange:
        return "ema" if isinstance(self.activation_post_process, EmaObserver) else "batch"

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"act_bits={self.act_bits}, act_range={self.act_range}, {text}"


def _levels(bits: int) -> dict[str, Any]:
    return {
        "quant_min": 0,
        "quant_max": 2**bits - 1,
        "dtype": torch.quint8,
        "qscheme": torch.per_tensor_affine,
    }


def weight_quantizer(bits: int) -> Any:
    """What makes a weight's quantizer, as a ``QConfig`` holds it; of 32 bits, an identity."""
    if bits == FLOAT_BITS:
        return nn.Identity
    return AffineFakeQuantize.with_args(observer=BatchMinMaxObserver, **_levels(bits))


def activation_quantizer(bits: int, act_range: ActRange) -> Any:
    """What makes an activation's quantizer, as a ``QConfig`` holds it."""
    if act_range == "batch":
        return ActivationFakeQuantize.with_args(observer=BatchMinMaxObserver, **_levels(bits))
    return ActivationFakeQuantize.with_args(
        observer=EmaMinMaxObserver, averaging_constant=MOMENTUM, **_levels(bits)
    )
