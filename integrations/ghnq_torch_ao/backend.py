"""torch.ao's quantization-aware layers in place of PyTorch's."""

from __future__ import annotations

from torch import nn

from ghnq_quant.capture.adapters import recast
from ghnq_quant.quantization.scheme import ActRange, BatchNormMode
from ghnq_torch_ao.layers import QATConv2d, QATConvBatchNorm2d, QATLinear
from ghnq_torch_ao.quantizers import activation_quantizer, weight_quantizer
from ghnq_torch_ao.torch_ao import QConfig


class TorchAoBackend:
    """Layers of ``torch.ao.nn.qat`` and ``torch.ao.nn.intrinsic.qat`` with ``FakeQuantize``
    modules of ``torch.ao.quantization``."""

    def conv2d(self, conv: nn.Conv2d, weight_bits: int) -> nn.Module:
        return _quantized(recast(conv, QATConv2d), weight_bits)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, weight_bits: int, mode: BatchNormMode
    ) -> nn.Module:
        layer = recast(conv, QATConvBatchNorm2d, mode=mode, freeze_bn=False, _batch_norm=())
        return _quantized(layer, weight_bits)

    def linear(self, linear: nn.Linear, weight_bits: int) -> nn.Module:
        return _quantized(recast(linear, QATLinear), weight_bits)

    def activation(self, act_bits: int, act_range: ActRange) -> nn.Module:
        quantizer: nn.Module = activation_quantizer(act_bits, act_range)()
        return quantizer


def _quantized(layer: QATConv2d | QATConvBatchNorm2d | QATLinear, weight_bits: int) -> nn.Module:
    """``layer`` with a quantizer of its weight; its output is quantized by a module of the plan."""
    layer.qconfig = QConfig(activation=nn.Identity, weight=weight_quantizer(weight_bits))
    quantizer = layer.qconfig.weight()
    layer.weight_fake_quant = quantizer.to(layer.weight.device, layer.weight.dtype)
    return layer
