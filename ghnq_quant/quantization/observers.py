"""Mixins that give torch.ao's observers and fake quantizers, and torchao's copies of them,
ghnq-quant's arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghnq_quant.quantization.affine import (
    QuantParams,
    affine_parameters,
    qparams_of,
    quantize_dequantize,
    tensor_range,
)
from ghnq_quant.quantization.processes import of_all_processes
from ghnq_quant.quantization.quantizer import Quantizer
from ghnq_quant.quantization.ranges import (
    LearnedRange,
    TensorRange,
    make_range,
    make_weight_range,
    move_average,
)
from ghnq_quant.quantization.tracing import traced_with_statistics


def observer_settings(quantizer: Quantizer) -> dict[str, Any]:
    """Arguments of an observer except ``dtype``, whose names differ between the toolkits."""
    lowest, highest = quantizer.levels
    settings = {"quantizer": quantizer, "quant_min": lowest, "quant_max": highest}
    if quantizer.per_channel:
        scheme = torch.per_channel_symmetric if quantizer.signed else torch.per_channel_affine
        return {**settings, "qscheme": scheme, "ch_axis": 0}
    # torch's symmetric scheme with unsigned levels has its zero point in the middle
    scheme = torch.per_tensor_symmetric if quantizer.signed else torch.per_tensor_affine
    return {**settings, "qscheme": scheme}


class AffineObserver:
    """Mixin of a ``MinMaxObserver`` for any quantizer, with a range that always holds zero.

    Args:
        quantizer: what the range is for; ``quant_min`` and so on come from
            :func:`observer_settings`.
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(self, *args: Any, quantizer: Quantizer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quantizer = quantizer
        for value in (self.min_val, self.max_val):  # infinities would stay in averages of models
            value.zero_()

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Record the range of ``x`` if the mode allows it; returns the range to quantize ``x`` over."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observe ``x``; returns x̂, scale and zero point."""
        qparams = affine_parameters(*self.observe(x), self.quantizer)
        return quantize_dequantize(x, *qparams, self.quantizer), *qparams

    def qparams(self, x: Tensor) -> QuantParams:
        """Parameters with which eval quantizes ``x``; records nothing."""
        return qparams_of(x, self.quantizer)

    def forward(self, x_orig: Tensor) -> Tensor:
        if x_orig.numel() > 0:
            self.observe(x_orig)
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of what was observed, each of shape (1,), or (C,) per channel; 1 and
        0 before that."""
        if self.min_val.numel() == 0:
            return self.min_val.new_ones(1), self.min_val.new_zeros(1, dtype=torch.int)
        scale, zero_point = affine_parameters(self.min_val, self.max_val, self.quantizer)
        return scale.view(-1), zero_point.view(-1).to(torch.int)


class BatchObserver(AffineObserver):
    """The range of each tensor, in train and in eval, or a searched or learned one of
    :mod:`~ghnq_quant.quantization.ranges`.

    Args:
        channels: output channels of a weight; None for an activation.
    """

    def __init__(
        self, *args: Any, quantizer: Quantizer, channels: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, quantizer=quantizer, **kwargs)
        self.range: TensorRange = (
            make_range(quantizer) if channels is None else make_weight_range(quantizer, channels)
        )

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.range(x)
        _keep(self.min_val, low)
        _keep(self.max_val, high)
        return low, high

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(self.range, LearnedRange):
            return super().quantize(x)
        self.observe(x)
        return self.range.quantize(x)

    def qparams(self, x: Tensor) -> QuantParams:
        return self.range.qparams(x)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        fixed = self.range.fixed_qparams()
        if fixed is None:
            return super().calculate_qparams()
        return fixed.scale.view(-1), fixed.zero_point.view(-1).to(torch.int)


def _keep(buffer: Tensor, value: Tensor) -> None:
    """Copy into a buffer that torch.ao creates before the number of channels is known."""
    if buffer.numel() != value.numel():
        buffer.resize_(value.shape)
    buffer.copy_(value)


class EmaObserver(AffineObserver):
    """A moving average of the tensors' ranges, frozen in eval.

    It starts at the first tensor's range; before that, eval uses the range of each tensor and records
    nothing. Training does not move it if the quantizer's range is to be calibrated.
    """

    averaging_constant: float
    training: bool
    num_batches_tracked: Tensor

    def __init__(self, *args: Any, quantizer: Quantizer, **kwargs: Any) -> None:
        super().__init__(*args, quantizer=quantizer, **kwargs)
        self.moves = not quantizer.calibrated
        count = torch.zeros((), dtype=torch.long)
        self.register_buffer("num_batches_tracked", count)  # type: ignore[attr-defined]  # a mixin

    def has_statistics(self) -> bool:
        """Whether at least one tensor was averaged."""
        if torch.compiler.is_compiling():
            return traced_with_statistics(self)  # type: ignore[arg-type]  # mixin of a module
        return int(self.num_batches_tracked) > 0

    def reset(self) -> None:
        """Start again."""
        for value in (self.min_val, self.max_val, self.num_batches_tracked):
            value.zero_()

    reset_min_max_vals = reset

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Start from this range."""
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        self.num_batches_tracked.fill_(1)

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.training and self.moves):
            return (self.min_val, self.max_val) if self.has_statistics() else tensor_range(x)
        ends = of_all_processes(*tensor_range(x))
        average = self.min_val, self.max_val, self.num_batches_tracked
        return move_average(average, ends, self.averaging_constant)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        count, low, high = (f"{prefix}{n}" for n in ("num_batches_tracked", "min_val", "max_val"))
        if count not in state and low in state and high in state:  # versions without a count
            begun = state[low] <= state[high]
            state[count] = begun.long()
            if not begun:
                state |= {key: torch.zeros_like(state[key]) for key in (low, high)}
        super()._load_from_state_dict(state, prefix, *args)  # type: ignore[misc]


