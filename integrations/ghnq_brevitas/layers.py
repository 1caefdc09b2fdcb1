"""Brevitas's layers with what they lack: rounded biases, and a batch norm folded into the weight."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

from ghnq_brevitas.quantizers import AffineTensorQuant
from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.integer_bias import RoundsBias
from ghnq_quant.quantization.scheme import BatchNormMode


class _RoundsBias(RoundsBias):
    """Mixin that rounds what Brevitas's layer is about to add."""

    def inner_forward_impl(self, x: Tensor, quant_weight: Any, quant_bias: Tensor | None) -> Tensor:
        if quant_bias is not None:
            quant_bias = self.rounded_bias(quant_bias, self.weight)
        y: Tensor = super().inner_forward_impl(x, quant_weight, quant_bias)  # type: ignore[misc]
        return y


class QuantConv2d(_RoundsBias, qnn.QuantConv2d):
    """``brevitas.nn.QuantConv2d`` that can round its bias."""


class QuantLinear(_RoundsBias, qnn.QuantLinear):
    """``brevitas.nn.QuantLinear`` that can round its bias."""


class QuantConvBatchNorm2d(FoldsBatchNorm, qnn.QuantConv2d):
    """``brevitas.nn.QuantConv2d`` whose weight quantizer sees the weight with a batch norm folded in.

    What Brevitas reads from a layer (``quant_weight()``, ``weight_quant.scale()`` and so on) is for
    the weight folded with the running statistics, or for the plain weight while there are none.

    Args:
        args, kwargs: as for ``QuantConv2d``.
        bn: the batch norm, another module's child.
        mode: which statistics are folded in eval.
    """

    weight_quant: Any

    def __init__(
        self, *args: Any, bn: nn.BatchNorm2d, mode: BatchNormMode = "running", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mode = mode
        self.fold(bn)
        self._view = _FoldedView(self)
        self.weight_quant.tracked_module_list[0] = self._view

    def forward(self, input: Tensor) -> Tensor:
        tensor_quant = self.weight_quant.tensor_quant
        own = isinstance(tensor_quant, AffineTensorQuant) and not tensor_quant.quantizer.learned
        return conv_batch_norm(
            input,
            self,
            self.bn,
            self._quantize,
            self.mode,
            limit=self.limit,
            straight_through=own or not self.weight_quant.is_quant_enabled,
        )

    def _quantize(self, weight: Tensor) -> Tensor:
        if self.weight_quant.export_mode:
            weight = self._view.last  # Brevitas's export identifies a weight by its address
        quantized = self.weight_quant(weight)
        return quantized if isinstance(quantized, Tensor) else quantized.value

    def quant_weight(self, *args: Any, **kwargs: Any) -> Any:
        """The quantized folded weight, as Brevitas's ``IntQuantTensor``."""
        return self.weight_quant(self.folded_weight())


class _FoldedView:
    """The layer as its weight quantizer's proxy sees it: with the folded weight as its weight.

    Attributes:
        last: the weight that was last asked for.
    """

    last: Tensor

    def __init__(self, layer: QuantConvBatchNorm2d) -> None:
        self._layer = layer

    @property
    def weight(self) -> Tensor:
        with torch.no_grad():
            self.last = self._layer.folded_weight()
        return self.last

    def quant_weight(self) -> Any:
        return self._layer.quant_weight()
