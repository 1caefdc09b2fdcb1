"""From a traced graph to the nodes and edges that the hypernetwork reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from torch import fx, nn

from ghnq_quant.capture.arch_graph import ArchGraph, Node, Shape
from ghnq_quant.capture.operations import (
    WEIGHTED,
    WINDOWED_POOLS,
    Kind,
    conv_primitive,
    keeps_dimensions,
    pooling_window,
)

_Modules = dict[str, nn.Module]
_JOINS = (Kind.ADD, Kind.MULTIPLY, Kind.CONCAT)


def assemble_graph(
    kinds: Sequence[Kind], inputs: Sequence[Sequence[int]], chains: Sequence[tuple[Node, ...]]
) -> ArchGraph:
    """Build the graph of a network in any representation, contracting operations without nodes.

    A contracted operation's inputs become the inputs of its consumers. An addition, concatenation
    or product is kept if it still joins more than one node once everything else is contracted.

    Args:
        kinds: what each operation does, in order of execution; the last one is the output.
        inputs: positions of the operations whose results each operation reads.
        chains: the nodes that represent each operation, as a chain.

    Example:
        >>> kinds = [Kind.INPUT, Kind.CONV, Kind.ACTIVATION, Kind.OUTPUT]
        >>> conv = weight_nodes("0", (8, 3, 3, 3), bias=True)
        >>> assemble_graph(kinds, [[], [0], [1], [2]], [(Node("input"),), conv, (), ()]).counts()
        {'input': 1, 'conv': 1, 'bias': 1}
    """
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    results: list[list[int]] = []  # for each operation, the nodes that represent its result
    for kind, own_inputs, chain in zip(kinds, inputs, chains, strict=True):
        sources = list(dict.fromkeys(node for i in own_inputs for node in results[i]))
        if kind is Kind.NOT_A_TENSOR:
            sources = []
        elif kind is Kind.INPUT and nodes:
            sources, chain = [0], ()  # all arguments are one input
        elif kind in _JOINS and len(sources) < 2:
            chain = ()
        for node in chain:
            edges.extend((source, len(nodes)) for source in sources)
            sources = [len(nodes)]
            nodes.append(node)
        results.append(sources)
    edge_array = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return ArchGraph(tuple(nodes), edge_array, *_find_classifier(nodes, results[-1]))


def _find_classifier(nodes: list[Node], ends: list[int]) -> tuple[int | None, int | None]:
    """The linear layer whose nodes are the graph's only end."""
    if len(nodes) > 1 and ends == [len(nodes) - 1]:
        last, before = nodes[-1], nodes[-2]
        if last.primitive == "bias" and len(before.shape or ()) == 2:
            return len(nodes) - 2, len(nodes) - 1
        if last.primitive == "conv" and len(last.shape or ()) == 2:
            return len(nodes) - 1, None
    return None, None


def weight_nodes(
    name: str, shape: Shape, *, bias: bool, groups: int = 1, dilation: int = 1
) -> tuple[Node, ...]:
    """The nodes of a conv or linear layer whose weight has ``shape``."""
    weight = Node(conv_primitive(groups, dilation), shape, (f"{name}.weight",))
    return (weight, Node("bias", shape[:1], (f"{name}.bias",))) if bias else (weight,)


def build_arch_graph(
    graph: fx.Graph,
    kinds: dict[fx.Node, Kind],
    modules: _Modules,
    chains: Mapping[fx.Node, tuple[Node, ...]] = MappingProxyType({}),
) -> ArchGraph:
    """Build the graph of everything that a traced network's output depends on.

    Args:
        chains: nodes that represent an operation, as a chain, if they differ from those of its
            kind.
    """
    used = _ancestors_of_output(graph)
    nodes = [node for node in graph.nodes if node in used]
    position = {node: i for i, node in enumerate(nodes)}
    return assemble_graph(
        [kinds[node] for node in nodes],
        [[position[n] for n in node.all_input_nodes] for node in nodes],
        [chains.get(node) or _nodes(node, kinds[node], modules) for node in nodes],
    )


def _ancestors_of_output(graph: fx.Graph) -> set[fx.Node]:
    used: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in used:
            used.update((node, *node.all_input_nodes))
    return used


def _nodes(operation: fx.Node, kind: Kind, modules: _Modules) -> tuple[Node, ...]:
    if kind in WEIGHTED:
        return _layer_nodes(str(operation.target), modules)
    if kind in (Kind.BATCH_NORM, Kind.OTHER_NORM):
        return _norm_nodes(str(operation.target), kind, modules)
    if kind.primitive is None or (kind is Kind.SPATIAL_MEAN and not keeps_dimensions(operation)):
        return ()
    pools = kind in WINDOWED_POOLS
    return (Node(kind.primitive, (1, 1, *pooling_window(operation, modules)) if pools else None),)


def _layer_nodes(name: str, modules: _Modules) -> tuple[Node, ...]:
    layer = modules[name]
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    shape, bias = tuple(layer.weight.shape), layer.bias is not None
    if isinstance(layer, nn.Linear):
        return weight_nodes(name, shape, bias=bias)
    return weight_nodes(name, shape, bias=bias, groups=layer.groups, dilation=min(layer.dilation))


def _norm_nodes(name: str, kind: Kind, modules: _Modules) -> tuple[Node, ...]:
    norm = modules[name]
    names = tuple(f"{name}.{p}" for p in ("weight", "bias") if getattr(norm, p, None) is not None)
    if f"{name}.weight" not in names or norm.weight.dim() != 1:  # type: ignore[operator]
        return ()
    assert isinstance(norm.weight, nn.Parameter)
    assert kind.primitive is not None
    return (Node(kind.primitive, tuple(norm.weight.shape), names),)
