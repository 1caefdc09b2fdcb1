"""Batch norm as a factor and a shift of each channel, folded into a convolution's weight.

The paper's equation 1, with two exceptions that may be asked for: channels that never vary, and a limit
on how far single channels may stretch the range of the whole weight. Where one step serves all
channels, the one with the largest folded range sets it, and the others may round to zero. Predicted
batch norms make such channels: 1/σ of a channel that hardly varies is large, and the hypernetwork
cannot know σ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ghnq_quant.errors import SchemeError


class Folding(NamedTuple):
    """How batch norms are folded, besides equation 1.

    Attributes:
        ignore_constants: fold filters whose channel does not vary to zero.
        limit: see :class:`ghnq_quant.QuantScheme`.
    """

    ignore_constants: bool = False
    limit: float | None = None


#: Without exceptions.
EQUATION_1 = Folding()


def check_channel_limit(limit: float | None) -> float | None:
    """``limit`` itself.

    Raises:
        SchemeError: it is neither None nor a finite number from 1.
    """
    if limit is not None and not (
        isinstance(limit, (int, float)) and math.isfinite(limit) and limit >= 1
    ):
        raise SchemeError(
            f"channel_limit={limit!r}: give how many times the median range of a weight's channels "
            "the largest may be, a number from 1, or None for no limit"
        )
    return limit


def factor_and_shift(
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    folding: Folding,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Batch norm as z · factor + shift, and what the limit multiplied γ by, if there is one; if
    constants are ignored, the factor of channels that do not vary is zero."""
    if folding.ignore_constants:
        variance = ignoring_constants(mean, variance)
    factor, caps = _factor(weight, variance, gamma, eps, folding.limit)
    return factor, -mean * factor if beta is None else torch.addcmul(beta, -mean, factor), caps


def ignoring_constants(mean: Tensor, variance: Tensor) -> Tensor:
    """The variance, but infinite where it is within the rounding error of the mean. The output of a
    channel that never varies is β for any filter, so its filter is folded to zero. Scaled by
    γ / sqrt(ε), 316 γ, it would set the range of the whole layer, and the others would round to 0."""
    rounding = 8 * torch.finfo(variance.dtype).eps * mean
    return variance.masked_fill(variance <= rounding.square(), math.inf)


def folded_weight(
    weight: Tensor, bn: nn.BatchNorm2d, variance: Tensor, limit: float | None = None
) -> Tensor:
    """``weight`` (C_out, …) with ``bn`` folded in, given the variance (C_out,) of its channels."""
    return scaled(weight, _factor(weight, variance, bn.weight, bn.eps, limit)[0])


def _factor(
    weight: Tensor, variance: Tensor, gamma: Tensor | None, eps: float, limit: float | None
) -> tuple[Tensor, Tensor | None]:
    """γ / sqrt(σ² + ε) of each channel within the limit, and what that multiplied it by."""
    factor = (variance + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma
    if limit is None:
        return factor, None
    caps = channel_caps(weight, factor, limit)
    return factor * caps, caps


def scaled(weight: Tensor, factor: Tensor) -> Tensor:
    """A convolution's weight with a factor (C_out,) on its filters."""
    return weight * factor.view(-1, 1, 1, 1)


def channel_caps(weight: Tensor, factor: Tensor, limit: float) -> Tensor:
    """Factors min(1, limit · median(r) / r_c) on γ, r_c the largest magnitude in a folded channel c.

    Args:
        weight: (C_out, …).
        factor: (C_out,), γ / sqrt(σ² + ε).

    Returns:
        (C_out,), without gradient; ones if half of the channels are zero.

    Example:
        >>> weight = torch.tensor([[1.0], [-2.0], [12.0]])
        >>> channel_caps(weight, torch.ones(3), limit=2.0)
        tensor([1.0000, 1.0000, 0.3333])
    """
    with torch.no_grad():
        ranges = weight.abs().flatten(1).amax(1) * factor.abs()
        most = limit * ranges.median()
        return torch.where((ranges > most) & (most > 0), most / ranges, 1.0)
