"""Weights of any bit width as int8, the type that integer kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnq_quant.deployment.layers import FoldedLayer
from ghnq_quant.errors import ConversionError
from ghnq_quant.quantization.affine import QuantParams, along_channels
from ghnq_quant.quantization.targets import Target

#: Without VNNI instructions x86 kernels add two products in 16 bits. Weights up to this size, times
#: 255, do not saturate there. Smaller ones are scaled up to it: the bias is rounded to finer steps.
_NEVER_SATURATES = 64


def int8_weight(name: str, layer: FoldedLayer, target: Target) -> tuple[Tensor, QuantParams]:
    """The levels minus the zero point, times the factor that brings them close to ±64. If they do
    not fit in int8 and the target supports zero points: levels and zero point, both minus 128.

    Raises:
        ConversionError: they do not fit, and the target supports no zero point.
    """
    assert layer.weight_quant is not None
    q, levels = layer.weight_quant.qparams, layer.weight_levels()
    zero_point = along_channels(q.zero_point, levels)
    lowest, highest = (level - zero_point for level in q.quantizer.levels)
    largest = int(torch.maximum(-lowest, highest).max())
    if largest > 127 and target.weight_zero_points:
        return levels.int() - 128, QuantParams(q.scale, q.zero_point - 128, q.quantizer)
    if largest > 127:
        raise ConversionError(
            f"the weight of {name!r} has 8 bits and a zero point, which {target.name} does not "
            f"support: use QuantScheme.for_target({target.name!r}), or a symmetric Quantizer"
        )
    factor = max(_NEVER_SATURATES // largest, 1)
    return (levels - zero_point) * factor, QuantParams(
        q.scale / factor, q.zero_point * 0, q.quantizer
    )
