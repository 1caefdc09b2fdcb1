"""An evaluation as data: everything that determines its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from ghnq_quant.errors import GhnqError
from ghnq_quant.ghn.checkpoints import DEFAULT_CHECKPOINT
from ghnq_quant.quantization.folding import check_channel_limit
from ghnq_quant.quantization.scheme import FLOAT, Precision, parse_precision, precision_name
from ghnq_quant.research.runs.command import Option, command_line, each
from ghnq_quant.research.runs.seeds import EVALUATION_SEED

#: Images per batch, whose statistics batch norm uses (the paper's section 3).
BATCH_SIZE = 64
#: The splits of Table 1 in the paper's order, and the one that its discussion calls for.
TABLE_SPLITS = ("test", "deep", "wide", "bn_free", "mobile")
#: Its rows.
PAPER_PRECISIONS = ("float", "W8/A8", "W4/A8", "W4/A4", "W2/A2")


def parse_precisions(names: Iterable[str]) -> tuple[Precision, ...]:
    """Parse precisions: without duplicates, float first, because the others are compared with it.

    Float is added if it is missing.

    Example:
        >>> parse_precisions(["W4/A4", "W8/A8"])
        ((32, 32), (4, 4), (8, 8))
    """
    return tuple(dict.fromkeys((FLOAT, *(parse_precision(name) for name in names))))


@dataclass(frozen=True)
class EvaluationSettings:
    """Which networks to evaluate, at which precisions, with which parameters and on which images.

    Attributes:
        data: see :func:`ghnq_quant.research.data.load_images`.
        data_name: the data set's name in the results; None for its own.
        ghn: the checkpoint's folder or name.
        splits: splits of ConvNets-250K; empty if named models are evaluated.
        models: names of torchvision and timm models, instead of splits.
        adapt_stem: whether to adapt the named models to the images' size.
        trained: a trained ``state_dict`` of the one named model, for comparing distributions.
        precisions: (weight, activation) bits, float first.
        channel_limit: of quantized networks, see :class:`ghnq_quant.QuantScheme`.
        num_nets: number of networks per split, from the first; None for all.
        num_images: number of test images, from the first in their fixed mixed order; None for all.

    Raises:
        GhnqError: settings that contradict each other.
    """

    data: str
    data_name: str | None = None
    ghn: str = DEFAULT_CHECKPOINT
    splits: Annotated[tuple[str, ...], Option("--split")] = TABLE_SPLITS
    models: Annotated[tuple[str, ...], Option("--model")] = ()
    adapt_stem: bool = False
    trained: str | None = None
    precisions: Annotated[tuple[Precision, ...], Option("--precision", each(precision_name))] = (
        parse_precisions(PAPER_PRECISIONS)
    )
    channel_limit: float | None = None
    num_nets: int | None = None
    num_images: int | None = None

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.splits):
            raise GhnqError("evaluate either splits of ConvNets-250K or named models")
        if self.trained is not None and len(self.models) != 1:
            raise GhnqError("--trained is the state_dict of one model: name it with --model")
        if self.models and self.num_nets is not None:
            raise GhnqError("--num-nets counts the networks of a split; a named model is one")
        if self.adapt_stem and not self.models:
            raise GhnqError("--adapt-stem is for models of --model; splits are made for 32×32")
        if len(set(self.groups)) < len(self.groups):
            raise GhnqError(f"one is named twice: {', '.join(self.groups)}")
        check_channel_limit(self.channel_limit)
        if self.precisions[:1] != (FLOAT,):
            raise GhnqError("the first precision must be float: the others are compared with it")
        if self.num_nets is not None and self.num_nets < 1:
            raise GhnqError(f"--num-nets {self.num_nets}: evaluate at least one network")
        if self.num_images is not None and self.num_images < BATCH_SIZE:
            raise GhnqError(
                f"--num-images {self.num_images}: the protocol takes batch statistics over "
                f"{BATCH_SIZE} images, so at least one such batch is needed"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """The splits, or the models' names."""
        return self.splits or self.models

    @property
    def precision_names(self) -> tuple[str, ...]:
        """The table's rows."""
        return tuple(precision_name(p) for p in self.precisions)

    def command(self) -> str:
        """The command line for these settings."""
        return command_line("evaluate", self)

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings, with the constants of the protocol."""
        plain = asdict(self)
        plain.update(
            splits=list(self.splits),
            models=list(self.models),
            precisions=list(self.precision_names),
        )
        return {**plain, "batch_size": BATCH_SIZE, "seed": EVALUATION_SEED}
