"""Brevitas layers in place of PyTorch's."""

from __future__ import annotations

from typing import Any, Literal

import brevitas.nn as qnn
from torch import nn

from ghnq_brevitas.layers import QuantConvBatchNorm2d
from ghnq_brevitas.quantizers import activation_quantizer, weight_quantizer
from ghnq_quant.quantization.scheme import FLOAT_BITS, BatchNormMode


class BrevitasBackend:
    """Real ``brevitas.nn`` layers with subclasses of Brevitas's own quantizers."""

    def conv2d(self, conv: nn.Conv2d, weight_bits: int) -> nn.Module:
        return _with_parameters(qnn.QuantConv2d(**_conv_settings(conv, weight_bits)), conv)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, weight_bits: int, mode: BatchNormMode
    ) -> nn.Module:
        layer = QuantConvBatchNorm2d(**_conv_settings(conv, weight_bits), mode=mode)
        return _with_parameters(layer, conv)

    def linear(self, linear: nn.Linear, weight_bits: int) -> nn.Module:
        layer = qnn.QuantLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            weight_quant=_weight_quantizer(weight_bits),
            device="meta",
        )
        return _with_parameters(layer, linear)

    def activation(self, act_bits: int, act_range: Literal["ema", "batch"]) -> nn.Module:
        return qnn.QuantIdentity(act_quant=activation_quantizer(act_bits, act_range))


def _weight_quantizer(bits: int) -> Any:
    return None if bits == FLOAT_BITS else weight_quantizer(bits)


def _conv_settings(conv: nn.Conv2d, weight_bits: int) -> dict[str, Any]:
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
        "weight_quant": _weight_quantizer(weight_bits),
        "device": "meta",  # no memory and no initialization for parameters that are replaced
    }


def _with_parameters(layer: nn.Module, module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters(recurse=False):
        setattr(layer, name, parameter)
    return layer.to(next(module.parameters()).device)
