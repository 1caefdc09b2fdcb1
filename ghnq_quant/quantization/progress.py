"""Progress of a loop over batches, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import TypeVar

_T = TypeVar("_T")
_DELAY, _WIDTH = 2.0, 30


def with_bar(batches: Iterable[_T], what: str) -> Iterator[_T]:
    """Yield the batches, with a bar on standard error once they take more than two seconds, if that
    is a terminal; the bar disappears at the end.

    Example:
        >>> list(with_bar([1, 2], "calibrate"))
        [1, 2]
    """
    total, begin, shown = length_hint(batches), time.monotonic(), False
    try:
        for count, batch in enumerate(batches):
            if sys.stderr.isatty() and time.monotonic() - begin > _DELAY:
                shown = True
                done = "#" * (_WIDTH * count // total) if total else ""
                bar = f" [{done:<{_WIDTH}}] {count}/{total}" if total else f" {count} batches"
                print(f"\r{what}{bar}", end="", file=sys.stderr, flush=True)
            yield batch
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
