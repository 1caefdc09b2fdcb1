"""The trainings of a comparison, one after another or several at a time in processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ghnq_quant.ghn import GHN
from ghnq_quant.research.data import Images, first_epoch
from ghnq_quant.research.runs.processes import in_processes, one_thread
from ghnq_quant.research.starts.cifar_networks import CIFAR_NETWORKS
from ghnq_quant.research.starts.results import TrialResult
from ghnq_quant.research.starts.settings import CompareSettings, Trial
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.research.starts.training import (
    SGD,
    calibrated_accuracy,
    optimize,
    seeded,
    training_batches,
)
from ghnq_quant.zoos import create_model


@dataclass(frozen=True, eq=False)
class Bench:
    """What every process needs to run any of a comparison's trainings.

    Attributes:
        settings: the comparison's settings.
        ghn: the hypernetwork, for the starts that predict.
        train, test: images to train and to measure on.
    """

    settings: CompareSettings
    ghn: GHN
    train: Images
    test: Images

    def results(self, trial: Trial) -> Iterator[TrialResult]:
        """Train once and measure.

        A start that trains in float first does so for part of the steps, with a separate schedule.
        """
        began = time.perf_counter()
        start, settings = STARTS[trial.start], self.settings
        batch = training_batches(self.train, settings.data, trial.seed)
        create = partial(create_network, trial.arch)
        model = seeded(create, len(self.train.classes), trial.seed)
        float_steps = start.float_steps(trial.steps)
        optimize(model, batch, range(float_steps), trial.lr, SGD)
        quantized = start.quantized(
            model,
            trial.bits,
            first_epoch(self.train, settings.data, trial.seed),
            ghn=self.ghn,
            stem_bits=settings.stem_bits,
            backend=settings.backend,
            example_input=torch.zeros(1, *self.train.images.shape[1:]),
        )
        images = (self.train, self.test, settings.test_images)
        first = calibrated_accuracy(quantized, *images)
        losses = optimize(quantized, batch, range(float_steps, trial.steps), trial.lr, SGD)
        accuracy = calibrated_accuracy(quantized, *images)
        last = losses[-max(1, trial.steps // 10) :]
        loss = sum(last) / len(last)
        seconds = time.perf_counter() - began
        yield TrialResult(trial, first, accuracy, loss if math.isfinite(loss) else None, seconds)


def run_trials(bench: Bench, trials: Sequence[Trial], workers: int) -> Iterator[TrialResult]:
    """Run all ``trials``; results come as they are finished."""
    if min(workers, len(trials)) > 1:
        yield from in_processes(bench.results, trials, workers)
        return
    with one_thread():
        for trial in trials:
            yield from bench.results(trial)


def create_network(arch: str, num_classes: int) -> nn.Module:
    """A network of this comparison, or any that :func:`create_model` makes by name.

    Raises:
        GhnqError: there is none of that name.
    """
    if arch in CIFAR_NETWORKS:
        return CIFAR_NETWORKS[arch](num_classes)
    return create_model(arch, num_classes)
