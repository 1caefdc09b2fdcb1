"""Several processes that train together: their group, how they start and how they stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException, start_processes

from ghnq_quant.errors import GhnqError


@dataclass(frozen=True)
class Group:
    """The processes of a run; this one is number ``rank`` (from 0) of ``size``.

    Attributes:
        device: device for its networks: a GPU if there is one, which several processes may share.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """Average a tensor in host memory over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_group() -> Iterator[Group]:
    """The group given by the environment: torchrun's, accelerate's, or this process alone.

    Exchanged tensors are in host memory, so that several processes may share a GPU.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        assert kind is not None
        device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)) % count)
        torch.accelerator.set_device_index(device.index)
    joins = size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo")
    try:
        yield Group(rank, size, device)
    finally:
        if joins:
            dist.destroy_process_group()


def average_gradients(ghn: nn.Module, told: Tensor, group: Group) -> list[float]:
    """Replace each process's gradients by the mean over all processes; returns the mean of ``told``.

    All in one exchange. A meta-batch may not reach every parameter: without biases, for example, it
    does not.
    """
    parameters = list(ghn.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if group.size > 1:
        flat = group.average(torch.cat([told, *(g.flatten() for g in gradients)]))
        told, *parts = flat.split([len(told), *(p.numel() for p in parameters)])
        gradients = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    return told.tolist()


class StopRequest:
    """Whether the process was asked to stop (SIGTERM, or Ctrl-C once) since the block began.

    A second Ctrl-C interrupts as usual. Outside the main thread it installs no handlers.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])


def start_group(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` in a group of ``count`` new processes with one thread each.

    Signals to stop are passed on to them. If one fails, the others are terminated.

    Raises:
        GhnqError: one of them raised it.
        ProcessException: one of them ended in another way.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(
        _work_as, (count, port, work, arguments), count, join=False, start_method="spawn"
    )
    assert context is not None

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive():
                process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, pass_on)
    try:
        while not context.join():
            pass
    except ProcessRaisedException as error:
        _, mark, told = str(error).rpartition(f"\n{GhnqError.__module__}.")
        if not mark:
            raise
        raise GhnqError(told.partition(": ")[2].strip()) from error
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def _work_as(
    rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    work(*arguments)
