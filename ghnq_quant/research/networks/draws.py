"""Random choices that depend only on a key, the same everywhere and always."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A sequence of choices that depends only on ``key``.

    Generators of NumPy and Python may change their draws between versions. Here the n-th block of
    eight 64-bit words is the BLAKE2b hash of the key and n, and a choice is a word modulo the number
    of options, with a bias below 2^-50.

    Example:
        >>> [Draws("train", 17).below(10) for _ in range(2)]
        [4, 4]
    """

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key))
        self._block = 0
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``."""
        if not self._words:
            digest = blake2b(f"{self._key}/{self._block}".encode()).digest()
            self._words = list(struct.unpack("<8Q", digest))
            self._block += 1
        return self._words.pop() % limit

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.below(100) < percent

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``, with equal probability."""
        return options[self.below(len(options))]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """One of the keys, with probability proportional to its weight, an integer."""
        position = self.below(sum(weights.values()))
        for option, weight in weights.items():
            position -= weight
            if position < 0:
                return option
        raise AssertionError("the weights changed while drawing")

    def subset(self, options: Sequence[T], size: int) -> list[T]:
        """``size`` different ``options``, in their order."""
        left = list(range(len(options)))
        picked = sorted(left.pop(self.below(len(left))) for _ in range(size))
        return [options[position] for position in picked]
