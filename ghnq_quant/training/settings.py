"""What a finetuning run is, as data: everything that decides its result."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ghnq_quant.errors import GhnqError
from ghnq_quant.quantization.scheme import FLOAT, as_pair, parse_precision


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of a finetuning run; the defaults are the paper's (section 2).

    Attributes:
        steps, epochs, minutes: length of the run, exactly one of them; an epoch is one pass over the
            training images.
        bits: precisions as (weight, activation) pairs, one of which is drawn for each meta-batch.
        meta_batch_size: networks a step and process.
        image_batch_size: images a step.
        lr, weight_decay, betas: of Adam.
        schedule: ``"step"``, or ``"cosine"`` from ``lr`` down to zero.
        lr_decay: factor on ``lr`` from ``lr_decay_at`` (a fraction of the run) on, of the step schedule.
        clip: largest norm of the gradient.
        image_sizes: (side, until which fraction of the run) of the images, in rising order.
        max_macs: (multiply-accumulates, until which fraction of the run): until then only networks of
            at most that many for a 3×32×32 image, which makes early steps cheap; None for all.
        inner_steps: steps of SGD that each network takes from its predicted parameters; the
            hypernetwork gets the mean gradient of the losses before each of them and after the last,
            to first order (as first-order MAML, Finn et al. 2017, rewards the last alone), so that
            what is rewarded are parameters to train from.
        inner_lr: their learning rate.
        precision_embedding: tell the hypernetwork the precision (design section 5).
        new_batch_norms: train it for networks whose batch norms are new, as ``init_quantized`` makes
            them, instead of predicting these too.
        seed: of the order of networks and images.
        log_every, checkpoint_every, validate_every: in steps; the latter two are multiples of the first.
        val_networks, val_images: of the split ``val`` and of the held-out training images.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    bits: tuple[tuple[int, int], ...] = (FLOAT,)
    meta_batch_size: int = 4
    image_batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["step", "cosine"] = "step"
    lr_decay: float = 0.1
    lr_decay_at: float = 0.75
    clip: float = 5.0
    image_sizes: tuple[tuple[int, float], ...] = ((32, 1.0),)
    max_macs: tuple[int, float] | None = None
    inner_steps: int = 0
    inner_lr: float = 0.05
    precision_embedding: bool = False
    new_batch_norms: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    validate_every: int = 500
    val_networks: int = 16
    val_images: int = 512

    def __post_init__(self) -> None:
        lengths = [v for v in (self.steps, self.epochs, self.minutes) if v is not None]
        if len(lengths) != 1 or lengths[0] <= 0:
            raise GhnqError(
                "give the run's length as exactly one of steps, epochs and minutes, above 0"
            )
        for name in ("checkpoint_every", "validate_every"):
            if (
                self.log_every < 1
                or getattr(self, name) < 1
                or getattr(self, name) % self.log_every
            ):
                raise GhnqError(f"{name}={getattr(self, name)} must be a multiple of log_every")
        for bits in self.bits:
            as_pair(bits)
        ends = [end for _, end in self.image_sizes]
        if not self.bits or not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise GhnqError(
                f"image_sizes={self.image_sizes}: sizes follow one another up to the whole run, as in "
                "16@0.5,32"
            )

    def total_steps(self, num_images: int) -> int | None:
        """How many steps the run has; None where only its time is set."""
        if self.epochs is not None:
            return math.ceil(self.epochs * num_images / self.image_batch_size)
        return self.steps

    def lr_at(self, progress: float) -> float:
        """Learning rate at a fraction of the run."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.lr * (self.lr_decay if progress >= self.lr_decay_at else 1.0)

    def image_size_at(self, progress: float) -> int:
        """Side of the images at a fraction of the run."""
        return next(size for size, end in self.image_sizes if progress < end or end == 1.0)

    def max_macs_at(self, progress: float) -> int | None:
        """The largest networks at a fraction of the run."""
        if self.max_macs is None or progress >= self.max_macs[1]:
            return None
        return self.max_macs[0]

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and texts."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def parse_bits(text: str) -> tuple[tuple[int, int], ...]:
    """Precisions as the command line writes them.

    Raises:
        SchemeError: a bit width that does not exist.

    Example:
        >>> parse_bits("float,8,4/8")
        ((32, 32), (8, 8), (4, 8))
    """
    return tuple(parse_precision(part) for part in text.split(","))


def parse_macs(text: str) -> tuple[int, float]:
    """A limit of millions of multiply-accumulates and until when it holds.

    Example:
        >>> parse_macs("5M@0.5")
        (5000000, 0.5)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)M@(\d*\.?\d+)", text)
    if match is None:
        raise GhnqError(f"limit {text!r}: write it as in 5M@0.5, five million for half of the run")
    return round(float(match[1]) * 1e6), float(match[2])


def parse_image_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Progressive image sizes as the command line writes them.

    Example:
        >>> parse_image_sizes("16@0.5,32")
        ((16, 0.5), (32, 1.0))
    """
    try:
        parts = [part.split("@") for part in text.split(",")]
        return tuple((int(p[0]), float(p[1]) if len(p) > 1 else 1.0) for p in parts)
    except ValueError as error:
        raise GhnqError(f"image size {text!r}: write it as in 32 or 16@0.5,32") from error
