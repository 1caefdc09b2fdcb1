"""The networks and the precision of each step, as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np

from ghnq_quant.quantization.scheme import Precision
from ghnq_quant.research.finetuning.functional import FunctionalNetwork
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork
from ghnq_quant.research.runs.seeds import Stream, generator


class TrainingNetworks:
    """The networks of the split ``train`` that a run draws from.

    Args:
        num_classes: outputs of the networks.
        architectures: number of fixed architectures, the first of the split within the limits of a
            step. The size of the whole split means no fixed ones: each comes once per epoch,
            and nothing is kept.
        seed: random seed.
        channel_limit, range_gradient: of quantized networks, see
            :class:`ghnq_quant.research.finetuning.functional.FunctionalNetwork`.
        rank, processes: which of a run's processes draws. Fixed architectures are divided among the
            processes, so that each one's graph and kernels are kept only once.

    Example:
        >>> networks = TrainingNetworks(10, architectures=20, seed=0)
        >>> drawn = networks.draw(step=0, count=2, known=10, max_macs=10**6, any_size=True)
        >>> [item.program.macs <= 10**6 for item in drawn]
        [True, True]
    """

    def __init__(
        self,
        num_classes: int,
        architectures: int,
        seed: int,
        channel_limit: float | None = None,
        range_gradient: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._split = ConvNets250K("train", num_classes=num_classes)
        self._architectures, self._seed = architectures, seed
        self._channel_limit, self._range_gradient = channel_limit, range_gradient
        self._rank, self._processes = rank, processes
        self._kept: dict[tuple[int | None, bool], list[SampledNetwork]] = {}
        self._are_fixed = architectures < len(self._split)
        if self._are_fixed:  # the same networks come again
            self.runner = cache(self.runner)  # type: ignore[method-assign]

    def draw(
        self, step: int, count: int, known: int, max_macs: int | None, any_size: bool
    ) -> list[SampledNetwork]:
        """The networks that this process takes in a step.

        Args:
            step: from 0.
            count: number of networks per process.
            known: for fixed architectures, how many of the smallest to draw from.
            max_macs: the largest network; None for no limit.
            any_size: for fixed architectures, leave out those with a flattened head.
        """
        if self._are_fixed:
            fixed = self.fixed(max_macs, any_size)[:known]
            own = fixed[self._rank :: self._processes] or fixed
            rng = generator(self._seed, Stream.NETWORKS, step, self._rank)
            return [own[i] for i in rng.integers(len(own), size=count)]
        items = []
        indices = network_indices(len(self._split), step, count * self._processes, self._seed)
        for index in indices[self._rank * count : (self._rank + 1) * count]:
            others = _other_networks(len(self._split), index, self._seed)
            item = self._split[index]
            while max_macs is not None and item.program.macs > max_macs:
                item = self._split[next(others)]
            items.append(item)
        return items

    def runner(self, item: SampledNetwork, bits: Precision) -> FunctionalNetwork:
        """The network as a function of its parameters; cached if networks come again."""
        return FunctionalNetwork(item.program, bits, self._channel_limit, self._range_gradient)

    def fixed(self, max_macs: int | None, any_size: bool) -> list[SampledNetwork]:
        """The fixed architectures of all processes, sorted by size."""
        if (max_macs, any_size) not in self._kept:
            items: list[SampledNetwork] = []
            for item in self._split:
                fits = max_macs is None or item.program.macs <= max_macs
                if fits and (item.description.any_size or not any_size):
                    items.append(item)
                if len(items) == self._architectures:
                    break
            self._kept[max_macs, any_size] = sorted(items, key=lambda item: item.program.macs)
        return self._kept[max_macs, any_size]


def network_indices(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Positions of a step's networks: each of ``count`` once per epoch, in a new order each epoch.

    Example:
        >>> sorted(network_indices(8, 0, 4, seed=0) + network_indices(8, 1, 4, seed=0))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(count, p // count, seed)[p % count]) for p in positions]


def _other_networks(count: int, index: int, seed: int) -> Iterator[int]:
    """An endless sequence of random positions to use instead of ``index``."""
    rng = generator(seed, Stream.REPLACEMENT_NETWORKS, index)
    while True:
        yield int(rng.integers(count))


@lru_cache(maxsize=2)
def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    return generator(seed, Stream.NETWORKS, epoch).permutation(count)


def precision_index(count: int, place: int, seed: int) -> int:
    """Which of ``count`` precisions a step, or a network of a run, uses, at random."""
    return int(generator(seed, Stream.PRECISION, place).integers(count))
