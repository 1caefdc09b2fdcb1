"""torch.ao as a backend of ghnq-quant."""

from ghnq_torch_ao.backend import TorchAoBackend
from ghnq_torch_ao.layers import QATConv2d, QATConvBatchNorm2d, QATLinear
from ghnq_torch_ao.quantizers import (
    AffineFakeQuantize,
    BatchMinMaxObserver,
    ChannelMinMaxObserver,
    EmaMinMaxObserver,
    activation_quantizer,
    weight_quantizer,
)

__all__ = [
    "AffineFakeQuantize",
    "BatchMinMaxObserver",
    "ChannelMinMaxObserver",
    "EmaMinMaxObserver",
    "QATConv2d",
    "QATConvBatchNorm2d",
    "QATLinear",
    "TorchAoBackend",
    "activation_quantizer",
    "weight_quantizer",
]
