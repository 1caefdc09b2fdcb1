"""Which of a network's nodes are decoded, and to what shapes."""

from __future__ import annotations

from typing import NamedTuple

from ghnq_quant.capture import ArchGraph, Node
from ghnq_quant.errors import PredictionError
from ghnq_quant.ghn.grid import Shape4d
from ghnq_quant.ghn.per_graph import once_per_graph
from ghnq_quant.ghn.tiling import fan_in_scale


class ToDecode(NamedTuple):
    """A node whose parameters are decoded."""

    position: int  # among the graph's nodes
    node: Node
    shape: tuple[int, ...]  # of its parameter
    decoded: Shape4d  # decoded, then tiled to ``shape``; meaningless for a vector
    classifies: bool
    scale: float  # of a weight


@once_per_graph
def nodes_to_decode(
    graph: ArchGraph, max_shape: Shape4d, num_classes: int, any_size: bool = False
) -> tuple[ToDecode, ...]:
    """The nodes whose parameters are decoded, in order.

    Args:
        any_size: decode a kernel larger than ``max_shape`` at that size, to be enlarged, and a
            classification layer with another number of classes as one of ``num_classes``, to be
            tiled; otherwise leave that layer out.

    Raises:
        PredictionError: a kernel larger than ``max_shape``, unless ``any_size``.
    """
    found, assigned = [], set[str]()
    classifier = (graph.classifier_weight, graph.classifier_bias)
    for position, node in enumerate(graph.nodes):
        # if a layer is called more than once, the first call counts
        if not node.parameters or node.parameters[0] in assigned:
            continue
        assigned.update(node.parameters)
        shape = node.shape
        assert shape is not None
        classifies = position in classifier
        if not classifies or any_size or shape[0] == num_classes:
            decoded = _decoded_shape(node, shape, max_shape, classifies, any_size)
            scale = 1.0 if node.primitive == "pos_enc" else fan_in_scale(shape)
            found.append(ToDecode(position, node, shape, decoded, classifies, scale))
    return tuple(found)


def _decoded_shape(
    node: Node, shape: tuple[int, ...], max_shape: Shape4d, classifies: bool, any_size: bool
) -> Shape4d:
    c_out, c_in, kh, kw = (*shape, *(1,) * (4 - len(shape)))
    max_out, max_in, max_kh, max_kw = max_shape
    if (kh > max_kh or kw > max_kw) and any_size:
        kh, kw = max_kh, max_kw
    elif kh > max_kh or kw > max_kw:
        raise PredictionError(
            f"{node.parameters[0]!r} has a {kh}×{kw} kernel; the largest that this "
            f"hypernetwork predicts is {max_kh}×{max_kw}"
        )
    return max_out if classifies else min(c_out, max_out), min(c_in, max_in), kh, kw
