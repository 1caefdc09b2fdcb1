"""Levels, scales and zero points as constants of an ONNX file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ghnq_quant.deployment.int8_weights import int8_weight
from ghnq_quant.deployment.layers import FoldedLayer, stretch
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.targets import Target


def has_four_bits(layer: FoldedLayer, target: Target) -> bool:
    """Whether the weight is written as 4-bit integers."""
    assert layer.weight_quant is not None
    return layer.weight_quant.bits <= 4 and "INT4" in target.weight_types


def weight_constants(name: str, layer: FoldedLayer, target: Target) -> list[TensorProto]:
    """A weight's levels, scale and zero point: the inputs of its DequantizeLinear.

    Raises:
        ConversionError: the weight needs a zero point, which the target does not support.
    """
    assert layer.weight_quant is not None
    q, levels = layer.weight_quant.qparams, layer.weight_levels()
    dtype: int
    if has_four_bits(layer, target):
        dtype = TensorProto.INT4 if q.quantizer.signed else TensorProto.UINT4
    elif "UINT8" in target.weight_types:
        dtype = TensorProto.INT8 if q.quantizer.signed else TensorProto.UINT8
        factor = stretch(q.quantizer)
        levels = levels * factor
        q = QuantParams(q.scale / factor, q.zero_point * factor, replace(q.quantizer, bits=8))
    else:
        dtype = TensorProto.INT8
        levels, q = int8_weight(name, layer, target)
    return [
        integers(f"{name}.weight_levels", levels, dtype),
        *constants_of(f"{name}.weight", q, dtype),
    ]


def constants_of(name: str, qparams: QuantParams, dtype: int) -> list[TensorProto]:
    """A scale and a zero point, as constants."""
    scale = numpy_helper.from_array(qparams.scale.float().numpy(), f"{name}.scale")
    return [scale, integers(f"{name}.zero_point", qparams.zero_point, dtype)]


def integers(name: str, values: Tensor, dtype: int) -> TensorProto:
    """A constant of 4-bit or 8-bit integers."""
    signed = dtype in (TensorProto.INT4, TensorProto.INT8)
    stored = values.numpy().astype(np.int8 if signed else np.uint8).tobytes()
    if dtype in (TensorProto.INT4, TensorProto.UINT4):  # two per byte, lower half first
        halves = np.frombuffer(stored + bytes(len(stored) % 2), np.uint8) & 15
        stored = (halves[::2] | halves[1::2] << 4).tobytes()
    return helper.make_tensor(name, dtype, values.shape, stored, raw=True)
