"""Where ranges come from: the current tensor, a moving average, calibration, a search, gradients."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ghnq_quant.errors import GhnqError
from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    quantize_dequantize,
    quantizer_range,
    tensor_range,
)
from ghnq_quant.quantization.learned import (
    learned_quantize,
    learned_zero_point,
    positive_scale,
    scale_parameter,
)
from ghnq_quant.quantization.processes import of_all_processes
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.range_search import Histogram, Range, best_share
from ghnq_quant.quantization.tracing import traced_with_statistics

#: Weight of a new batch in the moving average.
MOMENTUM = 0.1


@runtime_checkable
class RunningRange(Protocol):
    """What a quantized model needs of any backend's module that keeps an activation's range.

    Attributes:
        moves: whether batches move the range in training.
    """

    training: bool
    quantizer: Quantizer
    moves: bool

    def has_statistics(self) -> bool:
        """Whether there is a range yet."""

    def reset(self) -> None:
        """Start over."""

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Start from this range."""


class TensorRange(nn.Module):
    """The range of the current tensor; per channel if the quantizer is."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Range:
        return quantizer_range(x, self.quantizer)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x̂, scale and zero point."""
        low, high = self(x)
        qparams = affine_parameters(low, high, self.quantizer)
        return quantize_dequantize(x, *qparams, self.quantizer), *qparams

    def qparams(self, x: Tensor) -> QuantParams:
        """The parameters that quantize ``x`` in eval."""
        return QuantParams(*affine_parameters(*self._in_eval(x), self.quantizer), self.quantizer)

    def _in_eval(self, x: Tensor) -> Range:
        return quantizer_range(x, self.quantizer)

    def fixed_qparams(self) -> QuantParams | None:
        """The parameters that quantize every tensor in eval; None if they depend on the tensor."""
        return None


def move_average(average: tuple[Tensor, Tensor, Tensor], new: Range, momentum: float) -> Range:
    """Move the average of minimum and maximum, with its count of batches, by a new range; the first
    one starts it."""
    low, high, count = average
    if low.device.type == "cpu" and not torch.compiler.is_compiling():
        weight: float | Tensor = momentum if int(count) > 0 else 1.0
    else:  # without a branch, which would wait for the device
        weight = (count == 0).to(low.dtype).clamp_min_(momentum)
    for value, end in zip((low, high), new, strict=True):
        value.lerp_(end.to(value.dtype), weight)
    count.add_(1)
    return low, high


