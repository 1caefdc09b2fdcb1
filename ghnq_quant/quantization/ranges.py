"""Where ranges come from: the tensor at hand, or a moving average of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    quantizer_range,
    tensor_range,
)
from ghnq_quant.quantization.processes import of_all_processes
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.tracing import traced_with_statistics

#: Weight of a new batch in the moving average.
MOMENTUM = 0.1


@runtime_checkable
class RunningRange(Protocol):
    """What a quantized model asks of a module, of any backend, that keeps a range for eval."""

    training: bool

    def has_statistics(self) -> bool:
        """Whether there is a range yet."""

    def reset(self) -> None:
        """Begin anew."""


class TensorRange(nn.Module):
    """The range of each tensor at hand; per channel, where the quantizer is."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return quantizer_range(x, self.quantizer)


class EmaRange(nn.Module):
    """A moving average of the batches' minima and maxima, frozen in eval.

    It starts at the first batch's range; before that, eval takes the range of the batch at hand.

    Attributes:
        running_min, running_max: scalars.
        num_batches_tracked: how many batches the average has seen.
    """

    running_min: Tensor
    running_max: Tensor
    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_min", torch.zeros(()))
        self.register_buffer("running_max", torch.zeros(()))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def has_statistics(self) -> bool:
        """Whether at least one batch was averaged."""
        if torch.compiler.is_compiling():
            return traced_with_statistics(self)
        return int(self.num_batches_tracked) > 0

    def reset(self) -> None:
        """Begin anew."""
        for value in (self.running_min, self.running_max, self.num_batches_tracked):
            value.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return self._update(*of_all_processes(*tensor_range(x)))
        if not self.has_statistics():
            return tensor_range(x)
        return self.running_min, self.running_max

    def _update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        running_min, running_max = self.running_min, self.running_max
        momentum: float | Tensor
        if low.device.type == "cpu" and not torch.compiler.is_compiling():
            momentum = MOMENTUM if self.has_statistics() else 1.0
        else:  # without a branch that would wait for the device
            momentum = (self.num_batches_tracked == 0).to(low.dtype).clamp_min_(MOMENTUM)
        running_min.lerp_(low.to(running_min.dtype), momentum)
        running_max.lerp_(high.to(running_max.dtype), momentum)
        self.num_batches_tracked.add_(1)
        return running_min, running_max


def make_range(quantizer: Quantizer) -> TensorRange | EmaRange:
    """The module that gives a quantizer its range."""
    return EmaRange() if quantizer.range == "ema" else TensorRange(quantizer)


def fixed_qparams(moving: nn.Module, quantizer: Quantizer) -> QuantParams | None:
    """What a range of :func:`make_range` comes to in eval, None where it depends on the batch."""
    if not isinstance(moving, EmaRange) or not moving.has_statistics():
        return None
    parameters = affine_parameters(moving.running_min, moving.running_max, quantizer)
    return QuantParams(*parameters, quantizer)
