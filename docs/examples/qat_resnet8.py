"""Short trainings of a quantized resnet8 on CIFAR-10: distillation, and bits by measurement.

python docs/examples/qat_resnet8.py teacher cifar10.npz teacher.pt
python docs/examples/qat_resnet8.py distillation cifar10.npz teacher.pt distillation.jsonl
python docs/examples/qat_resnet8.py mixed cifar10.npz teacher.pt mixed.jsonl
python docs/examples/qat_resnet8.py table mixed.jsonl
python docs/examples/qat_resnet8.py plot cifar10.npz docs/figures/sensitivity.png
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import QuantScheme
from ghnq_quant.research.data import ImageSet, evaluation_batches, load_images
from ghnq_quant.research.runs.tables import markdown
from ghnq_quant.research.starts.cifar_networks import resnet8
from ghnq_quant.research.starts.training import (
    SGD,
    Batch,
    calibrated_accuracy,
    optimize,
    seeded,
    training_batches,
)

TEACHER_STEPS, STEPS, SEEDS = 2000, 500, (1, 2, 3)
TEST_IMAGES = 5000
LR = 0.1

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def distillation(logits: Tensor, of_teacher: Tensor, labels: Tensor) -> Tensor:
    """Hinton et al. (2015) with temperature 4; a tenth of it is the labels' cross-entropy."""
    temperature = 4.0
    soft = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(of_teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return 0.9 * temperature**2 * soft + 0.1 * F.cross_entropy(logits, labels)


def labels_alone(logits: Tensor, of_teacher: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def train(model: nn.Module, teacher: nn.Module, batch: Batch, loss: Loss) -> None:
    """What ``optimize`` does, with another loss."""
    optimizer = SGD.optimizer(model.parameters(), LR)
    for step in range(STEPS):
        model.train()
        optimizer.param_groups[0]["lr"] = LR * SGD.schedule(step / STEPS)
        x, y = batch(step)
        with torch.no_grad():
            of_teacher = teacher(x) if loss is distillation else x
        optimizer.zero_grad()
        loss(model(x), of_teacher, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def distilled() -> dict[str, tuple[QuantScheme, Loss]]:
    losses: dict[str, Loss] = {"labels": labels_alone, "distillation": distillation}
    return {
        f"{bits} bits, {name}": (QuantScheme(bits, bits, overrides={"body.0.0": (8, bits)}), loss)
        for bits in (4, 2)
        for name, loss in losses.items()
    }


def mixed(
    new: nn.Module, first: list[tuple[Tensor, Tensor]]
) -> dict[str, tuple[QuantScheme, Loss]]:
    """Uniform and measured bits of weights; activations have 4."""
    measured = ghnq_quant.sensitivity(ghnq_quant.initialize(new, first), first[:4])
    schemes = {
        "4 bits": QuantScheme(4, 4),
        "4 bits, first layer 8": QuantScheme(4, 4, overrides={"body.0.0": (8, 4)}),
        "measured, mean 4": measured.assign_bits(4),
    }
    return {name: (scheme, labels_alone) for name, scheme in schemes.items()}


def run(work: str, images: ImageSet, teacher: nn.Module, out: Path) -> None:
    """A line for each training, seed by seed; those that ``out`` has are not made again."""
    rows = read(out) if out.exists() else []
    done = {(row["arm"], row["seed"]) for row in rows}
    for seed in SEEDS:
        batch = training_batches(images.train, "cifar10", seed)
        first = [batch(step) for step in range(16)]
        new = seeded(resnet8, 10, seed)
        trials = distilled() if work == "distillation" else mixed(new, first)
        for arm, (scheme, loss) in trials.items():
            if (arm, seed) in done:
                continue
            model = ghnq_quant.init_quantized(new, data=first, scheme=scheme, backend="reference")
            before = calibrated_accuracy(model, images.train, images.test, TEST_IMAGES)
            train(model, teacher, batch, loss)
            after = calibrated_accuracy(model, images.train, images.test, TEST_IMAGES)
            with out.open("a", encoding="utf-8") as file:
                print(
                    json.dumps({"arm": arm, "seed": seed, "before": before, "after": after}),
                    file=file,
                )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy of the test images ± standard error over the seeds, %."""
    cells: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        cells.setdefault(row["arm"], []).append((row["before"], row["after"]))
    lines = [["", "before training", f"after {STEPS} steps", "seeds"]]
    for arm, pairs in cells.items():
        means = [f"{mean(v):.1f}±{stdev(v) / len(v) ** 0.5:.1f}" for v in zip(*pairs, strict=True)]
        lines.append([arm, *means, str(len(pairs))])
    return markdown(lines, 1)


def plot(images: ImageSet, path: Path) -> None:
    batch = training_batches(images.train, "cifar10", 1)
    first = [batch(step) for step in range(16)]
    started = ghnq_quant.initialize(seeded(resnet8, 10, 1), first)
    measured = ghnq_quant.sensitivity(started, first[:4], bits=range(2, 9))
    scheme = measured.assign_bits(4)
    names = [layer.name for layer in measured.layers]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for bits in measured.layers[0].harm:
        snr = [-10 * math.log10(layer.harm[bits]) for layer in measured.layers]
        axes.plot(snr, names, "o", color=pyplot.cm.viridis((bits - 2) / 7), label=f"{bits} bits")
    chosen = [-10 * math.log10(x.harm[scheme.weights_of(x.name).bits]) for x in measured.layers]
    axes.plot(chosen, names, "o", markersize=12, fillstyle="none", color="black", label="chosen")
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-noise ratio of the logits (dB)")
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


def train_teacher(images: ImageSet, path: Path) -> None:
    model = seeded(resnet8, 10, 0)
    batch = training_batches(images.train, "cifar10", 0)
    optimize(model, batch, range(TEACHER_STEPS), LR, SGD)
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in evaluation_batches(images.test, limit=TEST_IMAGES)
        )
    print(f"teacher: {100 * right / TEST_IMAGES:.1f} %")
    torch.save(model.state_dict(), path)


if __name__ == "__main__":
    work, *paths = sys.argv[1:]
    if work == "table":
        print(table(read(Path(paths[0]))))
    elif work == "teacher":
        train_teacher(load_images(paths[0]), Path(paths[1]))
    elif work == "plot":
        plot(load_images(paths[0]), Path(paths[1]))
    else:
        teacher = resnet8().eval()
        teacher.load_state_dict(torch.load(paths[1], weights_only=True))
        run(work, load_images(paths[0]), teacher, Path(paths[2]))
