"""What a training run shows while it runs: a bar on the terminal and TensorBoard's curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ghnq_quant.research.finetuning.run_folder import Counters
from ghnq_quant.research.finetuning.step import StepResult, summary
from ghnq_quant.research.runs.progress import Progress, rate


class TrainingProgress:
    """Shows steps per second, loss, accuracy and time left; writes logged values for TensorBoard.

    Args:
        counters: the position of a resumed run.
        steps: length of the run, None if it is set in ``minutes``.
        minutes: length of the run if it is set in time.
        shown: whether there is a bar.
        events: folder for TensorBoard's events; None in all but one of several processes.
    """

    def __init__(
        self,
        counters: Counters,
        steps: int | None,
        minutes: float | None,
        shown: bool,
        events: Path | None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.in_steps = steps is not None
        self.first_step, self.first_second = counters.step, counters.seconds
        total = steps if steps is not None else 60 * (minutes or 0.0)
        self.bar = Progress(total, Console() if shown else None, unit="step")
        self.events = SummaryWriter(str(events)) if events is not None else None
        self.update(counters, ())

    def __enter__(self) -> TrainingProgress:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)
        if self.events is not None:
            self.events.close()

    def update(self, counters: Counters, since: Sequence[StepResult]) -> None:
        """Call after each step, with the results since the last logged line."""
        parts = [
            rate(counters.step - self.first_step, counters.seconds - self.first_second, "step")
        ]
        if found := summary(since):
            loss, top1 = found
            parts += [f"loss {loss:.3f}", f"top-1 {top1:.1%}"]
        if counters.skipped_steps or counters.failed_networks:
            parts.append(f"skipped {counters.skipped_steps}, failed {counters.failed_networks}")
        done = (
            counters.step - counters.first_step
            if self.in_steps
            else counters.seconds - counters.first_second
        )
        self.bar.show(done, f"step {counters.step}", "  ".join(filter(None, parts)))

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Write one line of the history as TensorBoard scalars."""
        if self.events is not None:
            step = row["step"]
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.events.add_scalar(name, value, step)
