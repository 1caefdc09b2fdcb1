"""The weights of a network's layers as predicted, as PyTorch initializes them, and as trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from ghnq_quant.capture import Capture
from ghnq_quant.errors import GhnqError
from ghnq_quant.research.runs.seeds import EVALUATION_SEED
from ghnq_quant.research.table1.distributions import distribution
from ghnq_quant.research.table1.results import LayerResult
from ghnq_quant.research.table1.variants import Variants, make_variants


def layer_results(
    captured: Capture,
    predicted: Variants,
    predicted_folded: Mapping[str, Tensor],
    batch: Tensor,
    index: int,
    trained: Mapping[str, Tensor] | None,
) -> tuple[LayerResult, ...]:
    """Describe each layer's weight as predicted and from other sources.

    Args:
        captured: the network as it was given.
        predicted: it with predicted parameters.
        predicted_folded: the weights of ``predicted`` with batch norm folded in.
        batch: (N, C, H, W), whose statistics are folded into the weights of the other sources.
        index: of the network, which decides the random numbers of PyTorch's initialization.
        trained: a ``state_dict`` of the network, a source of its own.

    Raises:
        GhnqError: ``trained`` is of another network.
    """
    folded = {"predicted": predicted_folded}
    variants = {"predicted": predicted, "initial": _initialized(captured, EVALUATION_SEED + index)}
    if trained is not None:
        variants["trained"] = _loaded(captured, trained)
    for source in list(variants)[1:]:
        folded[source] = variants[source].folded_weights(batch)
    weights = {source: variant.weights for source, variant in variants.items()}
    return tuple(
        LayerResult(
            name=name,
            shape=tuple(weight.shape),
            depthwise=getattr(captured.modules[name], "groups", 1) > 1 and weight.shape[1] == 1,
            sources={s: _describe(weights[s][name], folded[s][name]) for s in variants},
        )
        for name, weight in predicted.weights.items()
    )


def _describe(weight: Tensor, folded: Tensor) -> dict[str, float | None]:
    values = {**asdict(distribution(weight)), "folded_mismatch": distribution(folded).mismatch}
    return {k: None if v is None else float(f"{v:.6g}") for k, v in values.items()}


def _initialized(captured: Capture, seed: int) -> Variants:
    """The network with PyTorch's own initialization of each of its layers."""
    old = list(captured.root.parameters())
    variants = make_variants(captured, {id(p): torch.empty_like(p) for p in old})
    root = variants.captured.root.cpu()  # where random numbers are the same on every machine
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in root.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    root.to(old[0].device)
    return variants


def _loaded(captured: Capture, state: Mapping[str, Tensor]) -> Variants:
    """The network with the parameters of a ``state_dict``; other entries are not looked at."""
    replaced = {}
    for name, p in captured.root.named_parameters():
        value = state.get(name)
        if value is None or value.shape != p.shape:
            raise GhnqError(
                f"the trained state_dict is not of this model: {name} has shape {tuple(p.shape)}, "
                + ("it lacks that" if value is None else f"there it has {tuple(value.shape)}")
            )
        replaced[id(p)] = value.to(p)
    return make_variants(captured, replaced)
