"""Parameters for quantized CNNs, predicted by a graph hypernetwork (GHN-Q).

>>> import ghnq_quant, torch, torchvision
>>> loader = [(torch.randn(64, 3, 32, 32), torch.arange(64) % 10)]  # your training's DataLoader
>>> model = torchvision.models.mobilenet_v2(num_classes=10)
>>> qat = ghnq_quant.init_quantized(model, bits=4, data=loader)
"""

from importlib.metadata import version

from ghnq_quant.torchvision_ops import define_missing_operators

define_missing_operators()  # before anything, the user's next line too, imports torchvision

from ghnq_quant.api import init_quantized, initialize, predict_parameters, quantize  # noqa: E402
from ghnq_quant.deployment import convert, export_onnx  # noqa: E402
from ghnq_quant.errors import (  # noqa: E402
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
from ghnq_quant.ghn import GHN  # noqa: E402
from ghnq_quant.mixed_precision import assign_bits, sensitivity  # noqa: E402
from ghnq_quant.quantization import Quantizer, QuantScheme, calibrate  # noqa: E402
from ghnq_quant.stem import adapt_stem  # noqa: E402

__version__ = version("ghnq-quant")

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
    "export_onnx",
    "init_quantized",
    "initialize",
    "predict_parameters",
    "quantize",
    "sensitivity",
]
