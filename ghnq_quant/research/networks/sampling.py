"""Draw a description: what all families share, and where reductions and widths lie."""

from __future__ import annotations

from ghnq_quant.research.networks.architecture import Architecture, Head, Stem
from ghnq_quant.research.networks.draws import Draws
from ghnq_quant.research.networks.sampling_bodies import SAMPLERS, Skeleton
from ghnq_quant.research.networks.sampling_mobilenet import sample_mobilenet
from ghnq_quant.research.networks.splits import Split

# Weights of the base width (channels before the first reduction) and, by family, of the stem's
# downsampling (log2), chosen so that a network takes about 10 million multiply-accumulates.
_BASE_WIDTHS = {8: 14, 12: 12, 16: 36, 20: 6, 24: 16, 32: 12, 48: 4}
_STEM_LEVELS = {
    "cells": {0: 20, 1: 45, 2: 35},
    "plain": {0: 20, 1: 60, 2: 20},
    "residual": {0: 15, 1: 55, 2: 30},
    "mobile": {0: 30, 1: 50, 2: 20},
}
_GROWTH_QUARTERS = {8: 75, 6: 15, 4: 10}
#: log2 of the largest downsampling: a 32×32 image ends with at least 2×2
_MAX_LEVEL = 4


def sample_architecture(split: Split, draws: Draws) -> Architecture:
    """Draw a network of ``split``; its size and side are yet to be checked."""
    family = draws.weighted(split.families)
    if family == "mobilenet":
        return sample_mobilenet(draws, split.norm)
    level = draws.weighted(_STEM_LEVELS[family])
    skeleton = _sample_skeleton(draws, split, level)
    kernel = draws.weighted({3: 80, 5: 12, 7: 8})
    stem_stride = 2 if level == 2 or (level == 1 and draws.chance(70)) else 1
    stem = Stem(skeleton.channels[0], kernel, stem_stride, pool=level > (stem_stride == 2))
    return Architecture(
        stem=stem,
        body=SAMPLERS[family](draws, skeleton),
        head=_sample_head(draws, is_mobile=family == "mobile"),
        norm=split.norm,
        conv_bias=draws.chance(15) or not split.norm,
        activation=draws.weighted({"relu": 70, "relu6": 15, "leaky_relu": 15}),
    )


def _sample_skeleton(draws: Draws, split: Split, stem_level: int) -> Skeleton:
    num_cells = draws.between(*split.cells)
    num_reductions = draws.between(1, min(3, _MAX_LEVEL - stem_level))
    if draws.chance(60):  # at even distances, as DARTS has them at 1/3 and 2/3
        parts = num_reductions + 1
        reductions = [max(1, num_cells * k // parts) for k in range(1, parts)]
    else:
        reductions = draws.subset(range(1, num_cells), num_reductions)
    width = draws.weighted(_BASE_WIDTHS)
    channels = []
    for i in range(num_cells):
        if i in reductions:
            width = width * draws.weighted(_GROWTH_QUARTERS) // 4 // 4 * 4
        channels.append(width * split.width)
    return Skeleton(tuple(channels), tuple(2 if i in reductions else 1 for i in range(num_cells)))


def _sample_head(draws: Draws, is_mobile: bool) -> Head:
    grid = 1 if is_mobile else draws.weighted({1: 70, 2: 10, 4: 5, 0: 15})
    hidden = draws.weighted({0: 65, 64: 8, 128: 11, 256: 11, 512: 5})
    return Head(grid, hidden)
