"""Several small networks at once, each on a thread of its own.

A network of a few channels leaves a core idle half of the time where its operations are split
between cores, so each takes one core from end to end. Its result does not depend on how many there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_flight(
    work: Callable[[_Item], _Result], items: Iterable[_Item], device: torch.device
) -> list[_Result]:
    """``work`` of each item, in order; on CPU as many at a time as PyTorch may use threads.

    The caller's autocast holds in ``work``. An exception of any item is raised when all have ended.

    Example:
        >>> map_in_flight(lambda x: x + 1, [1, 2, 3], torch.device("cpu"))
        [2, 3, 4]
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        return [work(item) for item in items]
    enabled = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type)

    def run(item: _Item) -> _Result:
        with torch.autocast(device.type, dtype=dtype, enabled=enabled):
            return work(item)

    futures = [_pool(threads).submit(run, item) for item in items]
    torch.set_num_threads(threads)  # a pool's new threads set what later ones begin with
    return [future.result() for future in futures]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, as are the buffers that PyTorch's kernels allot to each thread."""
    return ThreadPoolExecutor(threads, "network", initializer=torch.set_num_threads, initargs=(1,))
