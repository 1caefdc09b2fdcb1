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
from ghnq_quant.quantization import (  # noqa: E402
    Quantizer,
    QuantScheme,
    calibrate,
    freeze_batch_norms,
    freeze_ranges,
    unfreeze_batch_norms,
    unfreeze_ranges,
)
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
    "calibrate",
    "convert",
    "export_onnx",
    "freeze_batch_norms",
    "freeze_ranges",
    "init_quantized",
    "initialize",
    "predict_parameters",
    "quantize",
    "unfreeze_batch_norms",
    "unfreeze_ranges",
]
