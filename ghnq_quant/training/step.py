"""One step of finetuning: a meta-batch of networks with predicted parameters, and the gradient of their
loss on one batch of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.capture import ArchGraph
from ghnq_quant.training.in_flight import map_in_flight

#: The gradient of one network's parameters is scaled down to this norm, so that none of a meta-batch
#: outweighs the others: the median is about 3, but a channel of hardly any variance makes it huge.
MAX_GRADIENT_NORM = 10.0

Predict = Callable[[list[ArchGraph], list[tuple[int, int]]], list[dict[str, Tensor]]]
Batch = tuple[Tensor, Tensor]
Network = Callable[[dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """Of one meta-batch.

    Attributes:
        losses, top1: cross-entropy and accuracy of each network that ran to its end.
        failed: how many did not, for want of memory or because their loss or gradient was not finite.
    """

    losses: tuple[float, ...]
    top1: tuple[float, ...]
    failed: int


def backward_meta_batch(
    predict: Predict,
    graphs: Sequence[ArchGraph],
    networks: Sequence[Network],
    bits: tuple[int, int],
    batches: Sequence[Sequence[Batch]],
    *,
    inner_lr: float = 0.0,
    loss_scale: float = 1.0,
) -> StepResult:
    """Add the gradient of the networks' mean loss to the hypernetwork's parameters.

    A network with several batches takes a step of SGD between one and the next; its loss is then the
    mean over them, and its gradient of first order: the mean of the gradients along the way.

    Each network runs and is differentiated on its own, down to its predicted parameters; the
    hypernetwork's backward then runs once for all. So the memory is that of the networks in flight
    (one a core; on a GPU one), and a network that fails costs its own part of the gradient alone.

    Args:
        predict: the hypernetwork, or a wrapper of it.
        graphs: M graphs.
        networks: their M networks, each a function of its parameters and of images.
        bits: (weight, activation) precision that the networks run at.
        batches: for each network one or more of images (N, C, H, W) and labels (N,).
        inner_lr: learning rate of the steps between a network's batches.
        loss_scale: factor on the gradient (of mixed precision in float16).
    """
    predicted = predict(list(graphs), [bits] * len(graphs))
    share = loss_scale / len(networks)
    runs = map_in_flight(
        lambda job: _run(*job, inner_lr, share),
        list(zip(networks, predicted, batches, strict=True)),
        batches[0][0][1].device,
    )
    values = [p for parameters in predicted for p in parameters.values()]
    gradients = [gradient for run in runs for gradient in run.gradients]
    learned = [p.requires_grad for p in values]  # not those of new batch norms
    torch.autograd.backward(list(compress(values, learned)), list(compress(gradients, learned)))
    ended = [run for run in runs if run.usable]
    return StepResult(
        tuple(run.loss for run in ended), tuple(run.top1 for run in ended), len(runs) - len(ended)
    )


class _Run(NamedTuple):
    """Of one network; without use its gradients are zeros, which keep a distributed run's processes
    in step."""

    gradients: list[Tensor]
    usable: bool
    loss: float = math.nan
    top1: float = math.nan


def _run(
    network: Network,
    predicted: dict[str, Tensor],
    batches: Sequence[Batch],
    inner_lr: float,
    share: float,
) -> _Run:
    """The loss before the first inner step, and ``share`` times the mean gradient."""
    values = [p.detach() for p in predicted.values()]
    total = [torch.zeros_like(p) for p in values]
    first: tuple[float, float] | None = None
    for images, labels in batches:
        leaves = [p.requires_grad_() for p in values]
        try:
            logits = network(dict(zip(predicted, leaves, strict=True)), images).float()
            loss = F.cross_entropy(logits, labels)
            found = torch.autograd.grad(loss * share, leaves, allow_unused=True)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return _Run([torch.zeros_like(p) for p in total], usable=False)
        gradients = [
            torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)
        ]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / share
        if not (loss.isfinite() and math.isfinite(norm)):
            return _Run([torch.zeros_like(p) for p in total], usable=False)
        if first is None:
            first = float(loss.detach()), float((logits.argmax(1) == labels).float().mean())
        clipped = min(1.0, MAX_GRADIENT_NORM / max(norm, 1e-12))
        torch._foreach_add_(total, gradients, alpha=clipped / len(batches))
        # as users clip in training, so that a steep start does not throw a network away
        step = inner_lr / share / max(1.0, norm)
        values = list(torch._foreach_sub([p.detach() for p in leaves], gradients, alpha=step))
    assert first is not None
    return _Run(total, True, *first)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
