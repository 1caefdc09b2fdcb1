"""Bits of each layer's weight, chosen by what quantizing it does to the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghnq_quant.capture import capture
from ghnq_quant.errors import DataError, SchemeError
from ghnq_quant.quantization import Quantizer, QuantModel, QuantScheme, emit, load_backend
from ghnq_quant.quantization.calibration import begin_weight_ranges
from ghnq_quant.quantization.progress import with_bar
from ghnq_quant.quantization.quantizer import check_bits
from ghnq_quant.quantization.reference import (
    FakeQuantConv2d,
    FakeQuantLinear,
    with_weight_quantizer,
)
from ghnq_quant.quantization.scheme import FLOAT, Bits, check_weights

#: Mean loss of logits (N, classes) for labels (N,), such as ``torch.nn.functional.cross_entropy``.
Loss = Callable[[Tensor, Tensor], Tensor]

BITS = (2, 3, 4, 6, 8)
_WEIGHTS = Quantizer(4)


@dataclass(frozen=True)
class LayerSensitivity:
    """What the output loses when this layer's weight, and nothing else, is quantized.

    Attributes:
        name: name of the conv or linear layer.
        parameters: number of elements of its weight.
        harm: by bit width, the power of the error of the logits over that of the logits, or the
            increase of the loss.
    """

    name: str
    parameters: int
    harm: dict[int, float]


@dataclass(frozen=True)
class Sensitivity:
    """The harm of each layer at each bit width; ``str`` makes a table of it.

    Attributes:
        layers: in the order of the model's modules.
        weights: the quantizer that was measured, at other bits.
        is_loss: whether the harm is an increase of the loss.
    """

    layers: tuple[LayerSensitivity, ...]
    weights: Quantizer
    is_loss: bool

    def assign_bits(self, mean_bits: float = 4, activations: Bits = 4) -> QuantScheme:
        """The scheme with the smallest sum of harm, as :func:`assign_bits` describes it, without
        measuring again.

        Raises:
            SchemeError: no assignment has so few bits.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        bits = list(self.layers[0].harm)
        if not mean_bits >= min(bits):
            raise SchemeError(
                f"mean_bits={mean_bits!r}: the fewest that were measured are {min(bits)}"
            )
        sizes = np.array([layer.parameters for layer in self.layers])
        harm = np.array([list(layer.harm.values()) for layer in self.layers])
        one_width = np.kron(np.eye(len(sizes)), np.ones(len(bits)))
        share = np.kron(sizes / sizes.sum(), bits)
        found = milp(
            harm.ravel() / (np.abs(harm[:, -1]).sum() or 1),  # the solver's tolerances are absolute
            integrality=np.ones(harm.size),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_width, 1, 1), LinearConstraint(share, ub=mean_bits)],
            options={"mip_rel_gap": 0},
        )
        chosen = found.x.reshape(harm.shape).argmax(1)
        scheme = QuantScheme(self.weights, activations)
        overrides = {
            layer.name: (replace(self.weights, bits=bits[i]), scheme.activations)
            for layer, i in zip(self.layers, chosen, strict=True)
        }
        return replace(scheme, overrides=overrides)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        bits = [f"{b} bits" for b in self.layers[0].harm]
        lines = [_row("layer".ljust(width), "weights", bits)]
        for layer in self.layers:
            cells = [f"{h:.4f}" if self.is_loss else _decibels(h) for h in layer.harm.values()]
            lines.append(_row(layer.name.ljust(width), f"{layer.parameters:,}", cells))
        unit = (
            "increase of the loss" if self.is_loss else "signal-to-noise ratio of the logits in dB"
        )
        return "\n".join([*lines, f"({unit})"])


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    bits: Sequence[int] = BITS,
    weights: Quantizer = _WEIGHTS,
    loss: Loss | None = None,
) -> Sensitivity:
    """Measure what quantizing each layer's weight does to the output of a network.

    Layers are quantized one at a time, at one bit width at a time, with their batch norm folded in
    and everything else in float; each takes one pass over the batches. Errors of independent layers
    add up in power, so the sum over layers predicts what a whole assignment does, before any training.

    Args:
        model: a float network that has learned something, such as a trained one or what
            :func:`ghnq_quant.initialize` returns; it is not changed.
        batches: batches of images (N, C, H, W) on the model's device, alone or first in a tuple; with
            ``loss``, pairs (images, labels).
        bits: widths that are measured.
        weights: the kind of quantizer; its own bits are ignored.
        loss: measure the increase of this loss instead of the error of the logits.

    Raises:
        CaptureError: the network cannot be captured.
        SchemeError: a bit width or quantizer that weights cannot have, or a quantized model.
        DataError: there is no batch, a batch lacks labels, or the logits are zero or not finite.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
        >>> measured = sensitivity(model, [torch.randn(16, 3, 8, 8)], bits=(2, 8))
        >>> [layer.name for layer in measured.layers]
        ['0', '2']
        >>> measured.layers[0].harm[2] > measured.layers[0].harm[8]
        True
    """
    if isinstance(model, QuantModel):
        raise SchemeError("the model is quantized: give the float network that it was made from")
    check_weights(weights, "weights")
    widths = sorted({check_bits(b) for b in bits})
    if not widths:
        raise SchemeError("bits is empty: give the widths to measure, such as (2, 3, 4, 6, 8)")
    samples = _read(batches, loss is not None)
    quantized = emit(capture(model).copied({}), QuantScheme(*FLOAT), load_backend("reference"))
    quantized.eval()
    rows = []
    with torch.no_grad():
        logits = [quantized(images) for images, _ in samples]
        for unit in with_bar(quantized.plan.units, "measuring"):
            layer = quantized.get_submodule(unit.name)
            assert isinstance(layer, (FakeQuantConv2d, FakeQuantLinear))
            own, harm = layer.weight_quant, {}
            for b in widths:
                with_weight_quantizer(layer, replace(weights, bits=b))
                begin_weight_ranges(quantized)
                harm[b] = _harm(quantized, samples, logits, loss)
            layer.weight_quant = own
            rows.append(LayerSensitivity(unit.name, layer.weight.numel(), harm))
    return Sensitivity(tuple(rows), weights, loss is not None)


