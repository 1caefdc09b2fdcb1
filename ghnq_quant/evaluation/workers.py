"""Measures networks one after another, or several at a time in processes of one thread each."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ghnq_quant.evaluation.networks import open_network
from ghnq_quant.evaluation.protocol import measure_network, num_evaluated
from ghnq_quant.evaluation.results import NetworkResult
from ghnq_quant.evaluation.settings import BATCH_SIZE, EvaluationSettings
from ghnq_quant.ghn import GHN
from ghnq_quant.training import Images

Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Job:
    """What every process needs to measure any of a run's networks.

    Attributes:
        settings: of the run.
        ghn: the hypernetwork.
        images: the data set's whole test part.
        trained: a ``state_dict`` of the named model.
        device: that networks run on.
    """

    settings: EvaluationSettings
    ghn: GHN
    images: Images
    trained: Mapping[str, Tensor] | None
    device: str

    def measure(self, place: Place, on_batch: Callable[[], None] = lambda: None) -> NetworkResult:
        """Measure the network of one place."""
        group, index = place
        model = open_network(self.settings, group, index, self.images)
        return measure_network(
            model,
            self.ghn,
            self.images,
            self.settings.precisions,
            group=group,
            index=index,
            num_images=self.settings.num_images,
            trained=self.trained,
            on_batch=on_batch,
        )

    def on_device(self) -> Job:
        """The same with its tensors on the device."""
        ghn, images = self.ghn.to(self.device), self.images.to(self.device)
        return Job(self.settings, ghn, images, self.trained, self.device)


def measured(
    job: Job, places: Sequence[Place], workers: int, advance: Callable[[float], None]
) -> Iterator[NetworkResult]:
    """Measure the networks of ``places``; results come as they are finished.

    Args:
        job: what to measure them with.
        places: group and index of each network.
        workers: how many processes share them.
        advance: called with what was done since the last call, in networks.
    """
    if min(workers, len(places)) > 1:
        yield from _in_processes(job, places, min(workers, len(places)), advance)
        return
    count = num_evaluated(len(job.images), job.settings.num_images)
    share = 1 / math.ceil(count / BATCH_SIZE)
    with _one_thread():
        job = job.on_device()
        for place in places:
            yield job.measure(place, lambda: advance(share))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in every worker: the number of threads decides how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_processes(
    job: Job, places: Sequence[Place], workers: int, advance: Callable[[float], None]
) -> Iterator[NetworkResult]:
    # new interpreters, because a fork of a process that has run torch's threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        futures = [pool.submit(_measure, place) for place in places]
        try:
            for future in as_completed(futures):
                result = future.result()
                advance(1)
                yield result
        finally:  # an error, Ctrl-C, or the caller has enough
            pool.shutdown(wait=False, cancel_futures=True)


_job: Job | None = None


def _start_worker(job: Job) -> None:
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _job = job.on_device()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for its next network forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(place: Place) -> NetworkResult:
    assert _job is not None
    return _job.measure(place)
