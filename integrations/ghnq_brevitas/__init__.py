"""Brevitas as a backend of ghnq-quant."""

from ghnq_brevitas.backend import BrevitasBackend
from ghnq_brevitas.layers import QuantConvBatchNorm2d
from ghnq_brevitas.quantizers import activation_quantizer, weight_quantizer

__all__ = ["BrevitasBackend", "QuantConvBatchNorm2d", "activation_quantizer", "weight_quantizer"]
