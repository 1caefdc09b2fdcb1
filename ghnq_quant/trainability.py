"""Predicted parameters made ready for training: safer to quantize, and no two channels the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghnq_quant.capture import Capture
from ghnq_quant.quantization import QuantScheme

#: Weight bits up to which a filter's weights are spread evenly.
_FEW_BITS = 3
#: Of a filter that repeats another, the share of the variance that becomes random.
_RANDOM_SHARE = 0.5
_SEED = 0
#: Of noise, so that it needs hardly any memory.
_ELEMENTS_AT_ONCE = 1 << 20


def ready_for_training(
    captured: Capture,
    values: Sequence[Tensor | None],
    scheme: QuantScheme,
    *,
    untie: bool = True,
) -> None:
    """New batch norms, evenly spread filters at few bits, and no filter twice.

    Of each convolution that folds a batch norm:

    - The batch norm's weight and bias become 1 and 0, as new. Predicted ones leave some channels
      without any variance, which in float does no harm; folded into the weights, such a channel
      takes the whole tensorwise range, all others round to zero, and training at 4 bits diverges.
    - At 2 and 3 weight bits the weights of each filter are spread evenly between minus and plus its
      largest, as those of a new layer are, with their signs and order kept. Predicted ones have heavy
      tails: the largest sets the step, and most weights, or whole filters, round to zero. The
      constant channel of such a filter ends the training of MobileNets at 3 bits.

    The sizes of filters stay as they are predicted. A batch norm divides them out again, but they
    decide how far a step of training turns a filter, and the hypernetwork was trained for that with
    inner steps: first layers have up to eight times the size of new ones, so that they are kept.

    Of each convolution and linear layer: a filter that equals an earlier one becomes half random, at
    its own size and the same at each call. A hypernetwork repeats its filters where a layer has more
    channels than it decodes; channels with equal filters get equal gradients and never become
    different, so that a wide layer would train like a narrow one.

    Args:
        captured: the network.
        values: of each of its parameters the predicted value, or None where it keeps its own; changed
            in place.
        scheme: the bits of each layer's weights.
        untie: make filters that repeat others half random.

    Example:
        >>> from torch import nn
        >>> from ghnq_quant import QuantScheme
        >>> from ghnq_quant.capture import capture
        >>> model = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        >>> w, gamma, beta = torch.ones(2, 3, 3, 3), torch.zeros(2), torch.ones(2)
        >>> ready_for_training(capture(model), [w, gamma, beta], QuantScheme(4, 4), untie=False)
        >>> w[0, 0, 0], gamma, beta
        (tensor([1., 1., 1.]), tensor([1., 1.]), tensor([0., 0.]))
    """
    index = {id(p): i for i, p in enumerate(captured.root.parameters())}

    def of(module: str, name: str) -> Tensor | None:
        i = index.get(id(getattr(captured.modules[module], name, None)))
        return None if i is None else values[i]

    generator = torch.Generator().manual_seed(_SEED)
    for unit in captured.quant_plan.units:
        weight = of(unit.name, "weight")
        if unit.batch_norm is not None:
            for name, new in (("weight", 1.0), ("bias", 0.0)):
                if (value := of(unit.batch_norm, name)) is not None:
                    value.fill_(new)
        if weight is None or weight.is_meta:  # a meta one has no values to compare
            continue
        filters = weight.view(len(weight), -1)
        if untie:
            _untie(filters, generator)
        if unit.batch_norm is not None and scheme.bits_of(unit.name)[0] <= _FEW_BITS:
            _spread_evenly(filters)


def _untie(filters: Tensor, generator: torch.Generator) -> None:
    """Make rows of (c_out, fan-in) partly random that equal an earlier one."""
    rows = _repeats(filters).nonzero().flatten()
    for part in rows.split(max(1, _ELEMENTS_AT_ONCE // filters.shape[1])):
        w = filters[part]
        size = root_mean_squares(w).to(w)
        noise = torch.randn(w.shape, generator=generator).to(w)
        filters[part] = w.mul_(math.sqrt(1 - _RANDOM_SHARE)).addcmul_(
            size, noise, value=math.sqrt(_RANDOM_SHARE)
        )


def _spread_evenly(filters: Tensor) -> None:
    """Replace each value in a row of (c_out, fan-in) by its sign and the rank of its magnitude, scaled
    to the row's size; zeros stay."""
    fan_in = filters.shape[1]
    ranks = (torch.arange(fan_in, device=filters.device, dtype=filters.dtype) + 0.5) / fan_in
    for w in filters.split(max(1, _ELEMENTS_AT_ONCE // fan_in)):
        size = root_mean_squares(w).to(w)
        order = w.abs().argsort(dim=1, stable=True)
        w.sign_().mul_(torch.empty_like(w).scatter_(1, order, ranks.expand_as(w)))
        tiny = torch.finfo(w.dtype).tiny
        w.mul_(size / root_mean_squares(w).to(w).clamp_min(tiny))


def root_mean_squares(filters: Tensor) -> Tensor:
    """Of each row of (c_out, fan-in), as (c_out, 1) in float32."""
    return filters.float().square().mean(1, keepdim=True).sqrt()


def _repeats(filters: Tensor) -> Tensor:
    """(c_out,): whether a filter equals one before it, by its first values, which are telling enough."""
    groups, index = torch.unique(filters[:, :64], dim=0, return_inverse=True)
    place = torch.arange(len(filters), device=filters.device)
    first = place.new_full((len(groups),), len(filters)).scatter_reduce(0, index, place, "amin")
    return first[index] < place
