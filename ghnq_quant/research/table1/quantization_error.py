"""Mean squared error and signal-to-noise ratio of quantized values."""

from __future__ import annotations

import math

from torch import Tensor


class QuantizationError:
    """Adds up the error over many tensors, in double precision.

    With reference values r and quantized values q, over all elements that were added:
    MSE = Σ (r − q)² / n and SNR = 10 · log10(Σ r² / Σ (r − q)²).

    Example:
        >>> import torch
        >>> error = QuantizationError()
        >>> error.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
        >>> error.mse, error.snr_db
        (0.125, 20.0)
    """

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self.count = 0

    def add(self, reference: Tensor, quantized: Tensor) -> None:
        """Take in two tensors of one shape."""
        r = reference.detach().double()
        self.signal += r.square().sum().item()
        self.noise += (r - quantized.detach().double()).square().sum().item()
        self.count += r.numel()

    @property
    def mse(self) -> float | None:
        """In the square of the values' unit; None where it is not finite or nothing was added."""
        return finite_or_none(self.noise / self.count) if self.count else None

    @property
    def snr_db(self) -> float | None:
        """In dB; None without noise, without signal, or where a value was not finite."""
        if not (self.signal > 0 and self.noise > 0):
            return None
        return finite_or_none(10 * (math.log10(self.signal) - math.log10(self.noise)))


def finite_or_none(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None
