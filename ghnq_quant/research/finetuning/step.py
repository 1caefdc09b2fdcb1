"""One training step: a meta-batch of networks with predicted parameters, and the gradient of their
loss on one batch of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.capture import ArchGraph
from ghnq_quant.research.finetuning.in_flight import map_in_flight

Predict = Callable[[list[ArchGraph], list[tuple[int, int]]], list[dict[str, Tensor]]]
Batch = tuple[Tensor, Tensor]
Network = Callable[[dict[str, Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """The result of one meta-batch.

    Attributes:
        losses, top1: cross-entropy and accuracy of each network that succeeded.
        failed: number of others, which ran out of memory or had a loss or gradient that is not finite.
    """

    losses: tuple[float, ...]
    top1: tuple[float, ...]
    failed: int


def summary(results: Sequence[StepResult]) -> tuple[float, float] | None:
    """Median loss and mean accuracy over the networks of several steps; None if all have failed.

    A median, because one network at 2 bits can have a loss a thousand times that of the others.

    Example:
        >>> summary([StepResult((1.0, 5000.0), (0.5, 0.25), 0), StepResult((2.0,), (0.75,), 1)])
        (2.0, 0.5)
    """
    losses = [loss for result in results for loss in result.losses]
    if not losses:
        return None
    return median(losses), fmean(top1 for result in results for top1 in result.top1)


def backward_meta_batch(
    predict: Predict,
    graphs: Sequence[ArchGraph],
    networks: Sequence[Network],
    bits: Sequence[tuple[int, int]],
    batches: Sequence[Sequence[Batch]],
    *,
    network_clip: float = 10.0,
    inner_lr: float = 0.0,
) -> StepResult:
    """Add the gradient of the networks' mean loss to the hypernetwork's parameters.

    A network with several batches takes an SGD step between them; its loss is then the mean over
    them, and its gradient, to first order, is the mean of the gradients along the way.

    Each network is run and differentiated by itself, down to its predicted parameters, on the images'
    device; the hypernetwork's backward then runs once for all, on its own device. So the memory is
    that of the networks in flight (one per core, or one on a GPU), a network that fails costs only its
    own part of the gradient, and the GPU is synchronized only once a step.

    Args:
        predict: the hypernetwork.
        graphs: M graphs.
        networks: their M networks, each a function of its parameters and of images.
        bits: (weight, activation) precision of each network.
        batches: for each network, one or more batches of images (N, C, H, W) and labels (N,).
        network_clip: largest norm of a network's gradient.
        inner_lr: learning rate of the steps between a network's batches.
    """
    predicted = predict(list(graphs), list(bits))
    runs = map_in_flight(
        lambda item: _network_gradient(*item, network_clip, inner_lr),
        list(zip(networks, predicted, batches, strict=True)),
        batches[0][0][1].device,
    )
    values = [p for parameters in predicted for p in parameters.values()]
    gradient = torch.cat([run.gradient for run in runs]).to(values[0].device).div_(len(runs))
    gradients = [
        g.view_as(p)
        for p, g in zip(values, gradient.split([p.numel() for p in values]), strict=True)
    ]
    learned = [i for i, p in enumerate(values) if p.requires_grad]  # not new batch norms
    torch.autograd.backward([values[i] for i in learned], [gradients[i] for i in learned])
    told = torch.stack([torch.stack((run.usable.float(), run.loss, run.top1)) for run in runs])
    ended = [row for row in told.tolist() if row[0]]
    losses, top1 = (tuple(row[column] for row in ended) for column in (1, 2))
    return StepResult(losses, top1, len(runs) - len(ended))


class _NetworkGradient(NamedTuple):
    """The gradient of one network, on its device; zero if it is unusable.

    Attributes:
        gradient: gradient of all its parameters, concatenated.
        usable, loss, top1: scalars.
    """

    gradient: Tensor
    usable: Tensor
    loss: Tensor
    top1: Tensor


def _network_gradient(
    network: Network,
    predicted: dict[str, Tensor],
    batches: Sequence[Batch],
    network_clip: float,
    inner_lr: float,
) -> _NetworkGradient:
    """The loss before the first inner step, and the mean gradient.

    Nothing here reads a value back from the device, so the host never waits for a GPU.
    """
    device = batches[0][0].device
    values = torch.cat([p.detach().flatten() for p in predicted.values()]).to(device)
    total: Tensor | None = None
    usable = torch.ones((), dtype=torch.bool, device=device)
    first: tuple[Tensor, Tensor] | None = None
    for images, labels in batches:
        try:
            loss, top1, gradient = _differentiated(network, predicted, values, images, labels)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            nothing = torch.zeros((), device=device)
            return _NetworkGradient(torch.zeros_like(values), nothing.bool(), nothing, nothing)
        first = first or (loss, top1)
        norm = gradient.norm()
        usable = usable & loss.isfinite() & norm.isfinite()
        if inner_lr:
            # clipped as in users' training, so that a steep start does not lose a network
            values = values - gradient * (inner_lr / norm.clamp(min=1.0))
        gradient *= network_clip / norm.clamp(min=network_clip)
        total = gradient if total is None else total.add_(gradient)
    assert first is not None
    assert total is not None
    mean = total.div_(len(batches)).masked_fill_(~usable, 0.0)  # new memory takes longer than this
    return _NetworkGradient(mean, usable, *first)


def _differentiated(
    network: Network,
    predicted: dict[str, Tensor],
    values: Tensor,
    images: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, accuracy and gradient of ``values``, which are in the order of ``predicted``."""
    leaf = values.detach().requires_grad_()
    parts = leaf.split([p.numel() for p in predicted.values()])
    parameters = {
        name: part.view_as(p) for (name, p), part in zip(predicted.items(), parts, strict=True)
    }
    logits = network(parameters, images).float()
    loss = F.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), (logits.detach().argmax(1) == labels).float().mean(), gradient


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
