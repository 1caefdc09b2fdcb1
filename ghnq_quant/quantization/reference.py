"""The reference simulation: quantized layers as plain PyTorch, the yardstick of backends."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.capture.adapters import recast
from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    fake_quantize,
    qparams_of,
    quantize_dequantize,
)
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.ranges import fixed_qparams, make_range
from ghnq_quant.quantization.scheme import BatchNormMode


class FakeQuantConv2d(nn.Conv2d):
    """A convolution with quantized weight and float bias."""

    weight_quantizer: Quantizer

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        return fake_quantize(self.weight, self.weight_quantizer)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quant_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_quantizer={self.weight_quantizer}"


class FakeQuantConvBatchNorm2d(FoldsBatchNorm, FakeQuantConv2d):
    """A convolution that folds a batch norm into its weight before it is quantized."""

    def forward(self, input: Tensor) -> Tensor:
        return conv_batch_norm(
            input, self, self.bn, lambda w: fake_quantize(w, self.weight_quantizer), self.mode
        )


class FakeQuantLinear(nn.Linear):
    """A linear layer with quantized weight and float bias."""

    weight_quantizer: Quantizer

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        return fake_quantize(self.weight, self.weight_quantizer)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quant_weight(), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_quantizer={self.weight_quantizer}"


class FakeQuantActivation(nn.Module):
    """A quantizer of an activation tensor."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.range = make_range(quantizer)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.range(x)
        scale, zero_point = affine_parameters(low, high, self.quantizer)
        return quantize_dequantize(x, scale, zero_point, self.quantizer)

    def extra_repr(self) -> str:
        return f"quantizer={self.quantizer}"


class ReferenceBackend:
    """Plain PyTorch."""

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        return recast(conv, FakeQuantConv2d, weight_quantizer=quantizer)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: BatchNormMode
    ) -> nn.Module:
        layer = recast(conv, FakeQuantConvBatchNorm2d, weight_quantizer=quantizer, mode=mode)
        layer.fold(bn)
        return layer

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        return recast(linear, FakeQuantLinear, weight_quantizer=quantizer)

    def activation(self, quantizer: Quantizer) -> nn.Module:
        return FakeQuantActivation(quantizer)

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        assert isinstance(layer, (FakeQuantConv2d, FakeQuantLinear))
        quantizer = layer.weight_quantizer
        return None if quantizer.is_float else qparams_of(weight, quantizer)

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        assert isinstance(quantizer, FakeQuantActivation)
        return fixed_qparams(quantizer.range, quantizer.quantizer)
