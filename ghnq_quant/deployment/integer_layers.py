"""Layers that compute on integers, held exactly in plain float32 tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, stretch
from ghnq_quant.quantization.affine import along_channels

#: float32 holds every integer up to this one, so sums below it are exact in any order. Those of 258
#: products of two integers up to 255 always are, and so are most longer ones.
_EXACT = 2**24
#: A device's accumulator has 32 bits.
_ACCUMULATOR = 2**31


@dataclass(frozen=True)
class Levels:
    """The integers of a quantized tensor: its levels minus the zero point.

    Attributes:
        scale: each integer stands for the value integer · scale.
        lowest, highest: the range of the integers.
    """

    scale: float
    lowest: int
    highest: int

    @staticmethod
    def of(quantizer: FixedQuantizer) -> Levels:
        """The integers that a quantizer rounds to."""
        lowest, highest = (level - int(quantizer.zero_point) for level in quantizer.levels)
        return Levels(float(quantizer.scale), lowest, highest)

    def round_(self, steps: Tensor) -> Tensor:
        """Round ``steps`` in place to the nearest integers, half to even."""
        return steps.round_().clamp_(self.lowest, self.highest)


class IntegerQuantize(nn.Module):
    """Turns values into integers."""

    def __init__(self, result: Levels) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        return self.result.round_(x / self.result.scale)

    def extra_repr(self) -> str:
        return f"result={self.result}"


class IntegerLayer(nn.Module):
    """A convolution or linear layer on integers (Jacob et al. 2018, sections 2.2 to 2.4).

    It adds up products of integers and the bias, an integer in steps of input scale · weight scale,
    exactly. The sums, multiplied by input scale · weight scale / output scale in float32 and rounded
    half to even, equal those of onnxruntime's ``QLinearConv``. If the output is values, the float
    bias is added to them instead.

    The weight is stored as int8 levels: unsigned levels are lowered by half their range.

    Args:
        layer: a layer for which :func:`fits_integers` is true.
        source: the integers of the input.
        result: the integers of the output; None if the output is values.

    Shape:
        (N, C_in, H, W) or (N, …, C_in) to (N, C_out, H', W') or (N, …, C_out), float32.
    """

    weight: Tensor
    weight_zero_point: Tensor
    bias_levels: Tensor
    multiplier: Tensor
    bias: Tensor | None

    def __init__(self, layer: FoldedLayer, source: Levels, result: Levels | None = None) -> None:
        super().__init__()
        levels, zero_point = _weight_levels(layer)
        steps = _accumulator_steps(layer, source)
        bias = _bias_levels(layer, steps, result)
        self._product: Callable[..., Tensor] = F.linear
        self._along: tuple[int, ...] = (-1,)
        self._channels, self._groups = -1, 1
        if isinstance(layer, FoldedConv2d):
            geometry = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "groups")}
            self._product = partial(F.conv2d, **geometry)
            self._along = (-1, 1, 1)
            self._channels, self._groups = -3, layer.groups
        multiplier = steps if result is None else steps / result.scale
        if multiplier.dim():
            multiplier = multiplier.view(self._along)
        values = layer.bias if result is None else None
        self.register_buffer("weight", levels.to(torch.int8))
        self.register_buffer("weight_zero_point", zero_point.to(torch.int16))
        self.register_buffer("bias_levels", bias.to(torch.int32))
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("bias", None if values is None else values.detach().view(self._along))
        self.result = result
        self._piece = _exact_piece(_largest_sums(layer, source), bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sums(x).mul_(self.multiplier)
        if self.result is not None:
            return self.result.round_(y)
        return y if self.bias is None else y.add_(self.bias)

    def sums(self, x: Tensor) -> Tensor:
        """Exact sums of products and integer bias; beyond 2^24 rounded to float32 at the end."""
        # computed each time: storing it would save only a tenth of the time at batch size 1
        weight = self.weight.float()
        weight = weight.sub_(along_channels(self.weight_zero_point, weight))
        if self._piece is None:
            return self._product(x, weight, self.bias_levels.float())
        groups = x.unflatten(self._channels, (self._groups, -1))
        total = self.bias_levels.double().view(self._along)
        for part, columns in zip(
            groups.split(self._piece, self._channels), weight.split(self._piece, 1), strict=True
        ):
            part = part.flatten(self._channels - 1, self._channels)
            total = total + self._product(part, columns)
        return total.float()

    def extra_repr(self) -> str:
        return f"weight {tuple(self.weight.shape)}, result={self.result}"


def fits_integers(layer: FoldedLayer, source: Levels, result: Levels | None) -> bool:
    """Whether the layer can be an :class:`IntegerLayer`: its sums fit in 32 bits."""
    if layer.weight_quant is None:
        return False
    if isinstance(layer, FoldedConv2d) and layer.padding_mode != "zeros":
        return False
    sums = _largest_sums(layer, source)
    bias = _bias_levels(layer, _accumulator_steps(layer, source), result)
    total = sums.sum(2).max() + bias.abs().max()
    return bool(sums.max() < _EXACT and total < _ACCUMULATOR)


def _weight_levels(layer: FoldedLayer) -> tuple[Tensor, Tensor]:
    """The weight's levels and zero point, stretched to 8 bits and within int8."""
    assert layer.weight_quant is not None
    quantizer = layer.weight_quant.quantizer
    factor, shift = stretch(quantizer), 0 if quantizer.signed else 128
    levels = layer.weight_levels().to(torch.int16) * factor - shift
    return levels, layer.weight_quant.zero_point.to(torch.int16) * factor - shift


def _accumulator_steps(layer: FoldedLayer, source: Levels) -> Tensor:
    """Input scale · weight scale, a scalar or (C_out,)."""
    assert layer.weight_quant is not None
    return layer.weight_quant.scale / stretch(layer.weight_quant.quantizer) * source.scale


def _bias_levels(layer: FoldedLayer, steps: Tensor, result: Levels | None) -> Tensor:
    """The bias in the accumulator's steps: (C_out,) integers in float64; 0 without a bias."""
    if layer.bias is None or result is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64)
    return torch.round(layer.bias.detach().double() / steps.double())


def _largest_sums(layer: FoldedLayer, source: Levels) -> Tensor:
    """The largest sums of positive and of negative products, (2, C_out, C_in / groups), that each
    output can get from each of its input channels. No partial sum exceeds them."""
    levels, zero_point = _weight_levels(layer)
    weight = (levels - along_channels(zero_point, levels)).double()
    weight = weight.reshape(*weight.shape[:2], -1)
    positive, negative = weight.clamp(min=0).sum(2), weight.clamp(max=0).sum(2).neg()
    high, low = max(source.highest, 0), max(-source.lowest, 0)
    return torch.stack((positive * high + negative * low, positive * low + negative * high))


def _exact_piece(sums: Tensor, bias: Tensor) -> int | None:
    """Over how many input channels of a group sums are exact in float32; None if over all, with
    the bias."""
    if sums.sum(2).max() + bias.abs().max() < _EXACT:
        return None
    channels = sums.shape[2]
    sizes = (-(-channels // pieces) for pieces in range(1, channels + 1))
    return next(size for size in sizes if all(s.sum(2).max() < _EXACT for s in sums.split(size, 2)))
