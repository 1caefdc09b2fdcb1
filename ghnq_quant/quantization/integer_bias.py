"""Biases that integer kernels add exactly (Jacob et al. 2018, section 2.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ghnq_quant.quantization.affine import QuantParams

#: From a layer's weight, with its batch norm folded in, to the steps of its bias: a scalar or
#: (C_out,); None where the bias stays float.
Steps = Callable[[Tensor], Tensor | None]
#: From a bias (C_out,) and that weight to the bias that is added.
RoundBias = Callable[[Tensor, Tensor], Tensor]

#: A bias of more steps leaves no room for the sum in 32 bits, and stays float.
LARGEST_BIAS = 2**30


class RoundsBias(nn.Module):
    """Mixin for layers that can round their bias.

    Attributes:
        bias_steps: what the bias is rounded to; None for float biases.
    """

    weight: Tensor
    bias: Any
    bias_steps: Steps | None = None

    def own_bias(self) -> Tensor | None:
        """The bias as it is added, in a layer without a batch norm."""
        return None if self.bias is None else self.rounded_bias(self.bias, self.weight)

    def rounded_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """``bias`` (C_out,) rounded to the nearest steps, with a straight-through gradient.

        Args:
            weight: the layer's weight before it is quantized, with the batch norm folded in.
        """
        steps = None if self.bias_steps is None else self.bias_steps(weight)
        if steps is None:
            return bias
        with torch.no_grad():
            levels = torch.round(bias / steps)
            error = torch.where(levels.abs() < LARGEST_BIAS, levels * steps - bias, 0)
        return bias + error


def rounding_of(layer: nn.Module) -> RoundBias:
    """How a layer of any class rounds a bias."""
    return layer.rounded_bias if isinstance(layer, RoundsBias) else unrounded


def unrounded(bias: Tensor, weight: Tensor) -> Tensor:
    """A float bias."""
    return bias


def fine_scale(qparams: QuantParams, weight: Tensor) -> Tensor:
    """A weight's scale; for channels of nothing but zeros, whose own is an arbitrary 1, the smallest
    one, so that the steps of their bias are fine too."""
    if not qparams.scale.dim():
        return qparams.scale
    zero = weight.detach().flatten(1).abs().amax(1) == 0
    return torch.where(zero, qparams.scale.amin(), qparams.scale)
