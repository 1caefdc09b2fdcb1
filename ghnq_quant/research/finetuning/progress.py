"""A finetuning run's live progress: a bar on the terminal and TensorBoard's curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich import progress as bars

from ghnq_quant.research.finetuning.run_folder import Counters


class Progress:
    """Shows steps a second, loss, accuracy and time left; writes what is logged for TensorBoard.

    Args:
        steps: length of the run, None where it is set in ``minutes``.
        minutes: length of the run where it is set in time.
        shown: whether there is a bar.
        events: folder for TensorBoard's events; None in all but one of several processes.
    """

    def __init__(
        self, steps: int | None, minutes: float | None, shown: bool, events: Path | None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.steps, self.minutes = steps, minutes
        self.first_step = 0
        self.first_second = 0.0
        self.bar = bars.Progress(
            bars.TextColumn("step {task.fields[step]}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("{task.fields[state]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            disable=not shown,
        )
        total = float(steps) if steps is not None else 60 * (minutes or 0.0)
        self.task = self.bar.add_task("", total=total, step=0, state="")
        self.events = SummaryWriter(str(events)) if events is not None else None

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
        if self.events is not None:
            self.events.close()

    def start(self, counters: Counters) -> None:
        """Begin at a resumed run's place."""
        self.first_step, self.first_second = counters.step, counters.seconds
        self.update(counters, (), ())

    def update(self, counters: Counters, losses: Sequence[float], top1: Sequence[float]) -> None:
        """After each step, with the losses and accuracies of the steps since the last logged line."""
        elapsed = counters.seconds - self.first_second
        rate = (counters.step - self.first_step) / elapsed if elapsed > 0 else 0.0
        state = f"{rate:.2f} steps/s"
        if losses:
            state += f"  loss {sum(losses) / len(losses):.3f}  top-1 {sum(top1) / len(top1):.1%}"
        if counters.skipped_steps or counters.failed_networks:
            state += f"  skipped {counters.skipped_steps}, failed {counters.failed_networks}"
        in_steps = self.steps is not None
        done = (
            counters.step - counters.first_step
            if in_steps
            else counters.seconds - counters.first_second
        )
        self.bar.update(self.task, completed=done, step=counters.step, state=state)

    def log(self, row: dict[str, float | int | None]) -> None:
        """Write one line of the history as TensorBoard scalars."""
        if self.events is not None:
            step = row["step"]
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.events.add_scalar(name, value, step)
