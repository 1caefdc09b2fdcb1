"""torchao's fake quantizers and observers with ghnq-quant's numbers."""

from __future__ import annotations

import torch
from torchao.quantization.pt2e import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from ghnq_quant.quantization.observers import AffineFakeQuantization, BatchObserver, EmaObserver
from ghnq_quant.quantization.ranges import MOMENTUM
from ghnq_quant.quantization.scheme import ActRange


class BatchMinMaxObserver(BatchObserver, MinMaxObserver):
    """``MinMaxObserver`` that holds the range of the last tensor alone."""


class EmaMinMaxObserver(EmaObserver, MovingAverageMinMaxObserver):
    """``MovingAverageMinMaxObserver`` that is frozen in eval."""


class AffineFakeQuantize(AffineFakeQuantization, FakeQuantize):
    """``torchao.quantization.pt2e.FakeQuantize`` with a straight-through gradient."""


def quantization_spec(bits: int, act_range: ActRange) -> QuantizationSpec:
    """Per tensor, affine, levels 0 … 2^bits − 1; a weight's range is that of the batch."""
    if act_range == "ema":
        constructor = AffineFakeQuantize.with_args(
            observer=EmaMinMaxObserver, averaging_constant=MOMENTUM
        )
    else:
        constructor = AffineFakeQuantize.with_args(observer=BatchMinMaxObserver)
    return QuantizationSpec(
        dtype=torch.uint8,
        observer_or_fake_quant_ctr=constructor,
        quant_min=0,
        quant_max=2**bits - 1,
        qscheme=torch.per_tensor_affine,
    )
