"""The distribution of each layer's weights, in the terms that matter to a tensorwise quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ghnq_quant.capture import Capture
from ghnq_quant.research.table1.results import LayerResult, finite_or_none
from ghnq_quant.research.table1.variants import Variants


@dataclass(frozen=True)
class Distribution:
    """The values of one weight tensor.

    Attributes:
        low, high: its range when quantized, [min(w, 0), max(w, 0)].
        std: standard deviation (biased).
        kurtosis: the fourth standardized moment: 3 for normally distributed values, 1.8 for uniform
            ones; None for a constant tensor.
        mismatch: the tensor's range over the median range of its output channels, both as they
            would be quantized: 1 if all channels share one range, 16 if the median channel is left
            with 4 of 8 bits. None if the median channel is zero.
    """

    low: float
    high: float
    std: float
    kurtosis: float | None
    mismatch: float | None


def distribution(weight: Tensor) -> Distribution:
    """Describe a weight.

    Args:
        weight: (C_out, …), with at least one value.

    Example:
        >>> d = distribution(torch.tensor([[-1.0, 1.0], [-0.25, 0.25], [0.0, 0.5]]))
        >>> d.low, d.high, d.mismatch
        (-1.0, 1.0, 4.0)
    """
    channels = weight.detach().double().flatten(1)
    lows = channels.amin(1).clamp_max(0)
    highs = channels.amax(1).clamp_min(0)
    low, high = lows.min().item(), highs.max().item()
    # for an even number of channels, the mean of the middle two
    median = torch.quantile(highs - lows, 0.5).item()
    centred = channels - channels.mean()
    variance = centred.square().mean().item()
    fourth = centred.pow(4).mean().item()
    return Distribution(
        low=low,
        high=high,
        std=variance**0.5,
        kurtosis=finite_or_none(fourth / variance**2) if variance**2 > 0 else None,
        mismatch=finite_or_none((high - low) / median) if median > 0 else None,
    )


def parameter_distributions(
    model_or_state: nn.Module | Mapping[str, Tensor],
) -> dict[str, Distribution]:
    """The distribution of each conv and linear weight.

    Args:
        model_or_state: a network or a ``state_dict``, such as from ``predict_parameters``; its
            tensors of two or more dimensions whose name ends in ``weight`` are used.

    Returns:
        by layer name, in the network's order.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> list(parameter_distributions(model))
        ['0']
    """
    if isinstance(model_or_state, nn.Module):
        state: Mapping[str, Tensor] = dict(model_or_state.named_parameters())
    else:
        state = model_or_state
    return {
        name.rpartition(".")[0]: distribution(tensor)
        for name, tensor in state.items()
        if name.rpartition(".")[2] == "weight" and tensor.ndim >= 2
    }


def describe_layers(captured: Capture, sources: Mapping[str, Variants]) -> tuple[LayerResult, ...]:
    """Describe the weight of each conv and linear layer from several sources.

    Args:
        captured: the network.
        sources: the network with the parameters of each source, by the source's name.

    Returns:
        in order of execution.
    """
    layers = []
    for name in next(iter(sources.values())).weights:
        groups = getattr(captured.modules[name], "groups", 1)
        shape = captured.modules[name].get_parameter("weight").shape
        described = {
            source: _describe(variants.weights[name], variants.folded_weights[name])
            for source, variants in sources.items()
        }
        layers.append(LayerResult(name, tuple(shape), groups > 1 and shape[1] == 1, described))
    return tuple(layers)


def _describe(weight: Tensor, folded: Tensor) -> dict[str, float | None]:
    values = {**asdict(distribution(weight)), "folded_mismatch": distribution(folded).mismatch}
    return {k: None if v is None else float(f"{v:.6g}") for k, v in values.items()}