class EmaRange(TensorRange):
    """A moving average of the batches' minima and maxima, frozen in eval.

    It starts at the first batch's range; before that, eval uses the range of the current batch.
    Training does not move it if the quantizer's range comes from calibration.

    Attributes:
        running_min, running_max: scalars.
        num_batches_tracked: number of batches in the average.
    """

    running_min: Tensor
    running_max: Tensor
    num_batches_tracked: Tensor
    moves = True

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer)
        self.moves = not quantizer.calibrated
        self.register_buffer("running_min", torch.zeros(()))
        self.register_buffer("running_max", torch.zeros(()))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def has_statistics(self) -> bool:
        """Whether the average contains at least one batch."""
        if torch.compiler.is_compiling():
            return traced_with_statistics(self)
        return int(self.num_batches_tracked) > 0

    def reset(self) -> None:
        """Start over."""
        for value in (self.running_min, self.running_max, self.num_batches_tracked):
            value.zero_()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Start from this range."""
        self.running_min.copy_(low)
        self.running_max.copy_(high)
        self.num_batches_tracked.fill_(1)

    def forward(self, x: Tensor) -> Range:
        if self.training and self.moves:
            ends = of_all_processes(*tensor_range(x))
            average = self.running_min, self.running_max, self.num_batches_tracked
            return move_average(average, ends, MOMENTUM)
        if not self.has_statistics():
            return tensor_range(x)
        return self.running_min, self.running_max

    def fixed_qparams(self) -> QuantParams | None:
        if not self.has_statistics():
            return None
        parameters = affine_parameters(self.running_min, self.running_max, self.quantizer)
        return QuantParams(*parameters, self.quantizer)


class HeldRange(TensorRange):
    """A range that starts from the first tensor in training and is not measured again.

    Before that, eval uses the range that would start from the current tensor.
    """

    begun: Tensor
    moves = False
    of_weight = True

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer)
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._has_begun = False  # the same, without waiting for a device

    def has_statistics(self) -> bool:
        """Whether the range has started.

        Raises:
            GhnqError: it has not, but is being compiled or exported.
        """
        if torch.compiler.is_compiling() and not self._has_begun:
            raise GhnqError(
                f"a {type(self).__name__} has no range yet, so it cannot be compiled or exported: call "
                "ghnq_quant.calibrate(model, batches), or train for one batch first"
            )
        return self._has_begun

    def begin(self, x: Tensor) -> None:
        """Start from the range of ``x``."""
        raise NotImplementedError

    def is_trained(self) -> bool:
        """Whether it holds something that a new calibration would not find."""
        return False

    def reset(self) -> None:
        """Start over."""
        self._set_begun(False)

    def _set_begun(self, begun: bool) -> None:
        self.begun.fill_(begun)
        self._has_begun = begun

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._has_begun = not self.begun.is_meta and bool(self.begun)


class SearchedRange(HeldRange):
    """The share of a weight's minimum and maximum that quantizes with the least squared error.

    The share is found once and kept, and the range follows the weight. Per channel, the share does
    not depend on the batch norm that is folded in. A search at each step would take a hundred times
    as long as the quantization.

    Args:
        channels: number of output channels of the weight.

    Attributes:
        share: a scalar, or (C,) per channel.
    """

    share: Tensor

    def __init__(self, quantizer: Quantizer, channels: int) -> None:
        super().__init__(quantizer)
        shape = (channels,) if quantizer.per_channel else ()
        self.register_buffer("share", torch.ones(shape))

    def begin(self, weight: Tensor) -> None:
        """Find the share for ``weight``."""
        self.share.copy_(best_share(weight, self.quantizer))
        self._set_begun(True)

    def forward(self, x: Tensor) -> Range:
        if self.training and not self.has_statistics():
            self.begin(x)
        return self._in_eval(x)

    def _in_eval(self, x: Tensor) -> Range:
        share = self.share if self.has_statistics() else best_share(x, self.quantizer)
        low, high = quantizer_range(x, self.quantizer)
        return share.to(low.dtype) * low, share.to(high.dtype) * high


class LearnedRange(HeldRange):
    """A learned scale and, for asymmetric quantizers, a learned offset: LSQ and LSQ+.

    It starts from the range with the least squared error.

    Args:
        channels: number of output channels of a weight; None for an activation.

    Attributes:
        scale, offset: parameters, scalars or (C,) per channel; the scale is that of
            :func:`~ghnq_quant.quantization.learned.positive_scale`. They exist from construction,
            for optimizers, and get their values with the first range.
        start: the initial scale.
    """

    scale: nn.Parameter
    offset: nn.Parameter | None
    start: Tensor

    def __init__(self, quantizer: Quantizer, channels: int | None = None) -> None:
        super().__init__(quantizer)
        self.of_weight = channels is not None
        shape = (channels,) if quantizer.per_channel and channels is not None else ()
        self.scale = nn.Parameter(scale_parameter(torch.ones(shape)))
        self.offset = None if quantizer.symmetric else nn.Parameter(torch.zeros(shape))
        self.register_buffer("start", torch.ones(shape))

    @torch.no_grad()
    def reset(self) -> None:
        super().reset()
        self.scale.copy_(scale_parameter(self.start))

    def begin(self, x: Tensor) -> None:
        """Start from the range of ``x``; for an activation, over all training processes."""
        low, high = self._first(x)
        self.set_range(*((low, high) if self.of_weight else of_all_processes(low, high)))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Start from this range."""
        scale, zero_point = affine_parameters(low, high, self.quantizer)
        self.start.copy_(scale)
        self.scale.copy_(scale_parameter(scale))
        if self.offset is not None:
            self.offset.copy_(-zero_point * scale)
        self._set_begun(True)

    def is_trained(self) -> bool:
        """Whether an optimizer has moved the scale since the start."""
        return not torch.equal(self.scale, scale_parameter(self.start))

    def forward(self, x: Tensor) -> Range:
        if self.training and not self.has_statistics():
            self.begin(x)
        return self._in_eval(x)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.has_statistics():
            if not self.training:
                return super().quantize(x)
            self.begin(x)
        scale, zero_point = self._learned()
        count = x.numel() // self.scale.numel() if self.of_weight else x.shape[1:].numel()
        y = learned_quantize(x, scale, self.offset, zero_point, self.quantizer, count)
        return y, scale.detach(), zero_point

    def qparams(self, x: Tensor) -> QuantParams:
        return self.fixed_qparams() or super().qparams(x)

    def fixed_qparams(self) -> QuantParams | None:
        if not self.has_statistics():
            return None
        scale, zero_point = self._learned()
        return QuantParams(scale.detach(), zero_point, self.quantizer)

    def _learned(self) -> tuple[Tensor, Tensor]:
        scale = positive_scale(self.scale, self.start, self.quantizer)
        return scale, learned_zero_point(self.offset, scale, self.quantizer)

    def _in_eval(self, x: Tensor) -> Range:
        fixed = self.fixed_qparams()
        if fixed is None:
            return self._first(x)
        lowest, highest = self.quantizer.levels
        return (lowest - fixed.zero_point) * fixed.scale, (highest - fixed.zero_point) * fixed.scale

    def _first(self, x: Tensor) -> Range:
        if not self.of_weight:
            histogram = Histogram()  # too many values to quantize a hundred times
            histogram.add(x)
            return histogram.least_error_range(self.quantizer)
        low, high = quantizer_range(x, self.quantizer)
        share = best_share(x, self.quantizer)
        return share * low, share * high


def make_range(quantizer: Quantizer) -> TensorRange:
    """The module that provides the range of an activation's quantizer."""
    if quantizer.learned:
        return LearnedRange(quantizer)
    return EmaRange(quantizer) if quantizer.running else TensorRange(quantizer)


def make_weight_range(quantizer: Quantizer, channels: int) -> TensorRange:
    """The module that provides the range of a weight's quantizer; ``channels`` are its output channels."""
    if quantizer.learned:
        return LearnedRange(quantizer, channels)
    if quantizer.range == "mse":
        return SearchedRange(quantizer, channels)
    return TensorRange(quantizer)
