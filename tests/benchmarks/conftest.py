"""What the benchmarks share: how they time, and the public implementation where it is at hand.

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

#: Of the hypernetworks that are compared: the public GHN-2 for CIFAR-10.
MAX_SHAPE = (64, 64, 11, 11)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Wall-clock times are of all the machine's cores."""
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
    """Seconds of the fastest of several rounds, in each of which all candidates take their turn.

    So what else the machine does hits them alike. Each runs once untimed before its turn, so that the
    time is not that of getting the memory which the one before it had no use for. What ``prepare``
    holds for a candidate is done before each of its runs and not timed.
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
