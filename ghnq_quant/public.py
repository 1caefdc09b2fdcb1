"""The public names of ``ghnq_quant``, which imports this module when one is first used."""

from ghnq_quant.api import init_quantized, initialize, predict_parameters, quantize
from ghnq_quant.deployment import convert, export_onnx, export_pte
from ghnq_quant.errors import (
    BackendError,
    CaptureError,
    CheckpointError,
    ConversionError,
    DataError,
    GhnqError,
    GhnqWarning,
    PredictionError,
    SchemeError,
)
from ghnq_quant.ghn import GHN
from ghnq_quant.mixed_precision import assign_bits, sensitivity
from ghnq_quant.quantization import (
    Quantizer,
    QuantScheme,
    calibrate,
    correct_biases,
    equalize,
    freeze_batch_norms,
    freeze_ranges,
    unfreeze_batch_norms,
    unfreeze_ranges,
)
from ghnq_quant.stem import adapt_stem

__all__ = [
    "GHN",
    "BackendError",
    "CaptureError",
    "CheckpointError",
    "ConversionError",
    "DataError",
    "GhnqError",
    "GhnqWarning",
    "PredictionError",
    "QuantScheme",
    "Quantizer",
    "SchemeError",
    "adapt_stem",
    "assign_bits",
    "calibrate",
    "convert",
    "correct_biases",
    "equalize",
    "export_onnx",
    "export_pte",
    "freeze_batch_norms",
    "freeze_ranges",
    "init_quantized",
    "initialize",
    "predict_parameters",
    "quantize",
    "sensitivity",
    "unfreeze_batch_norms",
    "unfreeze_ranges",
]
