"""torch.ao's quantization-aware layers, one of which refolds a batch norm on every batch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.quantization.batch_norm import FoldsBatchNorm, conv_batch_norm
from ghnq_quant.quantization.integer_bias import RoundsBias
from ghnq_quant.quantization.observers import AffineFakeQuantization
from ghnq_quant.quantization.quantizer import FLOAT_BITS
from ghnq_torch_ao.torch_ao import QConfig, intrinsic_qat, qat


class QuantizedWeight(RoundsBias):
    """Mixin of a layer of ``torch.ao.nn.qat`` that gives its quantized weight without changing it."""

    weight: Tensor
    weight_fake_quant: nn.Module
    qconfig: QConfig

    @property
    def weight_bits(self) -> int:
        """Bit width of the weight; 32 if it is float."""
        quantizer = self.weight_fake_quant
        return FLOAT_BITS if isinstance(quantizer, nn.Identity) else _bits(quantizer)

    def folded_weight(self) -> Tensor:
        """The weight that is quantized, in the weight's own shape."""
        return self.weight

    def quant_weight(self) -> Tensor:
        """The quantized weight's values."""
        quantizer, weight = self.weight_fake_quant, self.folded_weight()
        if isinstance(quantizer, AffineFakeQuantization):
            return quantizer.quantized(weight)
        quantized: Tensor = quantizer(weight)
        return quantized

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


def _bits(quantizer: Any) -> int:
    """Bit width of any torch.ao fake quantizer: the user may have put in another one."""
    return int(quantizer.quant_max - quantizer.quant_min).bit_length()


class QATConv2d(QuantizedWeight, qat.Conv2d):
    """``torch.ao.nn.qat.Conv2d`` that can round its bias."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight_fake_quant(self.weight), self.own_bias())


class QATLinear(QuantizedWeight, qat.Linear):
    """``torch.ao.nn.qat.Linear`` that can round its bias."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight_fake_quant(self.weight), self.own_bias())


class QATConvBatchNorm2d(  # type: ignore[misc]  # a module, ours is a property
    FoldsBatchNorm, QuantizedWeight, intrinsic_qat.ConvBn2d
):
    """``torch.ao.nn.intrinsic.qat.ConvBn2d`` that folds the batch norm as ghnq-quant does.

    torch.ao's own layer folds the running statistics in training too, then divides by the factor.
    """

    _load_from_state_dict = nn.Module._load_from_state_dict  # torch.ao's expects a batch norm

    def update_bn_stats(self) -> QATConvBatchNorm2d:
        """Undo :meth:`freeze_bn_stats`."""
        self.freeze_bn = False
        self.bn.train()
        return self

    def freeze_bn_stats(self) -> QATConvBatchNorm2d:
        """Keep the batch norm in eval, even if the model is put into train."""
        self.freeze_bn = True
        self.bn.eval()
        return self

    def forward(self, input: Tensor) -> Tensor:
        if self.freeze_bn:
            self.bn.eval()
        quantizer = self.weight_fake_quant
        own = isinstance(quantizer, AffineFakeQuantization) and not quantizer.quantizer.learned
        straight_through = own or isinstance(quantizer, nn.Identity)
        return conv_batch_norm(
            input,
            self,
            self.bn,
            quantizer,
            self.mode,
            limit=self.limit,
            straight_through=straight_through,
        )
