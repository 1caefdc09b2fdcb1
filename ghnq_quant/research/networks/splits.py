"""The splits of ConvNets-250K, and what each is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from ghnq_quant.errors import DataError

#: Families in splits with more than one, with their percentages.
_MIXED = {"cells": 55, "plain": 10, "residual": 17, "mobile": 18}


@dataclass(frozen=True)
class Split:
    """What the networks of a split are drawn from.

    Attributes:
        size: number of networks.
        sides: which of the :data:`NUM_SIDES` sides of the space its networks lie on. Each
            architecture lies on one, given by its canonical hash; ``train`` shares none with any
            other split.
        families: percentage of each family; ``mobilenet`` is the mobile family with the widths and
            depths of MobileNetV1 and V2.
        cells: smallest and largest number of cells or blocks.
        width: factor on all channels.
        norm: whether there are batch norms.
        max_macs: largest number of multiply-accumulates for one 3×32×32 image.
    """

    size: int
    sides: tuple[int, ...]
    families: dict[str, int]
    cells: tuple[int, int] = (4, 18)
    width: int = 1
    norm: bool = True
    max_macs: int = 100_000_000


NUM_SIDES = 8
MAX_PARAMETERS = 10_000_000
SPLITS = {
    "train": Split(250_000, tuple(range(2, NUM_SIDES)), _MIXED),
    "val": Split(500, (0,), _MIXED),
    "test": Split(500, (1,), _MIXED),
    "wide": Split(100, (1,), _MIXED, width=4, max_macs=400_000_000),
    "deep": Split(100, (1,), _MIXED, cells=(10, 36), max_macs=150_000_000),
    "bn_free": Split(100, (1,), _MIXED, norm=False),
    "mobile": Split(100, (1,), {"mobilenet": 100}),
}


def find_split(name: str) -> Split:
    """The split with this name.

    Raises:
        DataError: there is none; the message lists the existing ones.
    """
    if name not in SPLITS:
        raise DataError(f"no split {name!r} of ConvNets-250K: choose from {', '.join(SPLITS)}")
    return SPLITS[name]
