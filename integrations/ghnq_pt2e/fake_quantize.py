"""torchao's fake quantizers and observers with ghnq-quant's arithmetic."""

from __future__ import annotations

import torch
from torchao.quantization.pt2e import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from ghnq_quant.quantization.observers import (
    AffineFakeQuantization,
    BatchObserver,
    EmaObserver,
    observer_settings,
)
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.ranges import MOMENTUM


class BatchMinMaxObserver(BatchObserver, MinMaxObserver):
    """``MinMaxObserver`` that holds the range of the last tensor only."""


class ChannelMinMaxObserver(BatchObserver, PerChannelMinMaxObserver):
    """``PerChannelMinMaxObserver`` that holds the ranges of the last tensor only."""


class EmaMinMaxObserver(EmaObserver, MovingAverageMinMaxObserver):
    """``MovingAverageMinMaxObserver`` that is frozen in eval."""


class AffineFakeQuantize(AffineFakeQuantization, FakeQuantize):
    """``torchao.quantization.pt2e.FakeQuantize`` with a straight-through gradient."""


def quantization_spec(quantizer: Quantizer, channels: int | None = None) -> QuantizationSpec:
    """The spec from which torchao makes a fake quantizer, with a moving range for ``"ema"``.

    Args:
        channels: output channels of a weight; None for an activation.
    """
    settings = observer_settings(quantizer)
    own = settings.pop("quantizer")
    if channels is None and quantizer.running:
        constructor = AffineFakeQuantize.with_args(
            observer=EmaMinMaxObserver, averaging_constant=MOMENTUM, quantizer=own
        )
    else:
        observer = ChannelMinMaxObserver if quantizer.per_channel else BatchMinMaxObserver
        constructor = AffineFakeQuantize.with_args(
            observer=observer, quantizer=own, channels=channels
        )
    return QuantizationSpec(
        dtype=torch.int8 if quantizer.signed else torch.uint8,
        observer_or_fake_quant_ctr=constructor,
        **settings,
    )
