"""The reference simulation: quantized layers in plain PyTorch, which backends are measured against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.capture.adapters import recast
from ghnq_quant.quantization.affine import QuantParams
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.integer_bias import RoundsBias
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.ranges import TensorRange, make_range, make_weight_range
from ghnq_quant.quantization.scheme import BatchNormMode


class FakeQuantizer(nn.Module):
    """A quantizer of a tensor.

    Args:
        range: where its range comes from.
    """

    def __init__(self, range: TensorRange) -> None:
        super().__init__()
        self.range = range

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer that it applies."""
        return self.range.quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.range.quantize(x)[0]

    def extra_repr(self) -> str:
        return f"quantizer={self.quantizer}"


class FakeQuantConv2d(RoundsBias, nn.Conv2d):
    """A convolution with a quantized weight and a float bias, or one that is rounded."""

    weight_quant: FakeQuantizer | nn.Identity

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        quantized: Tensor = self.weight_quant(self.weight)
        return quantized

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quant_weight(), self.own_bias())


class FakeQuantConvBatchNorm2d(FoldsBatchNorm, FakeQuantConv2d):
    """A convolution that folds a batch norm into its weight before quantizing it."""

    def quant_weight(self) -> Tensor:
        """The values of the quantized weight, folded with the running statistics if there are any."""
        quantized: Tensor = self.weight_quant(self.folded_weight())
        return quantized

    def forward(self, input: Tensor) -> Tensor:
        quantize = self.weight_quant
        learned = isinstance(quantize, FakeQuantizer) and quantize.quantizer.learned
        return conv_batch_norm(
            input,
            self,
            self.bn,
            quantize,
            self.mode,
            limit=self.limit,
            straight_through=not learned,
        )


class FakeQuantLinear(RoundsBias, nn.Linear):
    """A linear layer with a quantized weight and a float bias, or one that is rounded."""

    weight_quant: FakeQuantizer | nn.Identity

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        quantized: Tensor = self.weight_quant(self.weight)
        return quantized

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quant_weight(), self.own_bias())


class ReferenceBackend:
    """Plain PyTorch."""

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        return with_weight_quantizer(recast(conv, FakeQuantConv2d), quantizer)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: BatchNormMode
    ) -> nn.Module:
        layer = recast(conv, FakeQuantConvBatchNorm2d, mode=mode)
        layer.fold(bn)
        return with_weight_quantizer(layer, quantizer)

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        return with_weight_quantizer(recast(linear, FakeQuantLinear), quantizer)

    def activation(self, quantizer: Quantizer) -> nn.Module:
        return FakeQuantizer(make_range(quantizer))

    def weight_qparams(self, layer: nn.Module, weight: Tensor) -> QuantParams | None:
        quantizer = layer.weight_quant
        return quantizer.range.qparams(weight) if isinstance(quantizer, FakeQuantizer) else None

    def activation_qparams(self, quantizer: nn.Module) -> QuantParams | None:
        assert isinstance(quantizer, FakeQuantizer)
        return quantizer.range.fixed_qparams()


def with_weight_quantizer(
    layer: FakeQuantConv2d | FakeQuantLinear, quantizer: Quantizer
) -> nn.Module:
    """``layer`` with a weight quantizer."""
    weight = layer.weight
    layer.weight_quant = nn.Identity()
    if not quantizer.is_float:
        range = make_weight_range(quantizer, len(weight)).to(weight.device, weight.dtype)
        layer.weight_quant = FakeQuantizer(range)
    return layer
