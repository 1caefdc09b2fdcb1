"""Draw networks around MobileNetV1 (Howard et al. 2017) and V2 (Sandler et al. 2018)."""

from __future__ import annotations

from ghnq_quant.research.networks.architecture import (
    Architecture,
    Head,
    MobileBlock,
    MobileBody,
    Stem,
)
from ghnq_quant.research.networks.draws import Draws

# (channels, repeats, stride of the first, expansion) of each stage, from the papers' tables
_V1 = ((64, 1, 1, 0), (128, 2, 2, 0), (256, 2, 2, 0), (512, 6, 2, 0), (1024, 2, 2, 0))
_V2 = (
    (16, 1, 1, 1),
    (24, 2, 2, 6),
    (32, 3, 2, 6),
    (64, 4, 2, 6),
    (96, 3, 1, 6),
    (160, 3, 2, 6),
    (320, 1, 1, 6),
)


def sample_mobilenet(draws: Draws, norm: bool) -> Architecture:
    """One of the two networks with other widths, depths, kernels and expansions.

    Widths are 0.35 to 1.4 times the paper's, ± 20 % per stage; a stage has up to one block more or
    less. The papers downsample 224×224 images 32 times; here it is 8, 16 or 32 times.
    """
    is_v1 = draws.chance(35)
    percent = draws.choice((35, 50, 75, 100, 140))
    stages = _V1 if is_v1 else _V2
    strided = [i for i, stage in enumerate(stages) if stage[2] > 1]
    stem_stride = 2 if draws.chance(60) else 1
    # One stage may keep its resolution, as in networks for small images.
    kept = draws.choice(strided[:2]) if draws.chance(60) else -1
    expansion, large_kernels = draws.weighted({6: 50, 4: 25, 3: 25}), draws.chance(30)
    blocks = []
    for i, (base, repeats, stride, ratio) in enumerate(stages):
        channels = _scaled(base * draws.between(80, 120) // 100, percent)
        for k in range(max(1, repeats + draws.between(-1, 1))):
            step = stride if k == 0 and i != kept else 1
            kernel = 5 if large_kernels and draws.chance(40) else 3
            blocks.append(MobileBlock(channels, step, kernel, min(ratio, expansion)))
    last = 0 if is_v1 else _scaled(1280, max(percent, 100))
    return Architecture(
        stem=Stem(_scaled(32, percent), 3, stem_stride, pool=False),
        body=MobileBody(tuple(blocks), last),
        head=Head(grid=1, hidden=0),
        norm=norm,
        conv_bias=not norm,
        activation=draws.weighted({"relu6": 70, "relu": 30}),
    )


def _scaled(channels: int, percent: int) -> int:
    """The multiple of 8 nearest to ``percent`` of ``channels``, at least 8."""
    return max(8, (channels * percent + 400) // 800 * 8)
