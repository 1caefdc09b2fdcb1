"""Replaces PyTorch's layers with torch.ao's quantization-aware ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghnq_quant.capture.adapters import recast
from ghnq_quant.errors import BackendError
from ghnq_quant.quantization.affine import QuantParams, affine_parameters
from ghnq_quant.quantization.observers import AffineFakeQuantization, BatchObserver
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.ranges import RunningRange
from ghnq_quant.quantization.scheme import BatchNormMode
from ghnq_torch_ao.layers import QATConv2d, QATConvBatchNorm2d, QATLinear
from ghnq_torch_ao.quantizers import activation_quantizer, weight_quantizer
from ghnq_torch_ao.torch_ao import QConfig


class TorchAoBackend:
    """Layers of ``torch.ao.nn.qat`` and ``torch.ao.nn.intrinsic.qat`` with ``FakeQuantize``
    modules of ``torch.ao.quantization``."""

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        return _quantized(recast(conv, QATConv2d), quantizer)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: BatchNormMode
    ) -> nn.Module:
        layer = recast(conv, QATConvBatchNorm2d, mode=mode, freeze_bn=False)
        layer.fold(bn)
        return _quantized(layer, quantizer)

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        return _quantized(recast(linear, QATLinear), quantizer)

    def activation(self, quantizer: Quantizer) -> nn.Module:
        module: nn.Module = activation_quantizer(quantizer)()
        return module

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        quantizer = layer.weight_fake_quant
        if isinstance(quantizer, nn.Identity):
            return None
        own = _own(quantizer)
        if not _is_on(own.fake_quant_enabled):
            return None
        if not _is_on(own.observer_enabled):
            return _last_used(own)
        return own.activation_post_process.qparams(weight)

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        own = _own(quantizer)
        if not _is_on(own.fake_quant_enabled):
            return None
        if not _is_on(own.observer_enabled):
            return _last_used(own)
        observer = own.activation_post_process
        if isinstance(observer, BatchObserver):
            return observer.range.fixed_qparams()
        if not isinstance(observer, RunningRange) or not observer.has_statistics():
            return None
        parameters = affine_parameters(observer.min_val, observer.max_val, own.quantizer)
        return QuantParams(*parameters, own.quantizer)


def _own(quantizer: object) -> AffineFakeQuantization:
    if not isinstance(quantizer, AffineFakeQuantization):
        raise BackendError(
            f"{type(quantizer).__name__} is not a quantizer of this backend: only fake quantizers "
            "that backend 'torch_ao' made can be converted"
        )
    return quantizer


def _is_on(switch: Tensor) -> bool:
    """A compiler, which sees no values, is told that it is."""
    return torch.compiler.is_compiling() or bool(switch[0])


def _last_used(quantizer: AffineFakeQuantization) -> QuantParams:
    """Scale and zero point that a disabled observer left."""
    shape = (-1,) if quantizer.quantizer.per_channel else ()
    scale, zero_point = quantizer.scale.view(shape), quantizer.zero_point.view(shape)
    return QuantParams(scale, zero_point.to(scale.dtype), quantizer.quantizer)


def _quantized(
    layer: QATConv2d | QATConvBatchNorm2d | QATLinear, quantizer: Quantizer
) -> nn.Module:
    """``layer`` with a weight quantizer; a module of the plan quantizes its output."""
    layer.qconfig = QConfig(
        activation=nn.Identity, weight=weight_quantizer(quantizer, len(layer.weight))
    )
    module = layer.qconfig.weight()
    if quantizer.per_channel:
        module.set_channels(len(layer.weight))
    layer.weight_fake_quant = module.to(layer.weight.device, layer.weight.dtype)
    return layer
