"""A comparison's live progress, in steps of training."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich import progress as bars

from ghnq_quant.quantization.scheme import precision_name
from ghnq_quant.research.starts.results import TrialResult

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """A bar on the terminal.

    Args:
        total: steps of all trainings.
        console: None for no bar.
    """

    def __init__(self, total: int, console: Console | None) -> None:
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=console is None,
        )
        self.task = self.bar.add_task("steps", total=total, rate="")
        self.began: float | None = None
        self.new = 0

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def add(self, results: Iterable[TrialResult]) -> None:
        """Count trainings; the first call, with what an earlier session finished, starts the clock."""
        text, steps = "", 0
        for result in results:
            trial = result.trial
            steps += trial.steps
            text = (
                f"{trial.arch} {precision_name(trial.bits)} {trial.start}: {result.accuracy:.1f} %"
            )
        if self.began is None:
            self.began = time.perf_counter()
            self.bar.update(self.task, completed=steps)
            return
        self.new += steps
        rate = f"{self.new / (time.perf_counter() - self.began):.1f} steps/s"
        self.bar.update(self.task, advance=steps, description=text, rate=rate)
