"""Works on many tasks in single-threaded processes, which may have limits of memory and time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ghnq_quant.errors import GhnqError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

#: Yields what is known of a task: the last is its result, earlier ones are what remains if the process
#: dies. It is pickled once for each process.
Work = Callable[[_Task], Iterator[_Result]]


@dataclass(frozen=True)
class Limits:
    """The limits of a process; each task then has its own process.

    Attributes:
        memory: bytes of address space; allocations beyond that fail.
        seconds: time after which the process is killed.
        preload: names of modules to import once, before the first process starts.
    """

    memory: int
    seconds: float
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome(Generic[_Task, _Result]):
    """How a task ended.

    Attributes:
        task: as given.
        result: the last that was known; None if nothing was.
        failure: None for a task that ended well, else for example "killed by signal 9".
    """

    task: _Task
    result: _Result | None
    failure: str | None = None


def in_processes(
    work: Work[_Task, _Result], tasks: Sequence[_Task], workers: int
) -> Iterator[_Result]:
    """Work on all ``tasks``, this many at a time; results come as they are finished.

    Raises:
        GhnqError: a process died.
        Exception: whatever a task raises; no other task is then started.
    """
    for outcome in _outcomes(work, tasks, workers, None):
        assert outcome.result is not None
        yield outcome.result


def in_limited_processes(
    work: Work[_Task, _Result], tasks: Sequence[_Task], workers: int, limits: Limits
) -> Iterator[Outcome[_Task, _Result]]:
    """The same with one process per task, within limits; a process that dies affects no other.

    Raises:
        GhnqError: the platform cannot fork.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise GhnqError("processes with a memory limit need a platform that can fork")
    return _outcomes(work, tasks, workers, limits)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, as in every process: the number of threads affects how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _outcomes(
    work: Work[_Task, _Result], tasks: Sequence[_Task], workers: int, limits: Limits | None
) -> Iterator[Outcome[_Task, _Result]]:
    context = _context(limits)
    waiting, running = deque(tasks), list[_Process[_Task, _Result]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_Process(context, work, waiting.popleft(), limits))
            first = min(process.deadline for process in running) - time.monotonic()
            wait([p.connection for p in running], max(first, 0) if limits else None)
            for process in list(running):
                outcome = process.outcome()
                if outcome is None:
                    continue
                if waiting and not limits:
                    process.begin(waiting.popleft())
                else:
                    process.end()
                    running.remove(process)
                yield outcome
    finally:  # an error, Ctrl-C, or the caller stops early
        for process in running:
            process.kill()


def _context(limits: Limits | None) -> BaseContext:
    # forking a process that has run torch's threads may hang: use new interpreters, or forks of a
    # server that has imported everything but started no thread
    if limits is None:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *limits.preload])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


class _Ended(NamedTuple):
    """That a task ended, and why if it failed."""

    failure: str | None = None
    error: Exception | None = None
    trace: str = ""


class _Process(Generic[_Task, _Result]):
    """A process and its current task."""

    def __init__(
        self,
        context: Any,
        work: Work[_Task, _Result],
        task: _Task,
        limits: Limits | None,
    ) -> None:
        self.limits = limits
        self.connection, child = context.Pipe()
        memory = None if limits is None else limits.memory
        self.process = context.Process(target=_work, args=(work, child, memory), daemon=True)
        self.process.start()
        child.close()
        self.begin(task)

    def begin(self, task: _Task) -> None:
        self.task, self.result = task, None
        seconds = self.limits.seconds if self.limits else float("inf")
        self.deadline = time.monotonic() + seconds
        with suppress(ConnectionError):  # a dead process is noticed when its turn comes
            self.connection.send(task)

    def outcome(self) -> Outcome[_Task, _Result] | None:
        """How the task ended; None while it runs."""
        ended = self._read()
        if ended is None:
            if self.limits is None or time.monotonic() < self.deadline:
                return None
            self.kill()
            ended = _Ended(f"took more than {self.limits.seconds:g} s")
        if ended.failure and self.limits is None:
            if ended.error is None:
                raise GhnqError(f"the process that worked on {self.task} ended: {ended.failure}")
            raise ended.error from RuntimeError(ended.trace)
        return Outcome(self.task, self.result, ended.failure)

    def _read(self) -> _Ended | None:
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, _Ended):
                    return message
                self.result = message
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            return _Ended(f"killed by signal {-code}" if code < 0 else f"exit status {code}")
        return None

    def end(self) -> None:
        """Let it exit: there is nothing left to do."""
        self.connection.close()
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _work(work: Work[Any, Any], connection: Connection, memory: int | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if memory is not None:
        import resource  # not on every platform

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            for result in work(task):
                connection.send(result)
            connection.send(_Ended())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            connection.send(_Ended(reason, error, traceback.format_exc()))


def _end_with_parent() -> None:
    """Exit with the parent: if killed, it cannot stop its processes, which would run for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
