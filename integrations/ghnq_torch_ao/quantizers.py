"""torch.ao's fake quantizers and observers with ghnq-quant's arithmetic: any bit width,
straight-through gradient, batch or moving-average ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ghnq_quant.quantization.observers import (
    AffineFakeQuantization,
    BatchObserver,
    EmaObserver,
    observer_settings,
)
from ghnq_quant.quantization.quantizer import Quantizer, as_quantizer
from ghnq_quant.quantization.ranges import MOMENTUM
from ghnq_torch_ao.torch_ao import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)


class BatchMinMaxObserver(BatchObserver, MinMaxObserver):  # type: ignore[misc]
    """``MinMaxObserver`` that holds the range of the last tensor only."""


class ChannelMinMaxObserver(BatchObserver, PerChannelMinMaxObserver):  # type: ignore[misc]
    """``PerChannelMinMaxObserver`` that holds the ranges of the last tensor only."""


class EmaMinMaxObserver(EmaObserver, MovingAverageMinMaxObserver):  # type: ignore[misc]
    """``MovingAverageMinMaxObserver`` that is frozen in eval."""


class AffineFakeQuantize(AffineFakeQuantization, FakeQuantize):
    """``torch.ao.quantization.FakeQuantize`` with a straight-through gradient.

    Example:
        >>> weight_quantizer(2)()(torch.tensor([-1.0, 0.4, 2.0]))
        tensor([-1.,  0.,  2.])
    """

    def extra_repr(self) -> str:
        return f"quantizer={self.quantizer}, {super().extra_repr()}"


def weight_quantizer(quantizer: Quantizer | int, channels: int = 1) -> Any:
    """Factory for a weight's quantizer, as in a ``QConfig``; an identity at 32 bits. ``channels``,
    the weight's output channels, matters only for searched and learned ranges per channel."""
    quantizer = as_quantizer(quantizer)
    if quantizer.is_float:
        return nn.Identity
    observer = ChannelMinMaxObserver if quantizer.per_channel else BatchMinMaxObserver
    return AffineFakeQuantize.with_args(
        observer=observer, channels=channels, **_settings(quantizer)
    )


def activation_quantizer(quantizer: Quantizer) -> Any:
    """Factory for an activation's quantizer, as in a ``QConfig``, with a moving range for
    ``"ema"``."""
    if not quantizer.running:
        return AffineFakeQuantize.with_args(observer=BatchMinMaxObserver, **_settings(quantizer))
    return AffineFakeQuantize.with_args(
        observer=EmaMinMaxObserver, averaging_constant=MOMENTUM, **_settings(quantizer)
    )


def _settings(quantizer: Quantizer) -> dict[str, Any]:
    dtype = torch.qint8 if quantizer.signed else torch.quint8
    return {"dtype": dtype, **observer_settings(quantizer)}
