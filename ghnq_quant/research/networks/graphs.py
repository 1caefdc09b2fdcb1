"""From a program to the graph that the hypernetwork reads, and from the graph to its hash."""

from __future__ import annotations

from hashlib import blake2b

from ghnq_quant.capture import ArchGraph, Kind, Node
from ghnq_quant.capture.build_arch_graph import assemble_graph, weight_nodes
from ghnq_quant.capture.operations import WEIGHTED, WINDOWED_POOLS
from ghnq_quant.research.networks.program import Instruction, Program


def build_graph(program: Program) -> ArchGraph:
    """The same graph that :func:`ghnq_quant.capture.capture` finds for the network's module."""
    chains = [*map(_nodes, program.instructions), ()]
    return assemble_graph(program.kinds, program.inputs, chains)


def _nodes(instruction: Instruction) -> tuple[Node, ...]:
    kind = instruction.kind
    if kind in WEIGHTED:
        return weight_nodes(
            instruction.name,
            instruction.weight_shape,
            bias=instruction.bias,
            groups=instruction.groups,
            dilation=instruction.dilation,
        )
    if kind.primitive is None:
        return ()
    if kind is Kind.BATCH_NORM:
        names = (f"{instruction.name}.weight", f"{instruction.name}.bias")
        return (Node(kind.primitive, (instruction.channels,), names),)
    pools = kind in WINDOWED_POOLS
    return (
        Node(kind.primitive, (1, 1, instruction.kernel, instruction.kernel) if pools else None),
    )


def canonical_hash(graph: ArchGraph) -> str:
    """16 hexadecimal digits, equal for isomorphic graphs whatever the order and names of their nodes.

    Primitives, shapes and edges count. What a graph does not show (strides, activation functions)
    does not, so networks that differ only in that are one architecture. A node's hash combines its
    primitive, its shape and its predecessors' hashes.

    Example:
        >>> import numpy as np
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
