"""What can be done to predicted parameters so that they are better to train from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnq_quant.ghn.tiling import fan_in_scale

Parameters = dict[str, Tensor]


def blend(share: float) -> Callable[[nn.Module, Parameters], Parameters]:
    """Weights of which ``share`` of the variance is random, at Kaiming's scale."""

    def refine(model: nn.Module, predicted: Parameters) -> Parameters:
        return {
            name: math.sqrt(1 - share) * p + math.sqrt(share) * _random(p) if p.dim() > 1 else p
            for name, p in predicted.items()
        }

    return refine


def complete(scale: float) -> Callable[[nn.Module, Parameters], Parameters]:
    """Random weights at ``scale`` times Kaiming's in the directions that the predicted ones lack."""

    def refine(model: nn.Module, predicted: Parameters) -> Parameters:
        return {
            name: complete_rank(p, scale) if p.dim() > 1 else p for name, p in predicted.items()
        }

    return refine


def complete_rank(weight: Tensor, scale: float) -> Tensor:
    """``weight`` and, orthogonal to its strong directions, random values.

    Of the (c_out, fan-in) matrix, singular directions count as strong above ``scale`` times the
    root mean square singular value of a matrix of Kaiming's scale; what is random is projected
    off them on both sides, so the strong ones stay as they are.
    """
    matrix = weight.flatten(1)
    typical = fan_in_scale(weight.shape) * math.sqrt(max(matrix.shape))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    strong = values > scale * typical
    u, v = left[:, strong], right[strong]
    extra = scale * _random(weight).flatten(1)
    extra = extra - u @ (u.T @ extra)
    extra = extra - (extra @ v.T) @ v
    kept = (u * values[strong]) @ v
    return (kept + extra).view_as(weight)


def reset_norms(model: nn.Module, predicted: Parameters) -> Parameters:
    """Norm layers and biases as new: only convolutions and linear layers are predicted."""
    own = dict(model.named_parameters())
    return {n: p if p.dim() > 1 else own[n].detach() for n, p in predicted.items()}


def rescale(model: nn.Module, predicted: Parameters) -> Parameters:
    """Each output channel of each weight at Kaiming's scale."""
    return {
        n: p
        if p.dim() < 4
        else p
        / p.flatten(1).std(1).view(-1, *[1] * (p.dim() - 1)).clamp_min(1e-8)
        * fan_in_scale(p.shape)
        for n, p in predicted.items()
    }


def chained(
    *steps: Callable[[nn.Module, Parameters], Parameters],
) -> Callable[[nn.Module, Parameters], Parameters]:
    """One after another."""

    def refine(model: nn.Module, predicted: Parameters) -> Parameters:
        for step in steps:
            predicted = step(model, predicted)
        return predicted

    return refine


def _random(weight: Tensor) -> Tensor:
    return torch.randn_like(weight) * fan_in_scale(weight.shape)
