"""What else can be done to predicted parameters before training: random parts of several kinds.

Each takes the network with its own initialization and the parameters that it would be trained
from, and returns new ones. Random filters get the sizes of those that they are mixed with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnq_quant.trainability import root_mean_squares

Parameters = dict[str, Tensor]
Refinement = Callable[[nn.Module, Parameters], Parameters]


def blend(share: float) -> Refinement:
    """Convolutions of which ``share`` of the variance is the network's own initialization."""

    def refine(model: nn.Module, parameters: Parameters) -> Parameters:
        def mix(p: Tensor, own: Tensor) -> Tensor:
            return math.sqrt(1 - share) * p + math.sqrt(share) * own

        return _mixed(model, parameters, mix)

    return refine


def complete(model: nn.Module, parameters: Parameters) -> Parameters:
    """Convolutions whose weak singular directions are the network's own initialization."""
    return _mixed(model, parameters, complete_rank)


def complete_rank(weight: Tensor, own: Tensor) -> Tensor:
    """The strong singular directions of ``weight`` and, orthogonal to them on both sides, those of ``own``.

    Of the (c_out, fan-in) matrices, a singular value counts as strong above the root mean square of
    ``own``'s.
    """
    matrix, other = weight.flatten(1), own.flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    strong = values > other.norm() / math.sqrt(min(matrix.shape))
    u, v = left[:, strong], right[strong]
    rest = other - u @ (u.T @ other)
    rest = rest - (rest @ v.T) @ v
    return ((u * values[strong]) @ v + rest).view_as(weight)


def new_classifier(model: nn.Module, parameters: Parameters) -> Parameters:
    """Linear layers of the network's own initialization: only convolutions are predicted."""
    last = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for kind in ("weight", "bias")
    }
    return {name: own if name in last else p for name, p, own in _with_own(model, parameters)}


def _mixed(
    model: nn.Module, parameters: Parameters, mix: Callable[[Tensor, Tensor], Tensor]
) -> Parameters:
    """Each convolution mixed with the network's own, whose filters get the sizes of its."""
    return {
        name: mix(p, _of_size(own, p)) if p.dim() == 4 else p
        for name, p, own in _with_own(model, parameters)
    }


def _of_size(own: Tensor, filters: Tensor) -> Tensor:
    """``own`` with each filter at the root mean square of that in ``filters``."""
    size, old = (root_mean_squares(w.flatten(1)) for w in (filters, own))
    return own * (size / old.clamp_min(torch.finfo(old.dtype).tiny)).view(-1, 1, 1, 1)


def _with_own(model: nn.Module, parameters: Parameters) -> list[tuple[str, Tensor, Tensor]]:
    own = dict(model.named_parameters())
    return [(name, p, own[name].detach()) for name, p in parameters.items()]
