"""Values of a traced graph that are never negative, whatever the images and parameters."""

from __future__ import annotations

from torch import fx, nn

from ghnq_quant.capture.operations import OPERATIONS, Kind, Operation, find_operation

#: Operations whose results are never negative.
_NEVER_NEGATIVE = [
    OPERATIONS[name] for name in ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
]
#: Operations whose results are never negative if their input tensors are not.
_KEEP = [
    OPERATIONS[name]
    for name in (
        *("max_pool", "avg_pool", "adaptive_avg_pool", "mean", "cat", "add", "mul"),
        *("identity", "dropout", "flatten", "unflatten", "view", "reshape", "squeeze"),
        *("unsqueeze", "permute", "transpose", "contiguous", "split", "expand", "copy"),
        *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    )
]


def never_negative(
    graph: fx.Graph, kinds: dict[fx.Node, Kind], modules: dict[str, nn.Module]
) -> set[fx.Node]:
    """The nodes whose value is known never to be negative: results of ReLU or sigmoid, and their
    sums, products and averages.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Tanh())).graph
        >>> modules = {"0": nn.ReLU(), "1": nn.AvgPool2d(2), "2": nn.Tanh()}
        >>> kinds = {n: Kind.OTHER for n in graph.nodes}
        >>> [node.name for node in graph.nodes if node in never_negative(graph, kinds, modules)]
        ['_0', '_1']
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        operation = find_operation(node, modules)
        tensors = [n for n in node.all_input_nodes if kinds[n] is not Kind.NOT_A_TENSOR]
        keeps = operation in _KEEP and bool(tensors) and not _has_number(node, operation)
        if operation in _NEVER_NEGATIVE or (keeps and found.issuperset(tensors)):
            found.add(node)
    return found


def _has_number(node: fx.Node, operation: Operation | None) -> bool:
    """Whether it adds or multiplies by a number, which may be negative."""
    if operation not in (OPERATIONS["add"], OPERATIONS["mul"]):
        return False
    return bool(node.kwargs) or any(isinstance(a, (int, float)) for a in node.args)
