"""A comparison of starts, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from ghnq_quant.errors import GhnqError
from ghnq_quant.ghn.checkpoints import DEFAULT_CHECKPOINT
from ghnq_quant.quantization.quantizer import check_bits
from ghnq_quant.quantization.scheme import Precision
from ghnq_quant.research.runs.command import Option, bits_text, command_line, each
from ghnq_quant.research.starts.starts import STARTS


@dataclass(frozen=True)
class CompareSettings:
    """Networks, precisions, starts and lengths of training.

    Attributes:
        archs: names of the networks.
        bits: (weight, activation) bits.
        stem_bits: weight bits of a network's first layer, if different.
        backend: a quantization backend's name.
        steps: lengths of the trainings, ascending; each is a separate training.
        seeds: repetitions; a seed determines the order of the images and all random parameters.
        starts: names of :data:`ghnq_quant.research.starts.starts.STARTS`.
        lrs: learning rates, of which each start gets its best.
        lr_steps: length of the trainings that choose the learning rate.
        data, data_name: see :func:`ghnq_quant.research.data.load_images`.
        foreign: change the images as :func:`ghnq_quant.research.data.foreign.foreign` does.
        images_per_class: number of training images of each class; None for all.
        test_images: number of images for the accuracy.
        ghn: the checkpoint's folder or name.
    """

    archs: Annotated[tuple[str, ...], Option(name="")]
    bits: Annotated[tuple[Precision, ...], Option(write=each(bits_text))] = ((4, 4),)
    stem_bits: int | None = None
    backend: str = "brevitas"
    steps: tuple[int, ...] = (50, 100, 200, 400)
    seeds: int = 3
    starts: Annotated[tuple[str, ...], Option("--start")] = (
        "pytorch", "pytorch-fitted", "ghnq", "float-first",
    )  # fmt: skip
    lrs: Annotated[tuple[float, ...], Option("--lr")] = (0.03, 0.1, 0.3)
    lr_steps: int = 400
    data: str = "cifar10"
    foreign: bool = False
    data_name: str | None = None
    images_per_class: int | None = None
    test_images: int = 2000
    ghn: str = DEFAULT_CHECKPOINT

    def __post_init__(self) -> None:
        if not (self.archs and self.bits and self.starts and self.lrs):
            raise GhnqError("name at least one network, precision, start and learning rate")
        unknown = [start for start in self.starts if start not in STARTS]
        if unknown:
            raise GhnqError(f"unknown start {unknown[0]!r}; known are {', '.join(STARTS)}")
        if self.steps != tuple(sorted({max(s, 1) for s in self.steps})) or not self.steps:
            raise GhnqError(f"steps={self.steps}: give rising numbers from 1 up")
        if self.lr_steps < 1 or self.seeds < 1:
            raise GhnqError("a comparison takes at least one step and one seed")
        if not all(math.isfinite(lr) and lr > 0 for lr in self.lrs):
            raise GhnqError(f"learning rates {self.lrs}: give finite numbers above 0")
        if self.stem_bits is not None:
            check_bits(self.stem_bits, "stem_bits")

    def command(self) -> str:
        """The command line for these settings."""
        return command_line("compare-init", self)


@dataclass(frozen=True, order=True)
class Trial:
    """One training.

    Attributes:
        arch, bits, start: what is trained.
        steps: its length.
        lr: learning rate.
        seed: for the images' order and all random parameters; ``CHOICE_SEED`` to choose ``lr``.
    """

    arch: str
    bits: Precision
    start: str
    steps: int
    lr: float
    seed: int
