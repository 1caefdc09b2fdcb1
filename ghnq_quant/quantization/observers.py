"""ghnq-quant's numbers for observers and fake quantizers in the manner of torch.ao, as mixins of
the classes of that name: torch.ao's own, and torchao's copies of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnq_quant.quantization.affine import affine_parameters, quantize_dequantize, tensor_range


class AffineObserver:
    """Mixin of a ``MinMaxObserver``: the range always holds zero, and any bit width."""

    min_val: Tensor
    max_val: Tensor
    quant_min: int
    quant_max: int

    @property
    def bits(self) -> int:
        """Bit width of the levels."""
        return (self.quant_max - self.quant_min).bit_length()

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Record the range of ``x`` as far as the mode allows; the range to quantize ``x`` over."""
        raise NotImplementedError

    def _has_range(self) -> bool:
        return bool(self.min_val <= self.max_val)

    def forward(self, x_orig: Tensor) -> Tensor:
        if x_orig.numel() > 0:
            self.observe(x_orig)
        return x_orig

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of what was observed, each of shape (1,); 1 and 0 before that."""
        if not self._has_range():
            return self.min_val.new_ones(1), torch.zeros_like(self.min_val, dtype=torch.int).view(1)
        scale, zero_point = affine_parameters(self.min_val, self.max_val, self.bits)
        return scale.view(1), zero_point.view(1).to(torch.int)


class BatchObserver(AffineObserver):
    """The range of each tensor at hand, in train and in eval."""

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = tensor_range(x)
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        return low, high


class EmaObserver(AffineObserver):
    """A moving average of the tensors' ranges, frozen in eval.

    It starts at the first tensor's range; before that, eval takes the range of the tensor at hand
    and records nothing.
    """

    averaging_constant: float
    training: bool

    def has_statistics(self) -> bool:
        """Whether at least one tensor was averaged."""
        return self._has_range()

    def reset(self) -> None:
        """Begin anew."""
        self.min_val.fill_(torch.inf)
        self.max_val.fill_(-torch.inf)

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return (self.min_val, self.max_val) if self.has_statistics() else tensor_range(x)
        low, high = tensor_range(x)
        weight = self.averaging_constant
        for value, new in ((self.min_val, low), (self.max_val, high)):
            new = new.to(value.dtype)
            value.copy_(torch.where(value.isfinite(), value.lerp(new, weight), new))
        return self.min_val, self.max_val


class AffineFakeQuantization:
    """Mixin of a ``FakeQuantize`` over an :class:`AffineObserver`: the gradient is straight-through.

    torch's own fake quantization gives no gradient to values outside of the range. ``scale`` and
    ``zero_point`` are those of the last tensor; with the observer disabled they stay.
    """

    activation_post_process: AffineObserver
    fake_quant_enabled: Tensor
    observer_enabled: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def bits(self) -> int:
        """Bit width of the levels."""
        return self.activation_post_process.bits

    def quantized(self, x: Tensor) -> Tensor:
        """What a tensor becomes that is quantized over its own range, or over the frozen one where
        the observer is disabled; records nothing."""
        if not self.fake_quant_enabled[0] or x.numel() == 0:
            return x
        if not self.observer_enabled[0]:
            return self._quantize(x, self.scale, self.zero_point)
        return self._quantize(x, *affine_parameters(*tensor_range(x), self.bits))

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 (the name that torch.ao gives it)
        if X.numel() == 0:
            return X
        scale, zero_point = self.scale, self.zero_point
        if self.observer_enabled[0]:
            low, high = self.activation_post_process.observe(X)
            scale, zero_point = affine_parameters(low, high, self.bits)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        return self._quantize(X, scale, zero_point) if self.fake_quant_enabled[0] else X

    def _quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return quantize_dequantize(x, scale.view(()), zero_point.view(()), self.bits)
