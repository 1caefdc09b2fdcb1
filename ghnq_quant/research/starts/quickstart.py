"""Quantization-aware training of a small CNN, from GHN-Q's start and from PyTorch's initialization."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.errors import GhnqError
from ghnq_quant.files import read_json, save_json, save_state
from ghnq_quant.ghn import GHN
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.data.batches import (
    evaluation_batches,
    first_epoch,
    training_batch,
    usual_augmentation,
)
from ghnq_quant.research.data.images import Images, ImageSet, load_images
from ghnq_quant.research.starts.quickstart_results import QuickstartResult, QuickstartSettings

BATCH_SIZE = 64
# Of 0.002, 0.003, 0.005 and 0.01 with Adam: all are good for PyTorch's initialization on the digits at
# 4 bits; without clipping, or above, GHN-Q's start diverges.
LEARNING_RATE = 5e-3
GRADIENT_CLIP = 1.0
CALIBRATION_BATCHES = 8
STARTS = ("GHN-Q", "PyTorch")


class SmallMobileNet(nn.Module):
    """A MobileNet-like CNN as a user would write one: 48,266 parameters at ten classes.

    Args:
        num_classes: outputs.

    Shape:
        B × 3 × H × W to B × ``num_classes``; H and W from 16 up.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 16, kernel_size=3, stride=2)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 24, stride=1),
            InvertedResidual(24, 24, stride=1),
            InvertedResidual(24, 40, stride=2),
            InvertedResidual(40, 40, stride=1),
            InvertedResidual(40, 64, stride=2),
        )
        self.head = _conv_bn(64, 128, kernel_size=1)
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """Expand three times, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            _conv_bn(inputs, wide, kernel_size=1),
            _conv_bn(wide, wide, kernel_size=3, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _conv_bn(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def run_quickstart(
    settings: QuickstartSettings,
    output: str | Path,
    *,
    ghn: GHN | None = None,
    console: Console | None = None,
) -> QuickstartResult:
    """Train from both starts with every seed, show and save what came out.

    A seed decides the order and the augmentation of the images and PyTorch's initialization, the
    same for both starts; GHN-Q's reads the images that the training begins with. Before each
    measurement both are calibrated on the same training images.

    Args:
        settings: data, precision and budget.
        output: a folder for ``results.json``, ``curves.png``, and ``model.safetensors`` with
            ``model.json``: the first seed's network trained from GHN-Q's start.
        ghn: the hypernetwork; by default the one that the package ships.
        console: where to draw the progress bar and the table; None for no output.

    Raises:
        DataError: the images cannot be used; nothing was trained yet.

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
    accuracy: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    with _Bar(settings, images, console) as bar:
        for seed, name in itertools.product(range(settings.seeds), STARTS):
            model = _quantized(name, settings, images, seed, ghn)
            accuracy[name].append(_train(model, settings, images, seed, bar.steps_of(name, seed)))
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
        folder: with ``model.json`` and ``model.safetensors``.

    Raises:
        GhnqError: a file is missing or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

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
        raise GhnqError(f"{folder} holds no whole model of ghnq quickstart: {error}") from error
    return model.eval()


def _quantized(
    name: str, settings: QuickstartSettings, images: ImageSet, seed: int, ghn: GHN | None
) -> QuantModel:
    """The quantized network that one start gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallMobileNet(len(images.train.classes))
    example = torch.zeros(1, *images.train.images.shape[1:])
    options: dict[str, Any] = {
        "stem_bits": settings.stem_bits,
        "backend": settings.backend,
        "example_input": example,
    }
    if name == "GHN-Q":
        batches = first_epoch(images.train, settings.data, seed, BATCH_SIZE)
        return ghnq_quant.init_quantized(model, settings.bits, batches, ghn=ghn, **options)
    return ghnq_quant.quantize(model, settings.bits, **options)


def _train(
    model: QuantModel,
    settings: QuickstartSettings,
    images: ImageSet,
    seed: int,
    after_step: Callable[[float], None],
) -> list[float]:
    """Top-1 accuracy on the test part in % before training and after each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    steps = _steps(images.train)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    augment = usual_augmentation(settings.data)
    accuracy = [_calibrated_accuracy(model, images)]
    for step in range(settings.epochs * steps):
        model.train()
        x, y = training_batch(images.train, step, BATCH_SIZE, seed, augment=augment)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
        if (step + 1) % steps == 0:
            accuracy.append(_calibrated_accuracy(model, images))
        after_step(accuracy[-1])
    return accuracy


def _steps(train: Images) -> int:
    """In an epoch."""
    return -(-len(train) // BATCH_SIZE)


@torch.no_grad()
def _calibrated_accuracy(model: QuantModel, images: ImageSet) -> float:
    """Top-1 accuracy on the test part in %, after a new estimate of the running statistics.

    An epoch of the small set is 23 steps: moving averages of that length lag behind the weights
    so far that at 4 bits they hide what was learned.
    """
    batches = itertools.islice(evaluation_batches(images.train, BATCH_SIZE), CALIBRATION_BATCHES)
    ghnq_quant.calibrate(model, batches)
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in evaluation_batches(images.test))
    return 100 * right / len(images.test)


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
        "model": "ghnq_quant.research.starts.quickstart.SmallMobileNet",
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


class _Bar:
    """The live progress bar over all steps of all runs; without a console it draws nothing."""

    def __init__(
        self, settings: QuickstartSettings, images: ImageSet, console: Console | None
    ) -> None:
        steps = len(STARTS) * settings.seeds * settings.epochs * _steps(images.train)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _StepRate(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=console is None,
            transient=True,
        )
        self.task = self.progress.add_task("", total=steps)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def steps_of(self, name: str, seed: int) -> Callable[[float], None]:
        """What a run calls after each step, with its last accuracy in %."""

        def step(accuracy: float) -> None:
            text = f"from {name}, seed {seed}: {accuracy:.1f} %"
            self.progress.update(self.task, advance=1, description=text)

        return step


class _StepRate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} steps/s")
