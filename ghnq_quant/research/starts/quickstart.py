"""Quantization-aware training of a small CNN, from GHN-Q's start and from PyTorch's initialization."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import ghnq_quant
from ghnq_quant.errors import GhnqError
from ghnq_quant.files import read_json, save_json, save_state
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data import ImageSet, first_epoch, load_images
from ghnq_quant.research.runs.lock import locked
from ghnq_quant.research.runs.progress import Progress
from ghnq_quant.research.starts.quickstart_results import QuickstartResult, QuickstartSettings
from ghnq_quant.research.starts.small_mobilenet import SmallMobileNet
from ghnq_quant.research.starts.starts import STARTS
from ghnq_quant.research.starts.training import (
    ADAM,
    BATCH_SIZE,
    calibrated_accuracy,
    optimize,
    seeded,
    training_batches,
)

# Chosen from 0.002, 0.003, 0.005 and 0.01 with Adam: all work for PyTorch's initialization on the
# digits at 4 bits; without clipping, or with a larger rate, GHN-Q's start diverges.
LEARNING_RATE = 5e-3
#: The starts that are compared, by their name in the results.
COMPARED = {"GHN-Q": STARTS["ghnq"], "PyTorch": STARTS["pytorch"]}


def run_quickstart(
    settings: QuickstartSettings,
    output: str | Path,
    *,
    ghn: GHN | None = None,
    console: Console | None = None,
) -> QuickstartResult:
    """Train from both starts with every seed; show and save the results.

    A seed determines the order and augmentation of the images and PyTorch's initialization, the same
    for both starts; GHN-Q's start reads the first images of the training. Before each measurement,
    both are calibrated on the same training images.

    Args:
        settings: data, precision and budget.
        output: folder for ``results.json``, ``curves.png``, and ``model.safetensors`` with
            ``model.json``: the first seed's network, trained from GHN-Q's start.
        ghn: the hypernetwork; the shipped one by default.
        console: where to show the progress bar and the table; None for no output.

    Raises:
        DataError: the images cannot be used; raised before any training.
        GhnqError: another run is writing to the folder.

    Example:
        >>> from ghnq_quant.research.starts.quickstart import QuickstartSettings, run_quickstart
        >>> result = run_quickstart(QuickstartSettings(), "results")  # doctest: +SKIP
        >>> result.accuracy["GHN-Q"][0][-1]  # %, first seed, last epoch  # doctest: +SKIP
    """
    output = Path(output)
    images = load_images(settings.data, name=settings.data_name, download=True)
    if settings.max_train is not None:
        images = ImageSet(images.name, images.train.sample(settings.max_train), images.test)
    start = time.perf_counter()
    accuracy: dict[str, list[list[float]]] = {name: [] for name in COMPARED}
    steps = len(COMPARED) * settings.seeds * settings.epochs * _steps(images)
    with locked(output):
        with Progress(steps, console, unit="step", transient=True) as progress:
            for seed, name in itertools.product(range(settings.seeds), COMPARED):
                model = _quantized(name, settings, images, seed, ghn)
                accuracy[name].append(
                    _train(model, settings, images, seed, partial(_tell, progress, name, seed))
                )
                if (name, seed) == ("GHN-Q", 0):
                    _save_model(model, settings, images, accuracy[name][0][-1], output)
        seconds = time.perf_counter() - start
        parts = (len(images.train), len(images.test))
        result = QuickstartResult(settings, images.name, *parts, accuracy, seconds)
        result.save(output)
    if console is not None:
        console.print(result.table())
        console.print(f"Results, curves and model: {output}", markup=False, soft_wrap=True)
    return result


def load_quickstart_model(folder: str | Path) -> nn.Module:
    """Rebuild the trained, quantized network that :func:`run_quickstart` saved, in eval mode.

    Args:
        folder: the folder with ``model.json`` and ``model.safetensors``.

    Raises:
        GhnqError: a file is missing or does not fit.
    """
    folder = Path(folder)
    try:
        recipe = read_json(folder / "model.json")
        model = ghnq_quant.quantize(
            SmallMobileNet(recipe["num_classes"]),
            tuple(recipe["bits"]),
            stem_bits=recipe["stem_bits"],
            backend=recipe["backend"],
            example_input=torch.zeros(recipe["input"]),
        )
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise GhnqError(f"{folder} holds no complete model of ghnq quickstart: {error}") from error
    return model.eval()


def _quantized(
    name: str, settings: QuickstartSettings, images: ImageSet, seed: int, ghn: GHN | None
) -> QuantModel:
    """The quantized network for one start."""
    return COMPARED[name].quantized(
        seeded(SmallMobileNet, len(images.train.classes), seed),
        settings.bits,
        first_epoch(images.train, settings.data, seed, BATCH_SIZE),
        ghn=ghn,
        stem_bits=settings.stem_bits,
        backend=settings.backend,
        example_input=torch.zeros(1, *images.train.images.shape[1:]),
    )


def _train(
    model: QuantModel,
    settings: QuickstartSettings,
    images: ImageSet,
    seed: int,
    after_step: Callable[[float], None],
) -> list[float]:
    """Top-1 test accuracy in % before training and after each epoch.

    Args:
        after_step: called with the latest accuracy.
    """
    accuracy = [calibrated_accuracy(model, images.train, images.test)]
    steps = _steps(images)

    def measure(step: int) -> None:
        if (step + 1) % steps == 0:
            accuracy.append(calibrated_accuracy(model, images.train, images.test))
        after_step(accuracy[-1])

    batch = training_batches(images.train, settings.data, seed)
    optimize(model, batch, range(settings.epochs * steps), LEARNING_RATE, ADAM, measure)
    return accuracy


def _tell(progress: Progress, name: str, seed: int, accuracy: float) -> None:
    """Advance the bar by one step."""
    progress.advance(1, f"from {name}, seed {seed}: {accuracy:.1f} %")


def _steps(images: ImageSet) -> int:
    """Steps per epoch."""
    return -(-len(images.train) // BATCH_SIZE)


def _save_model(
    model: nn.Module,
    settings: QuickstartSettings,
    images: ImageSet,
    accuracy: float,
    folder: Path,
) -> None:
    save_state(model, folder / "model.safetensors")
    recipe = {
        "rebuild": "ghnq_quant.research.starts.quickstart.load_quickstart_model(folder)",
        "model": "ghnq_quant.research.starts.small_mobilenet.SmallMobileNet",
        "trained_from": "GHN-Q",
        "seed": 0,
        "num_classes": len(images.train.classes),
        "classes": images.train.classes,
        "input": [1, *images.train.images.shape[1:]],
        "mean": images.train.mean.tolist(),
        "std": images.train.std.tolist(),
        "bits": settings.bits,
        "stem_bits": settings.stem_bits,
        "backend": settings.backend,
        "data": images.name,
        "test_accuracy": accuracy,
    }
    save_json(recipe, folder / "model.json")
