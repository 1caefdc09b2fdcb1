"""The reference simulation: quantized layers as plain PyTorch, the yardstick of backends."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.capture.adapters import recast
from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    fake_quantize,
    quantize_dequantize,
    tensor_range,
)
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.ranges import fixed_qparams, make_range
from ghnq_quant.quantization.scheme import FLOAT_BITS, ActRange, BatchNormMode


class FakeQuantConv2d(nn.Conv2d):
    """A convolution with quantized weight and float bias."""

    weight_bits: int

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        return fake_quantize(self.weight, self.weight_bits)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quant_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class FakeQuantConvBatchNorm2d(FoldsBatchNorm, FakeQuantConv2d):
    """A convolution that folds a batch norm into its weight before it is quantized."""

    def forward(self, input: Tensor) -> Tensor:
        return conv_batch_norm(
            input, self, self.bn, lambda w: fake_quantize(w, self.weight_bits), self.mode
        )


class FakeQuantLinear(nn.Linear):
    """A linear layer with quantized weight and float bias."""

    weight_bits: int

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        return fake_quantize(self.weight, self.weight_bits)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quant_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class FakeQuantActivation(nn.Module):
    """A quantizer of an activation tensor."""

    def __init__(self, act_bits: int, act_range: ActRange) -> None:
        super().__init__()
        self.act_bits = act_bits
        self.act_range = act_range
        self.range = make_range(act_range)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.range(x)
        scale, zero_point = affine_parameters(low, high, self.act_bits)
        return quantize_dequantize(x, scale, zero_point, self.act_bits)

    def extra_repr(self) -> str:
        return f"act_bits={self.act_bits}, act_range={self.act_range}"


class ReferenceBackend:
    """Plain PyTorch."""

    def conv2d(self, conv: nn.Conv2d, weight_bits: int) -> nn.Module:
        return recast(conv, FakeQuantConv2d, weight_bits=weight_bits)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, weight_bits: int, mode: BatchNormMode
    ) -> nn.Module:
        layer = recast(conv, FakeQuantConvBatchNorm2d, weight_bits=weight_bits, mode=mode)
        layer.fold(bn)
        return layer

    def linear(self, linear: nn.Linear, weight_bits: int) -> nn.Module:
        return recast(linear, FakeQuantLinear, weight_bits=weight_bits)

    def activation(self, act_bits: int, act_range: ActRange) -> nn.Module:
        return FakeQuantActivation(act_bits, act_range)

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        assert isinstance(layer, (FakeQuantConv2d, FakeQuantLinear))
        if layer.weight_bits == FLOAT_BITS:
            return None
        scale, zero_point = affine_parameters(*tensor_range(weight), layer.weight_bits)
        return QuantParams(scale, zero_point, layer.weight_bits)

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        assert isinstance(quantizer, FakeQuantActivation)
        return fixed_qparams(quantizer.range, quantizer.act_bits)
