"""From a program to the graph that the hypernetwork reads, and from a graph to its hash."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from ghnq_quant.capture import ArchGraph, Node
from ghnq_quant.research.networks.program import Operation, Program

_JOINS = {"add": "sum", "concat": "concat"}
_POOLS = ("max_pool", "avg_pool")


def build_graph(program: Program) -> ArchGraph:
    """What :func:`ghnq_quant.capture.capture` reads off the network's module."""
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    node_of: list[int] = []  # of each operation, the node that stands for its result
    for op in program.operations:
        sources = list(dict.fromkeys(node_of[i] for i in op.inputs))
        for node in _nodes(op, len(sources)):
            edges.extend((source, len(nodes)) for source in sources)
            sources = [len(nodes)]
            nodes.append(node)
        node_of.append(sources[0])
    weight, bias = len(nodes) - 2, len(nodes) - 1  # the classifier is the last linear layer
    return ArchGraph(tuple(nodes), np.array(edges, dtype=np.int64).reshape(-1, 2), weight, bias)


def _nodes(op: Operation, num_sources: int) -> tuple[Node, ...]:
    """A chain of nodes; none of an operation that is contracted."""
    if op.kind in ("conv", "linear"):
        primitive = "conv"
        if op.groups > 1:
            primitive = "dil_conv" if op.dilation > 1 else "sep_conv"
        weight = Node(primitive, op.weight_shape, (f"{op.name}.weight",))
        bias = Node("bias", (op.channels,), (f"{op.name}.bias",))
        return (weight, bias) if op.bias else (weight,)
    if op.kind == "batch_norm":
        return (Node("bn", (op.channels,), (f"{op.name}.weight", f"{op.name}.bias")),)
    if op.kind in _POOLS:
        return (Node(op.kind, (1, 1, op.kernel, op.kernel)),)
    if op.kind == "adaptive_avg_pool":
        return (Node("glob_avg"),)
    if op.kind in _JOINS and num_sources > 1:
        return (Node(_JOINS[op.kind]),)
    return (Node("input"),) if op.kind == "input" else ()


def canonical_hash(graph: ArchGraph) -> str:
    """16 hexadecimal digits, equal for isomorphic graphs whatever their nodes' order and names.

    Primitives, shapes and edges count; what a graph doesn't tell (strides, activation functions)
    does not, so that networks which differ in nothing else are one architecture. A node's hash is
    made of its primitive, its shape and its predecessors' hashes.

    Example:
        >>> graph = ArchGraph((Node("input"), Node("conv", (8, 3, 3, 3))), np.array([[0, 1]]))
        >>> canonical_hash(graph)
        'd4244d52d18b2522'
    """
    before: list[list[int]] = [[] for _ in graph.nodes]
    ends = set(range(len(graph)))
    hashes: list[str] = []
    for source, target in graph.edges.tolist():
        before[target].append(source)
        ends.discard(source)
    for node, sources in zip(graph.nodes, before, strict=True):
        own = f"{node.primitive}{node.shape}"
        hashes.append(_digest([own, *sorted(hashes[source] for source in sources)]))
    return _digest(sorted(hashes[end] for end in ends))


def _digest(parts: list[str]) -> str:
    return blake2b(";".join(parts).encode(), digest_size=8).hexdigest()
