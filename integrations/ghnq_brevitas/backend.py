"""Replaces PyTorch's layers with Brevitas's."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
from torch import Tensor, nn

from ghnq_brevitas.layers import QuantConv2d, QuantConvBatchNorm2d, QuantLinear
from ghnq_brevitas.quantizers import AffineTensorQuant, activation_quantizer, weight_quantizer
from ghnq_quant.errors import BackendError
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.scheme import BatchNormMode


class BrevitasBackend:
    """Genuine ``brevitas.nn`` layers with subclasses of Brevitas's own quantizers.

    Attributes:
        picklable: False, because Brevitas creates classes that no module holds.
    """

    picklable = False

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        return with_parameters(
            QuantConv2d(**conv_settings(conv), weight_quant=weight_quantizer(quantizer)),
            conv,
        )

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: BatchNormMode
    ) -> nn.Module:
        layer = QuantConvBatchNorm2d(
            **conv_settings(conv), weight_quant=weight_quantizer(quantizer), bn=bn, mode=mode
        )
        return with_parameters(layer, conv)

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        layer = QuantLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            weight_quant=weight_quantizer(quantizer),
            device="meta",
        )
        return with_parameters(layer, linear)

    def activation(self, quantizer: Quantizer) -> nn.Module:
        return qnn.QuantIdentity(act_quant=activation_quantizer(quantizer))

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        proxy: Any = layer.weight_quant
        if not proxy.is_quant_enabled:
            return None
        if isinstance(proxy.tensor_quant, AffineTensorQuant):
            return proxy.tensor_quant.range.qparams(weight)
        quantized = proxy(weight)
        return _qparams(quantized.scale, quantized.zero_point, quantized.bit_width, proxy)

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        proxy: Any = quantizer.act_quant
        if not proxy.is_quant_enabled:
            return None
        own = proxy.fused_activation_quant_proxy.tensor_quant
        if isinstance(own, AffineTensorQuant):
            return own.range.fixed_qparams()
        return _qparams(proxy.scale(), proxy.zero_point(), proxy.bit_width(), proxy)


def _qparams(scale: Tensor, zero_point: Tensor, bit_width: Tensor, proxy: Any) -> QuantParams:
    """The numbers of one of Brevitas's own quantizers: symmetric if the range is narrow, else as
    unsigned levels."""
    bits, per_channel = int(bit_width), scale.numel() != 1
    shape = (-1,) if per_channel else ()
    scale, zero_point = scale.reshape(shape), zero_point.expand_as(scale).reshape(shape)
    symmetric = proxy.is_signed and proxy.is_narrow_range and not zero_point.any()
    if not 2 <= bits <= 8 or proxy.is_narrow_range != symmetric:
        raise BackendError(
            f"{type(proxy).__name__} quantizes to {bits} bits, signed={proxy.is_signed}, "
            f"narrow_range={proxy.is_narrow_range}: only quantizers of 2 to 8 bits can be converted, "
            "without narrow range, or symmetric with it"
        )
    quantizer = Quantizer(bits, symmetric, "channel" if per_channel else "tensor")
    shift = 2 ** (bits - 1) if proxy.is_signed and not symmetric else 0
    return QuantParams(scale, zero_point + shift, quantizer)


def conv_settings(conv: nn.Conv2d) -> dict[str, Any]:
    """Arguments of a Brevitas layer with the geometry of ``conv``, except its quantizers."""
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
        "device": "meta",  # no memory and no initialization for parameters that get replaced
    }


def with_parameters(layer: nn.Module, module: nn.Module) -> nn.Module:
    """``layer``, sharing the parameters of ``module``."""
    for name, parameter in module.named_parameters(recurse=False):
        setattr(layer, name, parameter)
    return layer.to(next(module.parameters()).device)
