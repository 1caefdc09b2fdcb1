"""A Brevitas convolution that folds a batch norm into the weight it quantizes."""

from __future__ import annotations

from typing import Any

import torch
from brevitas.nn import QuantConv2d
from torch import Tensor, nn

from ghnq_brevitas.quantizers import AffineTensorQuant
from ghnq_quant.quantization.batch_norm import (
    conv_batch_norm,
    folded_weight,
    has_running_statistics,
)
from ghnq_quant.quantization.scheme import BatchNormMode


class QuantConvBatchNorm2d(QuantConv2d):
    """``brevitas.nn.QuantConv2d`` whose weight quantizer sees a batch norm folded into the weight.

    What Brevitas reads from a layer, ``quant_weight()`` and ``weight_quant.scale()`` and so on, is
    of the weight folded with the running statistics; of the weight itself until some exist.

    Args:
        args, kwargs: as of ``QuantConv2d``.
        mode: statistics that are folded in eval.
    """

    def __init__(self, *args: Any, mode: BatchNormMode = "running", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mode = mode
        self._batch_norm: tuple[nn.BatchNorm2d, ...] = ()  # a tuple keeps it another module's child
        self._folded = _Folded(self)
        self.weight_quant.tracked_module_list[0] = self._folded

    def forward(self, input: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        self._batch_norm = (bn,)
        own = isinstance(self.weight_quant.tensor_quant, AffineTensorQuant)
        return conv_batch_norm(
            input,
            self,
            bn,
            self._quantize,
            self.mode,
            straight_through=own or not self.weight_quant.is_quant_enabled,
        )

    def _quantize(self, weight: Tensor) -> Tensor:
        if self.weight_quant.export_mode:
            weight = self._folded.last  # Brevitas's export knows a weight by its address
        quantized = self.weight_quant(weight)
        return quantized if isinstance(quantized, Tensor) else quantized.value

    def folded_weight(self) -> Tensor:
        """The weight, of its own shape, with the running statistics, if any, folded in."""
        for bn in self._batch_norm:
            if has_running_statistics(bn) and bn.running_var is not None:
                return folded_weight(self.weight, bn, bn.running_var)
        return self.weight

    def quant_weight(self, *args: Any, **kwargs: Any) -> Any:
        """The quantized folded weight, as Brevitas's ``IntQuantTensor``."""
        return self.weight_quant(self.folded_weight())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded batch norm, eval statistics={self.mode}"


class _Folded:
    """The layer as its weight quantizer's proxy sees it: with the folded weight for its weight.

    Attributes:
        last: the weight that was asked for last.
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
