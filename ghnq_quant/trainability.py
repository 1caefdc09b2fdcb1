"""Predicted parameters made ready for training, where that leaves the network's function as it is or
makes it safer to quantize."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghnq_quant.capture import Capture


def ready_for_training(captured: Capture, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """New batch norms, and filters of the size that training starts from.

    Of each convolution that folds a batch norm:

    - The batch norm's weight and bias become 1 and 0, as new. Predicted ones leave some channels
      without any variance, which in float does no harm; folded into the weights, such a channel
      takes the whole tensorwise range, all others round to zero, and training at 4 bits diverges.
    - Each filter gets the root mean square 1 / sqrt(3 · fan-in), that of ``nn.Conv2d``'s own
      initialization. The batch norm divides the size out again, so the function is the same, but the
      size decides how far a step of SGD or Adam turns the filter: predicted ones of late layers are
      several times smaller than those of early layers, and the same learning rate does not suit both.

    Args:
        captured: the network.
        values: of each of its parameters the predicted value, or None where it keeps its own.

    Returns:
        the same, with new tensors in the place of those that change.

    Example:
        >>> from torch import nn
        >>> from ghnq_quant.capture import capture
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        >>> predicted = [torch.ones(2, 3, 3, 3), torch.zeros(2), torch.ones(2)]
        >>> w, gamma, beta = ready_for_training(capture(model), predicted)
        >>> w[0, 0, 0], gamma, beta
        (tensor([0.1111, 0.1111, 0.1111]), tensor([1., 1.]), tensor([0., 0.]))
    """
    ready = list(values)
    index = {id(p): i for i, p in enumerate(captured.root.parameters())}

    def of(module: str, name: str) -> int | None:
        return index.get(id(getattr(captured.modules[module], name, None)))

    for unit in captured.quant_plan.units:
        if unit.batch_norm is None:
            continue
        for name, fill in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
            i = of(unit.batch_norm, name)
            if i is not None and (value := ready[i]) is not None:
                ready[i] = fill(value)
        i = of(unit.name, "weight")
        if i is not None and (value := ready[i]) is not None:
            ready[i] = _of_initial_size(value)
    return ready


def _of_initial_size(weight: Tensor) -> Tensor:
    """Each filter (c_out, ...) scaled to 1 / sqrt(3 · fan-in); one of zeros stays."""
    fan_in = weight[0].numel()
    rms = weight.float().flatten(1).square().mean(1).sqrt()
    scale = 1 / (math.sqrt(3 * fan_in) * rms.clamp_min(torch.finfo(torch.float32).tiny))
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