def assign_bits(
    model: nn.Module,
    batches: Iterable[Any],
    mean_bits: float = 4,
    *,
    activations: Bits = 4,
    bits: Sequence[int] = BITS,
    weights: Quantizer = _WEIGHTS,
    loss: Loss | None = None,
) -> QuantScheme:
    """Give more bits to the weights that the output depends on most, within a size limit.

    Of all assignments with at most ``mean_bits`` on average over the model's weights, this finds the
    one with the smallest sum of what :func:`sensitivity` measures, exactly, by integer programming.
    Each weight counts once, so the limit is on the size of the file.

    Args:
        model, batches, bits, weights, loss: as for :func:`sensitivity`.
        mean_bits: largest average number of bits per weight.
        activations: quantizer or bits of all activations.

    Returns:
        a scheme with an override for each layer.

    Raises:
        CaptureError, SchemeError, DataError: as for :func:`sensitivity`; no assignment has so few bits.

    Example:
        >>> import ghnq_quant, torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.Flatten())
        >>> scheme = assign_bits(model, [torch.randn(16, 3, 8, 8)], mean_bits=4)
        >>> ghnq_quant.quantize(model, scheme=scheme)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 1024])
    """
    measured = sensitivity(model, batches, bits=bits, weights=weights, loss=loss)
    return measured.assign_bits(mean_bits, activations)


def _read(batches: Iterable[Any], with_labels: bool) -> list[tuple[Tensor, Tensor | None]]:
    samples: list[tuple[Tensor, Tensor | None]] = []
    for number, batch in enumerate(batches):
        images, labels = (
            batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        )
        if not isinstance(images, Tensor) or (with_labels and not isinstance(labels, Tensor)):
            raise DataError(
                f"batch {number} is a {type(batch).__name__}: give images (N, C, H, W), or pairs "
                "(images, labels), which a loss needs"
            )
        samples.append((images, labels))
    if not samples:
        raise DataError("batches is empty: give at least one batch of images (N, C, H, W)")
    return samples


def _harm(
    model: nn.Module,
    samples: list[tuple[Tensor, Tensor | None]],
    logits: list[Tensor],
    loss: Loss | None,
) -> float:
    error = signal = 0.0
    for (images, labels), expected in zip(samples, logits, strict=True):
        found = model(images)
        if loss is None:
            error += float((found.double() - expected.double()).square().sum())
            signal += float(expected.double().square().sum())
        else:
            assert labels is not None
            error += len(images) * float(loss(found, labels) - loss(expected, labels))
            signal += len(images)
    if not signal > 0 or not math.isfinite(error):
        raise DataError("the model's logits on these batches are all zero, or not finite")
    return error / signal


def _decibels(harm: float) -> str:
    return f"{-10 * math.log10(harm):.1f}" if harm > 0 else "inf"


def _row(name: str, parameters: str, cells: list[str]) -> str:
    return "  ".join([name, parameters.rjust(10), *(cell.rjust(8) for cell in cells)])
