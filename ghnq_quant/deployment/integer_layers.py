"""Layers that compute on integers, in plain float32 tensors that hold them exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLayer, stretch
from ghnq_quant.quantization.affine import along_channels

#: float32 holds every integer up to here: sums that stay below are exact in any order, as those of
#: 258 products of two integers up to 255 always do, and most of more.
_EXACT = 2**24
#: What the 32 bits of a device's accumulator hold.
_ACCUMULATOR = 2**31


@dataclass(frozen=True)
class Levels:
    """The integers of a quantized tensor, which are its levels less the zero point.

    Attributes:
        scale: each integer stands for the value integer · scale.
        lowest, highest: of the integers.
    """

    scale: float
    lowest: int
    highest: int

    @staticmethod
    def of(quantizer: FixedQuantizer) -> Levels:
        """Those that a quantizer rounds to."""
        lowest, highest = (level - int(quantizer.zero_point) for level in quantizer.levels)
        return Levels(float(quantizer.scale), lowest, highest)

    def round_(self, steps: Tensor) -> Tensor:
        """The integers nearest to ``steps``, in place of it; half to even."""
        return steps.round_().clamp_(self.lowest, self.highest)


class IntegerQuantize(nn.Module):
    """From values to integers."""

    def __init__(self, result: Levels) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        return self.result.round_(x / self.result.scale)

    def extra_repr(self) -> str:
        return f"result={self.result}"


class IntegerLayer(nn.Module):
    """A convolution or linear layer on integers (Jacob et al. 2018, sections 2.2 to 2.4).

    Sums are exact: of products of levels and the bias, an integer in steps of input scale · weight
    scale. Multiplied by input scale · weight scale / output scale in float32 and rounded half to
    even, they are what onnxruntime's ``QLinearConv`` gives. Where values are asked for, the bias is
    added to them as it is.

    The weight is kept as int8 levels, half the range below unsigned ones.

    Args:
        layer: of which :func:`fits_integers` is true.
        source: the integers of the input.
        result: those of the output; None for an output of values.

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
        """The exact sums of products and integer bias; beyond 2^24 rounded to float32 in the end."""
        # made anew each time: keeping it would save a tenth of the time at batch size 1, no more
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
    """Whether the layer can be an :class:`IntegerLayer` whose sums fit 32 bits."""
    if layer.weight_quant is None:
        return False
    if isinstance(layer, FoldedConv2d) and layer.padding_mode != "zeros":
        return False
    sums = _largest_sums(layer, source)
    bias = _bias_levels(layer, _accumulator_steps(layer, source), result)
    total = sums.sum(2).max() + bias.abs().max()
    return bool(sums.max() < _EXACT and total < _ACCUMULATOR)


def _weight_levels(layer: FoldedLayer) -> tuple[Tensor, Tensor]:
    """The weight's levels and zero point on the scale of 8 bits, in the range of int8."""
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
    """The bias in the accumulator's steps, (C_out,) integers in float64; 0 without one."""
    if layer.bias is None or result is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64)
    return torch.round(layer.bias.detach().double() / steps.double())


def _largest_sums(layer: FoldedLayer, source: Levels) -> Tensor:
    """The largest sum of positive products and of negative ones, (2, C_out, C_in / groups), that
    each output takes from each of its input channels: no partial sum lies outside."""
    levels, zero_point = _weight_levels(layer)
    weight = (levels - along_channels(zero_point, levels)).double()
    weight = weight.reshape(*weight.shape[:2], -1)
    positive, negative = weight.clamp(min=0).sum(2), weight.clamp(max=0).sum(2).neg()
    high, low = max(source.highest, 0), max(-source.lowest, 0)
    return torch.stack((positive * high + negative * low, positive * low + negative * high))


def _exact_piece(sums: Tensor, bias: Tensor) -> int | None:
    """Among how many input channels of a group sums are exact in float32; None if among all, with
    the bias."""
    if sums.sum(2).max() + bias.abs().max() < _EXACT:
        return None
    channels = sums.shape[2]
    sizes = (-(-channels // pieces) for pieces in range(1, channels + 1))
    return next(size for size in sizes if all(s.sum(2).max() < _EXACT for s in sums.split(size, 2)))
