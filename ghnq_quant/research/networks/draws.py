"""Random choices that are a function of a key alone, the same everywhere and always."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A sequence of choices that depends on ``key`` and on nothing else.

    numpy's and Python's generators may change what they draw between versions. Here the n-th block
    of eight 64-bit words is the BLAKE2b hash of the key and n, and a choice is a word modulo the
    number of options, whose bias is below 2^-50.

    Example:
        >>> [Draws("train", 17).below(10) for _ in range(2)]
        [4, 4]
    """

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key))
        self._block = 0
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """A whole number from 0 to ``limit - 1``."""
        if not self._words:
            digest = blake2b(f"{self._key}/{self._block}".encode()).digest()
            self._words = list(struct.unpack("<8Q", digest))
            self._block += 1
        return self._words.pop() % limit

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 cases."""
        return self.below(100) < percent

    def choice(self, options: Sequence[T]) -> T:
        """One of ``options``, all alike."""
        return options[self.below(len(options))]

    def weighted(self, weights: Mapping[T, int]) -> T:
        """One of the keys, each as often as its weight, a whole number, says."""
        position = self.below(sum(weights.values()))
        for option, weight in weights.items():
            position -= weight
            if position < 0:
                return option
        raise AssertionError("the weights changed while drawing")

    def subset(self, options: Sequence[T], size: int) -> list[T]:
        """``size`` different ones of ``options``, in their order."""
        left = list(range(len(options)))
        picked = sorted(left.pop(self.below(len(left))) for _ in range(size))
        return [options[position] for position in picked]
