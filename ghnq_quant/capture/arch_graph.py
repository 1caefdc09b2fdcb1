"""A network's graph of operations as the hypernetwork reads it (Knyazev et al. 2021, section 2)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

#: The operations a node can represent; positions are rows of the hypernetwork's embedding.
PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node of an :class:`ArchGraph`.

    Attributes:
        primitive: one of :data:`PRIMITIVES`.
        shape: shape of the node's parameter (for a norm layer, its weight), ``(1, 1, kh, kw)`` for a
            pooling layer, None for a node with neither.
        parameters: names of the parameters predicted from this node: a weight or a bias, or a norm
            layer's weight and bias.
    """

    primitive: str
    shape: Shape | None = None
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShortestPaths:
    """All pairs (source, target, length) of nodes joined by a directed path up to some length.

    The three arrays have one element per pair and are sorted by target, then source.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ArchGraph:
    """A directed acyclic graph of :class:`Node` s in topological order (node 0 is the input).

    Attributes:
        nodes: N nodes.
        edges: (E, 2) array of (from, to) node positions, each ``from < to``, without duplicates.
        classifier_weight: position of the classification layer's weight, None if there is none.
        classifier_bias: position of its bias, None if there is none.

    Example:
        >>> graph = ArchGraph(
        ...     (Node("input"), Node("conv", (8, 3, 3, 3), ("0.weight",))), np.array([[0, 1]])
        ... )
        >>> graph.counts()
        {'input': 1, 'conv': 1}
    """

    nodes: tuple[Node, ...]
    edges: NDArray[np.int64]
    classifier_weight: int | None = None
    classifier_bias: int | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def counts(self) -> dict[str, int]:
        """The number of nodes of each primitive that occurs."""
        return dict(Counter(node.primitive for node in self.nodes))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters that the graph's nodes represent."""
        return tuple(name for node in self.nodes for name in node.parameters)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """(N,) length of the longest path from the input; nodes of one level are independent."""
        level = [0] * len(self)
        for source, target in sorted(self.edges.tolist()):
            level[target] = max(level[target], level[source] + 1)
        return np.array(level, dtype=np.int64)

    def shortest_paths(self, limit: int) -> ShortestPaths:
        """The pairs of nodes at most ``limit`` edges apart along directed paths."""
        cached = self._paths.get(limit)
        if cached is None:
            length = self._distances
            target, source = np.nonzero((length >= 1) & (length <= min(limit, len(self) - 1)))
            cached = ShortestPaths(source, target, length[target, source])
            self._paths[limit] = cached
        return cached

    @property
    def _distances(self) -> NDArray[np.int64]:
        """(N, N) length of the shortest path to each node (row) from each other one (column)."""
        distances = np.full((len(self), len(self)), len(self), dtype=np.int64)
        np.fill_diagonal(distances, 0)
        sources: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges.tolist():
            sources[target].append(source)
        for row, before in zip(distances, sources, strict=True):  # topological order: one pass
            if before:
                nearest = reduce(np.minimum, (distances[source] for source in before))
                np.minimum(row, nearest + 1, out=row)
        return distances

    @cached_property
    def _paths(self) -> dict[int, ShortestPaths]:
        return {}
