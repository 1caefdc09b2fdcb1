"""Weights as int8, whatever their bits: what integer kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnq_quant.deployment.layers import FoldedLayer
from ghnq_quant.errors import ConversionError
from ghnq_quant.quantization.affine import QuantParams, along_channels
from ghnq_quant.quantization.targets import Target

#: Weights up to here, times 255, do not saturate the 16-bit sums of two products that x86 kernels
#: make without VNNI instructions. Finer steps leave less of a bias to round.
_NEVER_SATURATES = 64


def int8_weight(name: str, layer: FoldedLayer, target: Target) -> tuple[Tensor, QuantParams]:
    """The levels less the zero point, times what brings them near ±64; or, if that does not fit in
    int8 and the target takes a zero point, both less 128.

    Raises:
        ConversionError: it does not fit, and the target takes none.
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
            f"take: use QuantScheme.for_target({target.name!r}), or a symmetric Quantizer"
        )
    factor = max(_NEVER_SATURATES // largest, 1)
    return (levels - zero_point) * factor, QuantParams(
        q.scale / factor, q.zero_point * 0, q.quantizer
    )
