"""Several small networks at once, each on its own thread.

A network of a few channels leaves a core idle half of the time if its operations are split between
cores, so each network runs on one core from start to end. Results do not depend on the number of
cores.
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
    """``work`` for each item, in order; on CPU, as many at a time as PyTorch may use threads.

    ``work`` runs under the caller's autocast. An exception of any item is raised once all have ended.

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
    torch.set_num_threads(threads)  # a pool's new threads change the default of later ones
    return [future.result() for future in futures]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Cached, because PyTorch's kernels allocate buffers for each thread."""
    return ThreadPoolExecutor(threads, "network", initializer=torch.set_num_threads, initargs=(1,))
