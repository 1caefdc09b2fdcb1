"""What the benchmarks share: timing, and the public implementation, if there is one.

The public GHN-2 code is not part of this project. With ``PYTHONPATH`` naming a checkout of
facebookresearch/ppuda (and its own requirement einops installed), the benchmarks of prediction and
of a finetuning step compare with it too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import pytest
import torch

#: Decoder size of the compared hypernetworks: the public GHN-2 for CIFAR-10.
MAX_SHAPE = (64, 64, 11, 11)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Use all the machine's cores, for wall-clock times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


def fastest(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    prepare: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> dict[str, float]:
    """Seconds of the fastest of several rounds, in each of which all candidates take turns.

    So other load on the machine affects them equally. Each runs once untimed before its turn, so
    that its time excludes getting memory that the candidate before it did not need. ``prepare`` maps
    a candidate to work that is done before each of its runs and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            for _ in range(2):
                prepare.get(name, lambda: None)()
                start = clock()
                work()
                seconds = clock() - start
            times[name].append(seconds)
    return {name: min(values) for name, values in times.items()}
