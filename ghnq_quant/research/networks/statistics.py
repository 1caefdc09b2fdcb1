"""Statistics of a split's networks: sizes, depths and frequencies of operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ghnq_quant.research.networks.dataset import ConvNets250K, SampledNetwork

#: Title and function of each quantity in tables and plots.
QUANTITIES: dict[str, Callable[[NetworkStatistics], int]] = {
    "parameters": lambda s: s.parameters,
    "MACs": lambda s: s.macs,
    "depth": lambda s: s.depth,
    "nodes": lambda s: s.nodes,
}


@dataclass(frozen=True)
class NetworkStatistics:
    """The numbers of one network.

    Attributes:
        split, index: its place in ConvNets-250K.
        family: ``cells``, ``plain``, ``residual`` or ``mobile``.
        parameters: elements of all weights and biases.
        macs: multiply-accumulates of convolutions and linear layers for one 3×32×32 image.
        depth: convolutions and linear layers on the longest path.
        nodes: nodes of its graph.
        primitives: number of nodes of each primitive that occurs.
    """

    split: str
    index: int
    family: str
    parameters: int
    macs: int
    depth: int
    nodes: int
    primitives: dict[str, int]


def network_statistics(item: SampledNetwork) -> NetworkStatistics:
    """The numbers of one network, from its description, without building a module."""
    return NetworkStatistics(
        item.split,
        item.index,
        item.description.family,
        item.program.num_parameters,
        item.program.macs,
        item.program.depth,
        len(item.graph),
        item.graph.counts(),
    )


def space_statistics(split: str, num: int) -> list[NetworkStatistics]:
    """The numbers of the first ``num`` networks of a split, or of all if it has fewer.

    Raises:
        DataError: there is no such split.

    Example:
        >>> [s.family for s in space_statistics("mobile", 3)]
        ['mobile', 'mobile', 'mobile']
    """
    networks = ConvNets250K(split)
    return [network_statistics(networks[i]) for i in range(min(num, len(networks)))]


def by_split(statistics: Sequence[NetworkStatistics]) -> dict[str, list[NetworkStatistics]]:
    """The same statistics, grouped by split."""
    groups: dict[str, list[NetworkStatistics]] = {}
    for network in statistics:
        groups.setdefault(network.split, []).append(network)
    return groups


def values(statistics: Sequence[NetworkStatistics], quantity: str) -> NDArray[np.int64]:
    """One of :data:`QUANTITIES` for each network."""
    return np.array([QUANTITIES[quantity](network) for network in statistics], dtype=np.int64)


def primitive_shares(statistics: Sequence[NetworkStatistics]) -> dict[str, float]:
    """Each primitive's share of all nodes."""
    total: Counter[str] = Counter()
    for network in statistics:
        total.update(network.primitives)
    return {primitive: count / total.total() for primitive, count in total.items()}


def statistics_table(statistics: Sequence[NetworkStatistics]) -> Table:
    """A table for the terminal: mean, median and maximum of each quantity, one row per split."""
    table = Table(title="ConvNets-250K (mean / median / max)")
    table.add_column("split")
    for title in ("networks", *QUANTITIES):
        table.add_column(title, justify="right", no_wrap=True)
    for split, networks in by_split(statistics).items():
        cells = [split, str(len(networks))]
        for quantity in QUANTITIES:
            of_split = values(networks, quantity)
            summary = (of_split.mean(), np.median(of_split), of_split.max())
            cells.append(" / ".join(map(shortened, summary)))
        table.add_row(*cells)
    return table


def shortened(value: float) -> str:
    """A short readable number: 1.2 M, 15 k or 321."""
    if value >= 1e6:
        return f"{value / 1e6:.1f} M"
    return f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:.0f}"
