"""Measures many things in processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

_Place = TypeVar("_Place")
_PlaceIn = TypeVar("_PlaceIn", contravariant=True)
_Result = TypeVar("_Result")
_ResultOut = TypeVar("_ResultOut", covariant=True)


class Job(Protocol[_PlaceIn, _ResultOut]):
    """What every process needs to measure any of a run's things."""

    def prepared(self) -> Job[_PlaceIn, _ResultOut]:
        """The same as a process uses it, with its tensors on their device."""

    def measure(self, place: _PlaceIn) -> _ResultOut:
        """Measure one thing."""


def in_processes(
    job: Job[_Place, _Result], places: Sequence[_Place], workers: int
) -> Iterator[_Result]:
    """Measure all of ``places`` in as many processes; results come as they are finished."""
    # new interpreters, because a fork of a process that has run torch's threads may hang
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(places))
    with ProcessPoolExecutor(count, context, _start_worker, (job,)) as pool:
        futures = [pool.submit(_measure, place) for place in places]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # an error, Ctrl-C, or the caller has enough
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in every worker: the number of threads decides how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_job: Job[Any, Any] | None = None


def _start_worker(job: Job[Any, Any]) -> None:
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _job = job.prepared()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for its next work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(place: Any) -> Any:
    assert _job is not None
    return _job.measure(place)
