"""Which networks and which precision a step takes, as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def network_indices(count: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Positions of a step's networks: each of ``count`` once an epoch, in an order of each epoch's own.

    Example:
        >>> sorted(network_indices(8, 0, 4, seed=0) + network_indices(8, 1, 4, seed=0))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(count, p // count, seed)[p % count]) for p in positions]


def other_networks(count: int, index: int, seed: int) -> Iterator[int]:
    """An endless row of positions to take in place of ``index``, drawn at random."""
    rng = np.random.default_rng((seed, 5, index))
    while True:
        yield int(rng.integers(count))


@lru_cache(maxsize=2)
def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, 3, epoch)).permutation(count)


def precision_index(count: int, step: int, seed: int) -> int:
    """Which of ``count`` precisions a step takes, drawn at random."""
    return int(np.random.default_rng((seed, 4, step)).integers(count))
