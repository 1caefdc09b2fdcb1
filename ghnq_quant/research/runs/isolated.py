"""Runs calls in processes of their own, forked from one that has everything imported."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Generic, TypeVar

import torch

from ghnq_quant.errors import GhnqError

Task = TypeVar("Task")
Say = Callable[[object], None]


@dataclass
class _Running(Generic[Task]):
    task: Task
    process: ForkServerProcess
    results: Connection
    deadline: float
    said: object = None


def run_isolated(
    function: Callable[[Task, Say], None],
    tasks: Sequence[Task],
    *,
    workers: int,
    memory: int,
    seconds: float,
    preload: Sequence[str],
) -> Iterator[tuple[Task, object, str | None]]:
    """Call ``function(task, say)`` for each task in a process of one thread each.

    Args:
        function: importable; it may call ``say`` with what it knows so far.
        tasks: picklable.
        workers: processes at a time.
        memory: bytes of address space that a process may take; an allocation beyond fails in it.
        seconds: after which a process is ended.
        preload: names of the modules that are imported before the first fork.

    Yields:
        as they end: the task, what was said last (None for nothing), and how the process ended if
        not well: «killed by signal 9», «took more than 60 s».

    Raises:
        GhnqError: the platform cannot fork.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise GhnqError("processes with a memory limit need a platform that can fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    waiting, running = deque(tasks), list[_Running[Task]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(context, function, waiting.popleft(), memory, seconds))
            first = min(r.deadline for r in running) - time.monotonic()
            wait([r.results for r in running], max(first, 0))
            for one in list(running):
                ended, reason = _ended(one, seconds)
                if ended:
                    running.remove(one)
                    yield one.task, one.said, reason
    finally:
        for one in running:
            one.process.kill()


def _start(
    context: ForkServerContext,
    function: Callable[[Task, Say], None],
    task: Task,
    memory: int,
    seconds: float,
) -> _Running[Task]:
    results, child = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, task, child, memory))
    with _one_thread():
        process.start()
    child.close()
    return _Running(task, process, results, time.monotonic() + seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The server of forks, which starts with the first process, must not start threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _ended(one: _Running[Task], seconds: float) -> tuple[bool, str | None]:
    try:
        while one.results.poll():
            one.said = one.results.recv()
    except EOFError:
        one.process.join()
        code = one.process.exitcode or 0
        if code == 0:
            return True, None
        return True, f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    if time.monotonic() >= one.deadline:
        one.process.kill()
        one.process.join()
        return True, f"took more than {seconds:g} s"
    return False, None


def _work(
    function: Callable[[Task, Say], None], task: Task, results: Connection, memory: int
) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    function(task, results.send)
    results.close()
