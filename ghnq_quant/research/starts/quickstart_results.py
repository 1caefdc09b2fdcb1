"""The quickstart's settings and results, as a table, JSON and curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from ghnq_quant.files import replacing, save_json
from ghnq_quant.research.runs.command import Option, bits_text, command_line
from ghnq_quant.research.runs.provenance import versions
from ghnq_quant.research.table1.summary import Summary, summarize

_COLORS = {"GHN-Q": "#1f5fa8", "PyTorch": "#d9731a"}
_LABELS = {"GHN-Q": "GHN-Q's start", "PyTorch": "PyTorch's initialization"}


@dataclass(frozen=True)
class QuickstartSettings:
    """What to train on, at what precision, how long and how often.

    Attributes:
        data: see :func:`ghnq_quant.research.data.load_images`.
        data_name: the data set's name in the results; None for its own.
        bits: (weight, activation) bits.
        stem_bits: weight bits of the first layer.
        backend: a quantization backend's name.
        epochs: passes over the training images.
        seeds: runs from each start.
        max_train: train on no more than this many images; None for all.
    """

    data: str = "digits"
    data_name: str | None = None
    bits: Annotated[tuple[int, int], Option(write=bits_text)] = (4, 4)
    stem_bits: int = 8
    backend: str = "brevitas"
    epochs: int = 2
    seeds: int = 5
    max_train: int | None = None

    @property
    def precision(self) -> str:
        """Such as W4/A4."""
        return f"W{self.bits[0]}/A{self.bits[1]}"

    def command(self) -> str:
        """The command line for these settings."""
        return command_line("quickstart", self)


@dataclass(frozen=True)
class QuickstartResult:
    """The results of a quickstart.

    Attributes:
        settings: as given.
        data: the data set's actual name.
        train_images: number of training images.
        test_images: number of images for the accuracy.
        accuracy: for each start, seeds × (epochs + 1) top-1 test accuracies in %; the first in
            each row is before training.
        seconds: total duration of all runs.
    """

    settings: QuickstartSettings
    data: str
    train_images: int
    test_images: int
    accuracy: dict[str, list[list[float]]]
    seconds: float

    def summaries(self, start: str) -> list[Summary]:
        """Mean and standard error over the seeds, in %, before training and after each epoch."""
        return [summarize(values) for values in zip(*self.accuracy[start], strict=True)]

    @property
    def _statistic(self) -> str:
        count = self.settings.seeds
        return f"mean ± standard error, n = {count}" if count > 1 else "one run from each start"

    def table(self) -> Table:
        """Accuracy after each epoch, for the terminal."""
        table = Table(
            title=f"{escape(self.data)}: top-1 test accuracy in %, {self.settings.precision} "
            f"({self.settings.backend})",
            caption=f"{self._statistic}; {self.seconds:.0f} s\n"
            f"{self.train_images:,} training and {self.test_images:,} test images\n"
            f"first layer's weight at {self.settings.stem_bits} bits\n"
            "epoch 0: before training; calibrated before each measurement",
        )
        table.add_column("epoch", justify="right")
        columns = []
        for start in self.accuracy:
            table.add_column(f"from {_LABELS[start]}", justify="right")
            columns.append([_plus_minus(summary) for summary in self.summaries(start)])
        for epoch, cells in enumerate(zip(*columns, strict=True)):
            table.add_row(str(epoch), *cells)
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything needed to read and repeat the result."""
        summary = {
            start: [
                {"epoch": epoch, "mean": s.mean, "standard_error": s.standard_error}
                for epoch, s in enumerate(self.summaries(start))
            ]
            for start in self.accuracy
        }
        return {
            "command": self.settings.command(),
            "data": self.data,
            "train_images": self.train_images,
            "test_images": self.test_images,
            "precision": self.settings.precision,
            "metric": "top-1 test accuracy in %, before training and after each epoch",
            "accuracy": self.accuracy,
            "summary": summary,
            "seconds": round(self.seconds, 1),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def save(self, folder: str | Path) -> None:
        """Write ``results.json`` and ``curves.png``."""
        save_json(self.to_json(), Path(folder) / "results.json")
        with replacing(Path(folder) / "curves.png") as temporary:
            self._plot(temporary)

    def _plot(self, path: Path) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for start, runs in self.accuracy.items():
            summaries = self.summaries(start)
            mean = np.array([s.mean for s in summaries])
            error = np.array([s.standard_error for s in summaries], dtype=float)  # None: NaN
            epochs = np.arange(len(mean))
            color = _COLORS[start]
            axes.plot(epochs, np.asarray(runs).T, color=color, alpha=0.3, linewidth=0.8)
            axes.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.2, lw=0)
            axes.plot(epochs, mean, "o-", color=color, label=f"from {_LABELS[start]}")
        axes.set(xlabel="epoch", ylabel="top-1 test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="best")
        axes.set_title(
            f"{self.data}, {self.settings.precision} quantization-aware training\n", loc="left"
        )
        axes.text(
            0, 1.02, self._statistic, transform=axes.transAxes, fontsize=9, color="0.35",
        )  # fmt: skip
        figure.savefig(path, format="png", dpi=150)


def _plus_minus(summary: Summary) -> str:
    error = summary.standard_error
    return f"{summary.mean:.1f}" + ("" if error is None else f" ± {error:.1f}")
