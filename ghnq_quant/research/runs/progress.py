"""Live progress of a long run: one bar on the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich import progress as bars

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """A bar with what is done, the rate, and the time left.

    Args:
        total: length of the whole run.
        console: None for no bar.
        unit: what is counted, in the singular.
        done: how much of the total an earlier session finished.
        transient: whether the bar disappears at the end.

    Example:
        >>> with Progress(3, None, unit="network") as progress:
        ...     progress.advance(1)
    """

    def __init__(
        self,
        total: float,
        console: Console | None,
        *,
        unit: str,
        done: float = 0.0,
        transient: bool = False,
    ) -> None:
        self.total, self.unit = total, unit
        self.done = self.first = done
        self.start = time.perf_counter()
        self.bar = bars.Progress(
            bars.TextColumn("{task.fields[count]}", markup=False),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[state]}", markup=False),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=console is None,
            transient=transient,
        )
        self.task = self.bar.add_task("", total=total, count="", state="")
        self.advance(0)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, amount: float, text: str = "") -> None:
        """Count this much, possibly a fraction; ``text`` says what the result was."""
        self.done += amount
        seconds = time.perf_counter() - self.start
        state = "  ".join(filter(None, (rate(self.done - self.first, seconds, self.unit), text)))
        # a sum of fractions may end just below an integer
        self.show(self.done, f"{int(self.done + 1e-6)}/{self.total} {self.unit}s", state)

    def show(self, done: float, count: str, state: str) -> None:
        """Show other text, for a run whose length is not what it counts."""
        self.done = done
        self.bar.update(self.task, completed=done, count=count, state=state)


def rate(count: float, seconds: float, unit: str) -> str:
    """The rate; empty before the first is done.

    Example:
        >>> rate(30, 10, "step"), rate(2, 10, "network"), rate(0, 10, "step")
        ('3.0 steps/s', '5.0 s a network', '')
    """
    if count <= 0 or seconds <= 0:
        return ""
    return (
        f"{count / seconds:.1f} {unit}s/s"
        if count >= seconds
        else f"{seconds / count:.1f} s a {unit}"
    )
