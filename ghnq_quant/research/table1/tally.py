"""Sums over images at one precision: correct answers, and the error of quantized values."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ghnq_quant.quantization import fake_quantize
from ghnq_quant.quantization.quantizer import FLOAT_BITS
from ghnq_quant.quantization.scheme import Precision
from ghnq_quant.research.table1.results import PrecisionResult, finite_or_none


class Tally:
    """Adds up one network's results at one precision.

    Args:
        precision: (weight, activation) bits.
        folded_weights: the weights that are quantized.
    """

    def __init__(self, precision: Precision, folded_weights: Mapping[str, Tensor]) -> None:
        self.top1 = self.top5 = self.nonfinite = 0
        self.weights, self.outputs = QuantizationError(), QuantizationError()
        bits = precision[0]
        if bits != FLOAT_BITS:
            for weight in folded_weights.values():
                self.weights.add(weight, fake_quantize(weight, bits))

    def add_logits(self, logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: (N, classes)
            labels: (N,)
            reference: logits to measure the error against; None for float.
        """
        finite = logits.isfinite().all(1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.top1 += int(((logits.argmax(1) == labels) & finite).sum())
        self.top5 += int(((best == labels[:, None]).any(1) & finite).sum())
        self.nonfinite += int((~finite).sum())
        if reference is not None:
            self.outputs.add(reference, logits)

    def result(self, images: int) -> PrecisionResult:
        """The result, over this many images."""
        return PrecisionResult(
            top1=100 * self.top1 / images,
            top5=100 * self.top5 / images,
            nonfinite_images=self.nonfinite,
            weight_mse=self.weights.mse,
            weight_snr_db=self.weights.snr_db,
            output_mse=self.outputs.mse,
            output_snr_db=self.outputs.snr_db,
        )


class QuantizationError:
    """Sums up the error over many tensors, in double precision.

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
        """Add two tensors of the same shape."""
        r = reference.detach().double()
        self.signal += r.square().sum().item()
        self.noise += (r - quantized.detach().double()).square().sum().item()
        self.count += r.numel()

    @property
    def mse(self) -> float | None:
        """In squared units of the values; None if it is not finite or nothing was added."""
        return finite_or_none(self.noise / self.count) if self.count else None

    @property
    def snr_db(self) -> float | None:
        """In dB; None without noise, without signal, or if a value was not finite."""
        if not (self.signal > 0 and self.noise > 0):
            return None
        return finite_or_none(10 * (math.log10(self.signal) - math.log10(self.noise)))
