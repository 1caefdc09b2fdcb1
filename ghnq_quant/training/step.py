"""One step of finetuning: a meta-batch of networks with predicted parameters, and the gradient of their
loss on one batch of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.capture import ArchGraph

#: A network whose gradient is larger has diverged: the median is about 3, the largest seen in float 125.
MAX_GRADIENT_NORM = 1e3

Predict = Callable[[list[ArchGraph], list[tuple[int, int]]], list[dict[str, Tensor]]]
Network = Callable[[dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """Of one meta-batch.

    Attributes:
        losses, top1: cross-entropy and accuracy of each network that ran to its end.
        failed: how many did not, for want of memory or because their loss or gradient was not finite or
            beyond all measure.
    """

    losses: tuple[float, ...]
    top1: tuple[float, ...]
    failed: int


def backward_meta_batch(
    predict: Predict,
    graphs: Sequence[ArchGraph],
    networks: Sequence[Network],
    bits: tuple[int, int],
    images: Sequence[Tensor],
    labels: Tensor,
    loss_scale: float = 1.0,
) -> StepResult:
    """Add the gradient of the networks' mean loss to the hypernetwork's parameters.

    Each network runs and is differentiated on its own, down to its predicted parameters; the
    hypernetwork's backward then runs once for all. So the memory is that of one network, and a network
    that fails costs its own part of the gradient alone.

    Args:
        predict: the hypernetwork, or a wrapper of it.
        graphs: M graphs.
        networks: their M networks, each a function of its parameters and of images.
        bits: (weight, activation) precision that the networks run at.
        images: one batch (N, C, H, W) for each network.
        labels: (N,), of every batch.
        loss_scale: factor on the gradient (of mixed precision in float16).
    """
    predicted = predict(list(graphs), [bits] * len(graphs))
    roots: list[Tensor] = []
    gradients: list[Tensor] = []
    losses, top1, failed = [], [], 0
    for network, parameters, x in zip(networks, predicted, images, strict=True):
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        try:
            loss, accuracy = _run(network, leaves, x, labels)
            (loss * (loss_scale / len(networks))).backward()
            gradients_of = [p.grad for p in leaves.values() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients_of) / loss_scale * len(networks)
            usable = bool(loss.isfinite()) and bool(norm <= MAX_GRADIENT_NORM)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            usable = False
        if usable:
            losses.append(float(loss.detach()))
            top1.append(accuracy)
        else:
            failed += 1
        for name, p in parameters.items():
            gradient = leaves[name].grad
            roots.append(p)
            # zeros keep every process of a distributed run in step
            gradients.append(gradient if usable and gradient is not None else torch.zeros_like(p))
    torch.autograd.backward(roots, gradients)
    return StepResult(tuple(losses), tuple(top1), failed)


def _run(
    network: Network, parameters: dict[str, Tensor], images: Tensor, labels: Tensor
) -> tuple[Tensor, float]:
    logits = network(parameters, images).float()
    top1 = (logits.detach().argmax(1) == labels).float().mean()
    return F.cross_entropy(logits, labels), float(top1)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
