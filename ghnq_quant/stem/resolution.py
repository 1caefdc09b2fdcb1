"""Where a traced network lowers the resolution of its feature maps, and its last feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ghnq_quant.capture import Capture
from ghnq_quant.capture.operations import WINDOWED_POOLS, Kind, argument

#: Side of the probe image: large enough that no feature map is 1×1.
PROBE_SIDE = 224

_STRIDED = (Kind.CONV, *WINDOWED_POOLS)


@dataclass(frozen=True)
class Downsampling:
    """One step down in resolution, in all branches that take it.

    Attributes:
        nodes: the operations that take it, in order of execution.
        stride: factor by which each of them lowers the resolution.
    """

    nodes: tuple[fx.Node, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Resolution:
    """How the resolution falls from the image to the last feature map.

    Attributes:
        steps: downsamplings, from the image on.
        last: the convolution that makes the last feature map, before anything global.
    """

    steps: tuple[Downsampling, ...]
    last: fx.Node


def image_shape(captured: Capture, side: int) -> tuple[int, int, int, int]:
    """(1, C, side, side): the shape of one input image."""
    return (1, captured.input_channels, side, side)


def find_resolution(
    graph: fx.Graph,
    kinds: dict[fx.Node, Kind],
    modules: dict[str, nn.Module],
    shapes: dict[str, tuple[int, ...]],
) -> Resolution:
    """Read a network's downsamplings from the shapes of its values.

    Args:
        shapes: by node, for one image of ``PROBE_SIDE`` by ``PROBE_SIDE`` pixels.
    """
    sides: dict[fx.Node, int | None] = {}
    steps: dict[int, list[tuple[fx.Node, int]]] = {}
    last = None
    for node in graph.nodes:
        inputs = [sides[n] for n in node.all_input_nodes]
        before = max((side for side in inputs if side is not None), default=None)
        after = _side(node, kinds[node], before, shapes.get(node.name))
        sides[node] = after
        if after is None or before is None:
            continue
        if kinds[node] is Kind.CONV:
            last = node
        layer = kinds[node] in _STRIDED
        stride = _stride(node, modules) if layer else round(before / after)
        if stride > 1:
            steps.setdefault(before, []).append((node, stride))
    assert last is not None  # a captured network has a convolution
    ordered = [
        Downsampling(*zip(*steps[side], strict=True)) for side in sorted(steps, reverse=True)
    ]
    return Resolution(tuple(ordered), last)


def _side(
    node: fx.Node, kind: Kind, before: int | None, shape: tuple[int, ...] | None
) -> int | None:
    """The side of a node's feature maps, None if it has none or they are 1×1.

    The third dimension is a side in (N, C, H, W) and in (N, H, W, C).
    """
    if kind is Kind.INPUT:
        return PROBE_SIDE
    if before is None or kind in (Kind.GLOBAL_AVG_POOL, Kind.SPATIAL_MEAN, Kind.NOT_A_TENSOR):
        return None
    if shape is None or len(shape) != 4:
        return before  # an intermediate shape, as in channel shuffle
    after = shape[2]
    if before < after < 1.5 * before:
        return before  # padding
    return after if after > 1 else None


def _stride(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    stride: Any
    if node.op == "call_module":
        module = modules[str(node.target)]
        stride, size = module.stride, module.kernel_size
    else:
        size = argument(node, 1, "kernel_size", None)
        stride = argument(node, 2, "stride", None)
    stride = stride or size
    sides = stride if isinstance(stride, (tuple, list)) else (stride,)
    return max(side for side in sides if isinstance(side, int))
