"""Training on images, and the accuracy it reaches; the same for every start."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import ghnq_quant
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import (
    Images,
    evaluation_batches,
    training_batch,
    usual_augmentation,
)

#: The images and labels of a step.
Batch = Callable[[int], tuple[Tensor, Tensor]]

BATCH_SIZE = 64
CALIBRATION_BATCHES = 8
WARMUP = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class Recipe:
    """What determines a training besides the start, the images and the learning rate.

    Attributes:
        optimizer: called with the parameters and a learning rate.
        schedule: factor on the learning rates, by the fraction of training done, from 0 to 1.
    """

    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    schedule: Callable[[float], float]


def cosine(progress: float) -> float:
    """From 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(progress: float) -> float:
    """Up for a tenth of the training, then a cosine down to 0."""
    if progress < WARMUP:
        return (progress + 0.01) / WARMUP
    return cosine((progress - WARMUP) / (1 - WARMUP))


#: For comparisons: SGD with Nesterov momentum.
SGD = Recipe(
    partial(torch.optim.SGD, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True),
    warmup_cosine,
)
#: For the quickstart.
ADAM = Recipe(torch.optim.Adam, cosine)


def seeded(create: Callable[[int], nn.Module], num_classes: int, seed: int) -> nn.Module:
    """A new network whose parameters depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(num_classes)


def training_batches(train: Images, data: str, seed: int) -> Batch:
    """The augmented batches for training on ``train``, the training part of ``data``."""
    augment = usual_augmentation(data)
    return lambda step: training_batch(train, step, BATCH_SIZE, seed, augment=augment)


def optimize(
    model: nn.Module,
    batch: Batch,
    steps: range,
    lr: float,
    recipe: Recipe,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Train for ``steps``, one batch each; returns the loss of each step.

    Args:
        model: trained in place.
        batch: returns the images and labels of a step.
        steps: consecutive step numbers.
        lr: learning rate.
        recipe: optimizer and schedule.
        after_step: called with each step's number once it is done.
    """
    optimizer = recipe.optimizer(model.parameters(), lr)
    schedule = LambdaLR(optimizer, lambda done: recipe.schedule(done / max(len(steps), 1)))
    losses = []
    for step in steps:
        model.train()  # after_step may have put it into eval
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        after_step(step)
    return losses


@torch.no_grad()
def calibrated_accuracy(
    model: QuantModel, train: Images, test: Images, limit: int | None = None
) -> float:
    """Top-1 accuracy in %, after recalibrating running statistics and ranges.

    In a short training, moving averages lag behind the weights so far that at 4 bits they hide what
    was learned.

    Args:
        model: left in eval mode.
        train: images for the calibration.
        test: images for the accuracy.
        limit: how many of ``test`` are used; None for all.
    """
    batches = itertools.islice(evaluation_batches(train, BATCH_SIZE), CALIBRATION_BATCHES)
    ghnq_quant.calibrate(model, batches)
    model.eval()
    right = count = 0
    for x, y in evaluation_batches(test, limit=limit):
        right += int((model(x).argmax(1) == y).sum())
        count += len(y)
    return 100 * right / count
