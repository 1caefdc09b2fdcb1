"""The picture of docs/explanation/how_it_works.md: a network's graph and some of its predicted weights.

python docs/examples/draw_prediction.py docs/figures/how_it_works.png
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import ghnq_quant
from ghnq_quant.capture import capture
from ghnq_quant.research.networks.drawing import draw_graph
from ghnq_quant.research.starts.small_mobilenet import SmallMobileNet

#: Layers whose weights are shown.
STEM, DEPTHWISE, WIDE = "stem.0", "blocks.2.layers.1.0", "blocks.4.layers.2"
BORDER = 1  # pixels between kernels


def kernels(weight: Tensor, columns: int) -> np.ndarray:
    """Kernels (n, k, k) side by side, NaN between them."""
    n, k, _ = weight.shape
    rows = -(-n // columns)
    side = k + BORDER
    grid = np.full((rows * side - BORDER, columns * side - BORDER), np.nan)
    for i, kernel in enumerate(weight.numpy()):
        top, left = i // columns * side, i % columns * side
        grid[top : top + k, left : left + k] = kernel
    return grid


def show(axes: Axes, values: np.ndarray, title: str) -> None:
    largest = np.nanmax(np.abs(values))
    axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def main() -> None:
    torch.manual_seed(0)
    model = SmallMobileNet()
    parameters = ghnq_quant.predict_parameters(model)
    graph = capture(model).arch_graph
    figure = Figure(figsize=(12, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.05, 1.5])
    axes = above.add_subplot()
    dots, _, _ = draw_graph(axes, graph)
    axes.set_title(f"The graph of SmallMobileNet: {len(graph)} nodes", fontsize=11, loc="left")
    above.legend(handles=dots, loc="outside lower center", ncols=len(dots), frameon=False)

    grid = below.subplots(2, 3, width_ratios=[1, 1.2, 1.9])
    for row, (source, weights) in enumerate(
        (("predicted", parameters), ("PyTorch's own", dict(model.named_parameters())))
    ):
        stem, depthwise, wide = (
            weights[f"{name}.weight"].detach() for name in (STEM, DEPTHWISE, WIDE)
        )
        show(grid[row, 0], kernels(stem.flatten(0, 1), 6), f"{STEM}: 16×3 kernels\n{source}")
        title = f"{DEPTHWISE}: {len(depthwise)} depthwise kernels\n{source}"
        show(grid[row, 1], kernels(depthwise[:, 0], 9), title)
        c_out, c_in = wide.shape[:2]
        show(grid[row, 2], wide[:, :, 0, 0].numpy(), f"{WIDE}: {c_out}×{c_in} matrix\n{source}")
        if weights is parameters:
            grid[row, 2].axvline(63.5, color="black", linewidth=1.2)  # the decoder's size: tiled
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
