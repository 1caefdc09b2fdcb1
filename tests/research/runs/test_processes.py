"""Tasks in processes: results, errors, and processes that die or take too much memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from ghnq_quant import GhnqError
from ghnq_quant.research.runs.processes import (
    Limits,
    Outcome,
    in_limited_processes,
    in_processes,
)

LIMITS = Limits(memory=64 * 2**30, seconds=30)


def doing(task: str) -> Iterator[str]:
    """Does what a task says, after reporting that it has begun."""
    assert torch.get_num_threads() == 1
    yield "began"
    if task == "raise":
        raise ConnectionError("no such host")
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "sleep":
        time.sleep(60)
    if task == "allocate":
        torch.zeros(2**37)
    yield f"{task}: done"


def test_all_tasks_are_worked_on_by_fewer_processes() -> None:
    tasks = [str(number) for number in range(5)]
    assert sorted(in_processes(doing, tasks, 2)) == [f"{task}: done" for task in tasks]
    assert list(in_processes(doing, [], 2)) == []


def test_an_error_of_a_task_is_raised_as_it_is() -> None:
    with pytest.raises(ConnectionError, match="no such host"):
        list(in_processes(doing, ["raise"], 1))


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(GhnqError, match="worked on die ended: killed by signal 9"):
        list(in_processes(doing, ["die"], 1))


def test_what_a_process_dies_of_concerns_no_other() -> None:
    tasks = ["die", "raise", "allocate", "well"]
    found = {o.task: o for o in in_limited_processes(doing, tasks, 2, LIMITS)}
    assert found.keys() == set(tasks)
    assert found["well"] == Outcome("well", "well: done")
    assert found["die"] == Outcome("die", "began", "killed by signal 9")
    assert found["raise"] == Outcome("raise", "began", "ConnectionError: no such host")
    assert found["allocate"].result == "began"
    assert "allocate memory" in (found["allocate"].failure or "")


def test_a_process_that_takes_too_long_is_ended() -> None:
    limits = Limits(memory=LIMITS.memory, seconds=8)
    (outcome,) = in_limited_processes(doing, ["sleep"], 1, limits)
    assert outcome.failure == "took more than 8 s"