class AffineFakeQuantization:
    """Mixin of a ``FakeQuantize`` with an :class:`AffineObserver` and a straight-through gradient.

    torch's own fake quantization gives values outside of the range no gradient. ``scale`` and
    ``zero_point`` are those of the last tensor; they stay if the observer is disabled.
    """

    activation_post_process: AffineObserver
    fake_quant_enabled: Tensor
    observer_enabled: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer that it applies."""
        return self.activation_post_process.quantizer

    def set_channels(self, count: int) -> None:
        """Create a new quantizer's per-channel buffers, which a compiler could not."""
        observer = self.activation_post_process
        buffers = (observer.min_val, observer.max_val, self.scale, self.zero_point)
        for buffer, value in zip(buffers, (0, 0, 1, 0), strict=True):
            buffer.resize_(count).fill_(value)

    def quantized(self, x: Tensor) -> Tensor:
        """A tensor quantized over its own range, or over the frozen one if the observer is disabled;
        records nothing."""
        if not self.fake_quant_enabled[0] or x.numel() == 0:
            return x
        if not self.observer_enabled[0]:
            return self._quantize(x, self.scale, self.zero_point)
        qparams = self.activation_post_process.qparams(x)
        return self._quantize(x, qparams.scale, qparams.zero_point)

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 (torch.ao's name)
        if X.numel() == 0:
            return X
        if torch.compiler.is_compiling():
            return self._without_branches(X)
        if self.observer_enabled[0]:
            y, scale, zero_point = self.activation_post_process.quantize(X)
            _keep(self.scale, scale)
            _keep(self.zero_point, zero_point)
        else:
            y = self._quantize(X, self.scale, self.zero_point)
        return y if self.fake_quant_enabled[0] else X

    def _without_branches(self, x: Tensor) -> Tensor:
        """The same if the values of the switches are not known yet."""
        observing, observer = self.observer_enabled[0] != 0, self.activation_post_process
        kept = [observer.min_val, observer.max_val]
        if isinstance(observer, EmaObserver):
            kept.append(observer.num_batches_tracked)
        before = [buffer.clone() for buffer in kept]
        observed, scale, zero_point = observer.quantize(x)
        for buffer, old in zip(kept, before, strict=True):
            buffer.copy_(torch.where(observing, buffer, old))
        for buffer, new in ((self.scale, scale), (self.zero_point, zero_point)):
            buffer.copy_(torch.where(observing, new, buffer))
        quantized = self._quantize(x, self.scale.clone(), self.zero_point.clone())
        if self.quantizer.learned:
            quantized = torch.where(observing, observed, quantized)
        return torch.where(self.fake_quant_enabled[0] != 0, quantized, x)

    def _quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        shape = (-1,) if self.quantizer.per_channel else ()
        return quantize_dequantize(x, scale.view(shape), zero_point.view(shape), self.quantizer)
