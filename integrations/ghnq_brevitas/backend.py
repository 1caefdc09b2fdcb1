"""Brevitas layers in place of PyTorch's."""

from __future__ import annotations

from typing import Any, Literal

import brevitas.nn as qnn
from torch import Tensor, nn

from ghnq_brevitas.layers import QuantConvBatchNorm2d
from ghnq_brevitas.quantizers import AffineTensorQuant, activation_quantizer, weight_quantizer
from ghnq_quant.errors import BackendError
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.ranges import fixed_qparams
from ghnq_quant.quantization.scheme import FLOAT_BITS, BatchNormMode


class BrevitasBackend:
    """Real ``brevitas.nn`` layers with subclasses of Brevitas's own quantizers."""

    def conv2d(self, conv: nn.Conv2d, weight_bits: int) -> nn.Module:
        return with_parameters(
            qnn.QuantConv2d(**conv_settings(conv), weight_quant=_weight_quantizer(weight_bits)),
            conv,
        )

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, weight_bits: int, mode: BatchNormMode
    ) -> nn.Module:
        layer = QuantConvBatchNorm2d(
            **conv_settings(conv), weight_quant=_weight_quantizer(weight_bits), bn=bn, mode=mode
        )
        return with_parameters(layer, conv)

    def linear(self, linear: nn.Linear, weight_bits: int) -> nn.Module:
        layer = qnn.QuantLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            weight_quant=_weight_quantizer(weight_bits),
            device="meta",
        )
        return with_parameters(layer, linear)

    def activation(self, act_bits: int, act_range: Literal["ema", "batch"]) -> nn.Module:
        return qnn.QuantIdentity(act_quant=activation_quantizer(act_bits, act_range))

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        proxy: Any = layer.weight_quant
        if not proxy.is_quant_enabled:
            return None
        quantized = proxy(weight)
        return _qparams(quantized.scale, quantized.zero_point, quantized.bit_width, proxy)

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        proxy: Any = quantizer.act_quant
        if not proxy.is_quant_enabled:
            return None
        own = proxy.fused_activation_quant_proxy.tensor_quant
        if isinstance(own, AffineTensorQuant):
            return fixed_qparams(own.range, own.bits)
        return _qparams(proxy.scale(), proxy.zero_point(), proxy.bit_width(), proxy)


def _qparams(scale: Tensor, zero_point: Tensor, bit_width: Tensor, proxy: Any) -> QuantParams:
    """Brevitas's numbers as those of unsigned levels."""
    bits = int(bit_width)
    if scale.numel() != 1 or proxy.is_narrow_range or not 2 <= bits <= 8:
        raise BackendError(
            f"{type(proxy).__name__} quantizes to {bits} bits, scales of shape "
            f"{tuple(scale.shape)}, narrow_range={proxy.is_narrow_range}: what can be converted are "
            "tensorwise quantizers of 2 to 8 bits without narrow range"
        )
    shift = 2 ** (bits - 1) if proxy.is_signed else 0
    return QuantParams(scale.reshape(()), zero_point.reshape(()) + shift, bits)


def _weight_quantizer(bits: int) -> Any:
    return None if bits == FLOAT_BITS else weight_quantizer(bits)


def conv_settings(conv: nn.Conv2d) -> dict[str, Any]:
    """What a Brevitas layer of the geometry of ``conv`` is made with, but for its quantizers."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
        "bias": conv.bias is not None,
        "device": "meta",  # no memory and no initialization for parameters that are replaced
    }


def with_parameters(layer: nn.Module, module: nn.Module) -> nn.Module:
    """``layer`` with the very parameters of ``module``."""
    for name, parameter in module.named_parameters(recurse=False):
        setattr(layer, name, parameter)
    return layer.to(next(module.parameters()).device)
