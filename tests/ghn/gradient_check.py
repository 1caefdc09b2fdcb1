"""Gradients of a hypernetwork against finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnq_quant import GHN
from ghnq_quant.capture import ArchGraph


def check_gradients(ghn: GHN, graph: ArchGraph) -> None:
    """Assert that the gradients of all parameters except the tables of sizes are right, in float64."""
    names, weights = zip(*ghn.named_parameters(), strict=True)

    def values(*w: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(names, w, strict=True))
        (parameters,) = torch.func.functional_call(ghn, state, ([graph],))
        return tuple(parameters.values())

    inputs = [
        w.detach().clone().requires_grad_("shape_enc" not in n)
        for n, w in zip(names, weights, strict=True)
    ]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)
