"""Searched ranges: those with the smallest squared error, and percentiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.quantization.affine import (
    affine_parameters,
    along_channels,
    quantize_dequantize,
    quantizer_range,
    tensor_range,
)
from ghnq_quant.quantization.quantizer import Quantizer

#: How many shrunk versions of a range are tried: its hundredths.
CANDIDATES = 100
#: Bins of a histogram, half of them below zero.
BINS = 8192

Range = tuple[Tensor, Tensor]


@torch.no_grad()
def best_share(x: Tensor, quantizer: Quantizer) -> Tensor:
    """The share of [min(x, 0), max(x, 0)] over which quantization has the smallest squared error.

    One of 0.01, 0.02 … 1; the largest of equally good ones. Takes a hundred quantizations.

    Args:
        x: of any shape; (C, …) per channel.

    Returns:
        a scalar, or (C,) per channel.

    Example:
        >>> x = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([4.0])])
        >>> best_share(x, Quantizer(3, symmetric=True))
        tensor(0.2200)
    """
    low, high = quantizer_range(x, quantizer)
    largest = torch.maximum(-low, high)
    size = along_channels(torch.where(largest > 0, largest, torch.ones_like(largest)), x)
    dims = tuple(range(1, x.dim())) if quantizer.per_channel else None

    def error(low: Tensor, high: Tensor) -> Tensor:
        y = quantize_dequantize(x, *affine_parameters(low, high, quantizer), quantizer)
        # normalized, so that squares neither overflow nor vanish
        return torch.linalg.vector_norm(y.sub_(x).div_(size), dim=dims)

    return _share_of_least(error, low, high)


def _share_of_least(error: Callable[[Tensor, Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    share = torch.ones_like(low)
    least = error(low, high)
    for hundredths in range(CANDIDATES - 1, 0, -1):
        candidate = hundredths / CANDIDATES
        found = error(candidate * low, candidate * high)
        share = torch.where(found < least, candidate, share)
        least = torch.minimum(found, least)
    return share


class Histogram:
    """Counts how often values occur in a sequence of tensors.

    Its bins divide [−bound, bound] evenly. A value beyond it doubles the bound and merges bins in
    pairs, so no count is ever split; no bin is wider than a 2,048th of the largest magnitude. It
    takes 64 KiB on the tensors' device, however many values there are.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(torch.linspace(0, 1, 10_001))
        >>> low, high = histogram.percentile_range(99)
        >>> low, high.round(decimals=2)
        (tensor(0.), tensor(0.9900))
    """

    def __init__(self) -> None:
        self._bound = 0.0
        self._counts = torch.zeros(BINS, dtype=torch.float64)
        self._low = self._high = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Count the elements of ``x``, of any shape, all finite."""
        low, high = tensor_range(x)
        self._low = torch.minimum(self._low.to(low), low)
        self._high = torch.maximum(self._high.to(high), high)
        self._counts = self._counts.to(x.device)
        largest = float(torch.maximum(-low, high))
        self._bound = self._bound or largest
        while self._bound < largest:
            pairs = self._counts.view(-1, 2).sum(1)
            self._counts = F.pad(pairs, (BINS // 4, BINS // 4))
            self._bound *= 2
        if self._bound > 0:
            # torch multiplies by the reciprocal, which is denormal or infinite at the ends of float32
            values = x.detach() if 1e-30 < self._bound < 1e30 else x.detach().double()
            self._counts += torch.histc((values / self._bound).float().clamp_(-1, 1), BINS, -1, 1)

    def percentile_range(self, percentile: float) -> Range:
        """From the (100 − percentile)th to the ``percentile``-th percentile, including zero; minimum
        and maximum if that is only zero.

        Args:
            percentile: above 50, up to 100.
        """
        low, high = self._quantile(1 - percentile / 100), self._quantile(percentile / 100)
        low, high = low.clamp_max_(0), high.clamp_min_(0)
        empty = low == high
        return torch.where(empty, self._low, low), torch.where(empty, self._high, high)

    def _quantile(self, share: float) -> Tensor:
        """Interpolated within a bin, and clamped to the range of the values."""
        below = F.pad(self._counts.cumsum(0), (1, 0))
        target = share * below[-1]
        i = torch.searchsorted(below, target).clamp(1, BINS)
        part = (target - below[i - 1]) / (below[i] - below[i - 1]).clamp_min(1)
        value = (i - 1 + part) * (2 * self._bound / BINS) - self._bound
        return value.to(self._low).clamp(self._low, self._high)

    def least_error_range(self, quantizer: Quantizer) -> Range:
        """The range of :func:`best_share`, to the precision of the bins."""
        weights = self._counts.sqrt()
        places = (torch.arange(BINS).to(weights) + 0.5) * (2 / BINS) - 1
        centres = (places * self._bound).to(self._low)

        def error(low: Tensor, high: Tensor) -> Tensor:
            y = quantize_dequantize(centres, *affine_parameters(low, high, quantizer), quantizer)
            return torch.linalg.vector_norm((y - centres).div_(self._bound or 1.0) * weights)

        share = _share_of_least(error, self._low, self._high)
        return share * self._low, share * self._high
