"""Quantizers, batch-norm folding, the reference simulation, the model that backends emit."""

from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    fake_quantize,
    qparams_of,
    quantize_dequantize,
    tensor_range,
)
from ghnq_quant.quantization.backends import Backend, ModelBackend, load_backend
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.bias_correction import correct_biases
from ghnq_quant.quantization.calibration import calibrate
from ghnq_quant.quantization.equalization import equalize
from ghnq_quant.quantization.freezing import (
    freeze_batch_norms,
    freeze_ranges,
    unfreeze_batch_norms,
    unfreeze_ranges,
)
from ghnq_quant.quantization.layerwise import emit
from ghnq_quant.quantization.model import QuantModel
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.scheme import QuantScheme

__all__ = [
    "Backend",
    "FoldsBatchNorm",
    "ModelBackend",
    "QuantModel",
    "QuantParams",
    "QuantScheme",
    "Quantizer",
    "affine_parameters",
    "calibrate",
    "conv_batch_norm",
    "correct_biases",
    "emit",
    "equalize",
    "fake_quantize",
    "freeze_batch_norms",
    "freeze_ranges",
    "load_backend",
    "qparams_of",
    "quantize_dequantize",
    "tensor_range",
    "unfreeze_batch_norms",
    "unfreeze_ranges",
]
