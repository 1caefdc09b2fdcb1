"""One training of a comparison: the same recipe whatever the start."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import (
    Images,
    evaluation_batches,
    first_epoch,
    training_batch,
    usual_augmentation,
)
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.results import TrialResult
from ghnq_quant.research.starts.settings import BATCH_SIZE, Trial
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.zoos import create_model

#: The images and labels of a step.
Batch = Callable[[int], tuple[Tensor, Tensor]]

CALIBRATION_BATCHES = 8
WARMUP = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
GRADIENT_CLIP = 1.0


def run_trial(
    trial: Trial,
    train: Images,
    test: Images,
    ghn: GHN,
    *,
    backend: str,
    stem_bits: int | None = None,
    data: str,
    test_images: int | None,
) -> TrialResult:
    """Train once and measure.

    SGD with Nesterov's momentum, a linear warm-up over a tenth of the steps and a cosine down to
    zero, and the gradient's norm clipped to 1.

    Args:
        trial: what to train.
        train, test: images.
        ghn: for the starts that predict.
        backend: of the quantized layers.
        stem_bits: weight bits of the first layer where they differ.
        data: what the images are of, as :func:`ghnq_quant.research.data.load_images` takes it.
        test_images: how many images of ``test`` are used.
    """
    began = time.perf_counter()
    start = STARTS[trial.start]
    augment = usual_augmentation(data)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return training_batch(train, step, BATCH_SIZE, trial.seed, augment=augment)

    example = torch.zeros(1, *train.images.shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        model = create_network(trial.arch, len(train.classes))
    float_steps = start.float_steps(trial.steps)
    _optimize(model, batch, range(float_steps), trial.lr)
    quantized = start.quantized(
        model, trial.bits, first_epoch(train, data, trial.seed, BATCH_SIZE),
        ghn=ghn, stem_bits=stem_bits, backend=backend, example_input=example,
    )  # fmt: skip
    first = _accuracy(quantized, train, test, test_images)
    losses = _optimize(quantized, batch, range(float_steps, trial.steps), trial.lr)
    accuracy = _accuracy(quantized, train, test, test_images)
    last = losses[-max(1, trial.steps // 10) :]
    seconds = time.perf_counter() - began
    loss = sum(last) / len(last)
    return TrialResult(trial, first, accuracy, loss if math.isfinite(loss) else None, seconds)


def create_network(arch: str, num_classes: int) -> nn.Module:
    """A network of this comparison, or any that :func:`create_model` makes by its name.

    Raises:
        GhnqError: there is none of that name.
    """
    if arch in CIFAR_NETWORKS:
        return CIFAR_NETWORKS[arch](num_classes)
    return create_model(arch, num_classes)


def _optimize(model: nn.Module, batch: Batch, steps: range, lr: float) -> list[float]:
    """Train for ``steps``; the loss of each."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    model.train()
    losses = []
    for step in steps:
        optimizer.param_groups[0]["lr"] = lr * _schedule((step - steps.start) / len(steps))
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _schedule(progress: float) -> float:
    if progress < WARMUP:
        return (progress + 0.01) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def _accuracy(model: QuantModel, train: Images, test: Images, test_images: int | None) -> float:
    batches: itertools.islice[tuple[Tensor, Tensor]] = itertools.islice(
        evaluation_batches(train, BATCH_SIZE), CALIBRATION_BATCHES
    )
    ghnq_quant.calibrate(model, batches)
    model.eval()
    right = count = 0
    for x, y in evaluation_batches(test, limit=test_images):
        right += int((model(x).argmax(1) == y).sum())
        count += len(y)
    return 100 * right / count
