"""An evaluation's live progress: networks done, seconds a network, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich import progress as bars

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """A bar on the terminal.

    Args:
        total: networks of the whole evaluation.
        done: of them, those that an earlier session finished.
        console: None for no bar.
    """

    def __init__(self, total: int, done: int, console: Console | None) -> None:
        self.start = time.perf_counter()
        self.done = self.first = float(done)
        self.bar = bars.Progress(
            bars.TextColumn("{task.fields[count]} networks"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=console is None,
        )
        self.total = total
        self.task = self.bar.add_task("", total=total, completed=done, count="", rate="")

    def __enter__(self) -> Progress:
        self.bar.start()
        self.advance(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def advance(self, networks: float) -> None:
        """Add so many networks, or a fraction of one."""
        self.done += networks
        new = self.done - self.first
        rate = f"{(time.perf_counter() - self.start) / new:.1f} s a network" if new > 0 else ""
        # a sum of fractions may end just below a whole number
        count = f"{int(self.done + 1e-6)}/{self.total}"
        self.bar.update(self.task, completed=self.done, count=count, rate=rate)
