"""A training run as data: everything that determines its result."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ghnq_quant.errors import GhnqError
from ghnq_quant.quantization.folding import check_channel_limit
from ghnq_quant.quantization.scheme import FLOAT, as_pair, parse_precision

#: (value, up to which fraction of the run), in ascending order, up to the whole run.
Phases = tuple[tuple[Any, float], ...]
#: All of the split ``train``: no fixed ones, each drawn once per epoch.
ALL_ARCHITECTURES = 250_000
_LENGTHS = ("steps", "epochs", "minutes")
#: Settings that runs of earlier versions do not name, as those versions ran.
ADDED_SETTINGS: dict[str, Any] = {
    "bits_per": "meta-batch",
    "range_gradient": False,
    "precision_decoder": False,
}
#: Multiply-accumulates of the smallest limit; one network in eight is below it.
_LEAST_MACS = 1_000_000


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of a training run; the defaults are the recipe of docs/training.md.

    Attributes:
        steps, epochs, minutes: length of the run, exactly one of them; an epoch is one pass over the
            training images.
        bits: precisions as (weight, activation) pairs, one of which is drawn at random.
        bits_per: draw one for each ``"meta-batch"``, or for each ``"network"`` of it, so that a step
            sees several.
        channel_limit: of the quantized networks, in training and validation; see
            :class:`ghnq_quant.QuantScheme`.
        range_gradient: pass the gradient of each quantizer's range on to the elements that set it.
        meta_batch_size: networks per step and process.
        image_batch_size: images per network and step.
        balanced: draw the images of a batch with equally many of each class, with replacement,
            instead of passes over all images.
        crop: black pixels added on each side of a training image before a random crop of the
            original size.
        architectures: number of networks of the split ``train`` to draw from, the first that are
            not too large: their graphs and kernels stay in caches. All 250,000 come once per epoch
            instead, and nothing is kept.
        first_architectures, steps_per_architecture: smaller networks first: a run starts with this
            many of the smallest, and adds the next larger one every so many steps.
        max_macs: (multiply-accumulates for a 3×32×32 image, up to which fraction of the run): larger
            networks are left out; None for no limit.
        image_sizes: (side, up to which fraction of the run) of the images. If they are smaller than
            the data set's, fixed networks with a flattened head are left out.
        optimizer: ``"adamw"``, or ``"adam"``, whose weight decay is part of the gradient.
        lr, betas, weight_decay: settings of the optimizer.
        warmup: steps over which the learning rate rises from zero.
        schedule: ``"constant"``, ``"linear"`` down to zero from ``decay_at`` (a fraction of the run)
            on, or a ``"step"`` to a tenth there.
        average: decay of the exponential average of the weights, which is validated and saved as a
            checkpoint; 0 for the weights themselves.
        clip: largest norm of the gradient.
        network_clip: largest norm of each network's gradient of its parameters, so that no network
            of a meta-batch outweighs the others: the median is about 3, but a channel with hardly
            any variance makes it huge.
        inner_steps: SGD steps that each network takes from its predicted parameters. The
            hypernetwork gets the mean gradient of the losses before each step and after the last,
            to first order, so it learns parameters to train from. (First-order MAML, Finn et al.
            2017, uses only the last.)
        inner_lr: learning rate of these steps.
        precision_embedding: tell the hypernetwork the precision, as part of the node features.
        precision_decoder: tell it before it decodes, where each precision has its own affine map.
        new_batch_norms: train for networks with new batch norms, as ``init_quantized`` makes them,
            instead of predicting these too.
        seed: for the order of networks and images.
        log_every, checkpoint_every, validate_every: in steps; the last two are multiples of the first.
        val_networks, val_images: how many of the split ``val`` and of the held-out training images.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    bits: tuple[tuple[int, int], ...] = (FLOAT,)
    bits_per: Literal["meta-batch", "network"] = "meta-batch"
    channel_limit: float | None = None
    range_gradient: bool = False
    meta_batch_size: int = 4
    image_batch_size: int = 130
    balanced: bool = True
    crop: int = 0
    architectures: int = 3000
    first_architectures: int = 1000
    steps_per_architecture: int = 4
    max_macs: Phases = ((6_000_000, 0.7), (10_000_000, 1.0))
    image_sizes: Phases = ((16, 0.7), (32, 1.0))
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    warmup: int = 1000
    schedule: Literal["constant", "linear", "step"] = "linear"
    decay_at: float = 0.9
    average: float = 0.9995
    clip: float = 5.0
    network_clip: float = 10.0
    inner_steps: int = 0
    inner_lr: float = 0.05
    precision_embedding: bool = False
    precision_decoder: bool = False
    new_batch_norms: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100
    validate_every: int = 500
    val_networks: int = 32
    val_images: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not _is_finite(value):
                raise GhnqError(f"{name}={value}: give numbers that are finite")
        lengths = [v for v in map(self.__getattribute__, _LENGTHS) if v is not None]
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
        check_channel_limit(self.channel_limit)
        for name, example in (("image_sizes", "16@0.5,32"), ("max_macs", "6M@0.5,10M")):
            ends = [end for _, end in getattr(self, name)]
            if not self.bits or not ends or ends != sorted(ends) or ends[-1] != 1.0:
                raise GhnqError(
                    f"{name}={getattr(self, name)}: values follow one another up to the whole run, "
                    f"as in {example}"
                )
        limits = [limit for limit, _ in self.max_macs if limit is not None]
        if limits and min(limits) < _LEAST_MACS:
            raise GhnqError(
                f"max_macs={self.max_macs}: there are hardly any networks below "
                f"{_LEAST_MACS // 10**6}M multiply-accumulates"
            )
        if min(size for size, _ in self.image_sizes) < 1:
            raise GhnqError(f"image_sizes={self.image_sizes}: give sizes from 1 pixel")
        if not 0 <= self.average < 1:
            raise GhnqError(f"average={self.average} must be in [0, 1); 0 for no average")

    @classmethod
    def paper(cls, **changes: Any) -> FinetuneSettings:
        """The paper's settings (section 2), for a run from a trained GHN-2.

        Example:
            >>> FinetuneSettings.paper(epochs=100).image_batch_size
            32
        """
        settings: dict[str, Any] = {
            "image_batch_size": 32,
            "balanced": False,
            "crop": 4,
            "architectures": ALL_ARCHITECTURES,
            "max_macs": ((None, 1.0),),
            "image_sizes": ((32, 1.0),),
            "optimizer": "adam",
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "weight_decay": 1e-5,
            "warmup": 0,
            "schedule": "step",
            "decay_at": 0.75,
            "average": 0.0,
        }
        return cls(**{**settings, **changes})

    def total_steps(self, num_images: int) -> int | None:
        """Number of steps of the run; None if only its time is set."""
        if self.epochs is not None:
            return math.ceil(self.epochs * num_images / self.image_batch_size)
        return self.steps

    def lr_at(self, step: int, progress: float) -> float:
        """Learning rate of a step (from 0), at a fraction of the run."""
        lr = self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr
        if self.schedule == "constant" or progress < self.decay_at:
            return lr
        if self.schedule == "step":
            return lr / 10
        return lr * (1 - progress) / (1 - self.decay_at)

    def image_size_at(self, progress: float) -> int:
        """Side of the images at a fraction of the run."""
        size: int = _value_at(self.image_sizes, progress)
        return size

    def max_macs_at(self, progress: float) -> int | None:
        """Limit of the networks' size at a fraction of the run."""
        limit: int | None = _value_at(self.max_macs, progress)
        return limit

    def known_architectures(self, step: int) -> int:
        """How many of the fixed architectures, smallest first, a step draws from."""
        joined = self.first_architectures + step // self.steps_per_architecture
        return min(self.architectures, joined)

    @property
    def has_open_end(self) -> bool:
        """Whether only the end depends on the run's length, so that it may be extended."""
        return self.schedule == "constant" and len(self.image_sizes) == len(self.max_macs) == 1

    def open_ended(self) -> dict[str, Any]:
        """Its settings as plain lists, numbers and strings, without the length if that is open."""
        content = self.to_json()
        return {k: v for k, v in content.items() if not (self.has_open_end and k in _LENGTHS)}

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings."""
        return {k: _plain(v) for k, v in asdict(self).items()}


def _value_at(phases: Phases, progress: float) -> Any:
    return next(value for value, end in phases if progress < end or end == 1.0)


def _is_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


#: Settings by their name on the command line.
RECIPES: dict[str, Callable[..., FinetuneSettings]] = {
    "ghnq": FinetuneSettings,
    "paper": FinetuneSettings.paper,
}


def parse_bits(text: str) -> tuple[tuple[int, int], ...]:
    """Precisions as written on the command line.

    Raises:
        SchemeError: an invalid bit width.

    Example:
        >>> parse_bits("float,8,4/8")
        ((32, 32), (8, 8), (4, 8))
    """
    return tuple(parse_precision(part) for part in text.split(","))


def parse_architectures(text: str) -> int:
    """Number of architectures, or ``all``.

    Raises:
        GhnqError: another format.

    Example:
        >>> parse_architectures("3000")
        3000
    """
    if text == "all":
        return ALL_ARCHITECTURES
    if not text.isdigit() or int(text) < 1:
        raise GhnqError(f"architectures {text!r}: give a number from 1, or all")
    return int(text)


def parse_macs(text: str) -> Phases:
    """Limits in millions of multiply-accumulates, and how long each holds.

    Raises:
        GhnqError: another format.

    Example:
        >>> parse_macs("6M@0.7,10M")
        ((6000000, 0.7), (10000000, 1.0))
        >>> parse_macs("5M@0.5,all")
        ((5000000, 0.5), (None, 1.0))
    """
    phases = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)M|all)(?:@(\d*\.?\d+))?", part.strip())
        if match is None:
            raise GhnqError(
                f"limit {text!r}: write it as in 10M, or 6M@0.5,all for six million for half of the run"
            )
        limit = None if match[1] is None else round(float(match[1]) * 1e6)
        phases.append((limit, 1.0 if match[2] is None else float(match[2])))
    return tuple(phases)


def parse_image_sizes(text: str) -> Phases:
    """Progressive image sizes as written on the command line.

    Raises:
        GhnqError: another format.

    Example:
        >>> parse_image_sizes("16@0.5,32")
        ((16, 0.5), (32, 1.0))
    """
    try:
        parts = [part.split("@") for part in text.split(",")]
        return tuple((int(p[0]), float(p[1]) if len(p) > 1 else 1.0) for p in parts)
    except ValueError as error:
        raise GhnqError(f"image size {text!r}: write it as in 32 or 16@0.5,32") from error
