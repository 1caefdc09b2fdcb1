"""A Brevitas convolution that folds a batch norm on every batch."""

from __future__ import annotations

from typing import Any

from brevitas.nn import QuantConv2d
from torch import Tensor, nn

from ghnq_quant.quantization.batch_norm import conv_batch_norm
from ghnq_quant.quantization.scheme import BatchNormMode


class QuantConvBatchNorm2d(QuantConv2d):
    """``brevitas.nn.QuantConv2d`` whose weight quantizer sees the weight with a batch norm folded
    in.

    Args:
        args, kwargs: as of ``QuantConv2d``.
        mode: statistics that are folded in eval.
    """

    def __init__(self, *args: Any, mode: BatchNormMode = "running", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mode = mode

    def forward(self, input: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        return conv_batch_norm(input, self, bn, self._quantize, self.mode)

    def _quantize(self, weight: Tensor) -> Tensor:
        quantized = self.weight_quant(weight)
        return quantized if isinstance(quantized, Tensor) else quantized.value

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded batch norm, eval statistics={self.mode}"
