"""The plots of a report: small panels of one size, arranged to the width of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghnq_quant.research.table1.evaluation import Evaluation
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.summary import Summary, layer_sources, layer_values, values_of
from ghnq_quant.research.table1.tables import group_title, ordered_groups, precision_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors, which color-blind people can tell apart
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
#: Curves of a finetuning run: by name, the points (step, value).
Curves = dict[str, list[tuple[float, float]]]
SOURCE_TITLES = {
    "predicted": "predicted",
    "initial": "PyTorch's initialization",
    "trained": "trained",
}
#: Signal-to-noise ratios below this are drawn here: the noise is a hundred times the signal.
_LOWEST_DB = -20.0


def colours(names: Sequence[str]) -> dict[str, str]:
    """A color for each name, in order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


class Panel:
    """One plot of 3.3 × 2.75 inches.

    Args:
        title: above the plot.
        xlabel, ylabel: labels of its axes.
    """

    def __init__(self, title: str, xlabel: str, ylabel: str) -> None:
        from matplotlib.figure import Figure

        self.title = title
        self.figure = Figure(figsize=(3.3, 2.75), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self.axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        self.axes.set_xlabel(xlabel, fontsize=9)
        self.axes.set_ylabel(ylabel, fontsize=9)
        self.axes.tick_params(labelsize=8.5)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.grid(alpha=0.25, linewidth=0.6)
        self.axes.set_axisbelow(True)

    def data_uri(self) -> str:
        """The plot as an SVG data URI: the same text for the same numbers."""
        import matplotlib

        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "ghnq"}):
            self.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()


def accuracy_panels(evaluation: Evaluation) -> list[Panel]:
    """For each split, top-1 by precision: every network, mean and standard error."""
    summaries = evaluation.summaries()
    panels = []
    top = max(n.precisions[p].top1 for n in evaluation.networks for p in evaluation.precisions)
    for group in ordered_groups(evaluation.groups):
        members = evaluation.networks_of(group)
        panel = Panel(group_title(group), "", "top-1 (%)")
        colour = colours(ordered_groups(evaluation.groups))[group]
        for x, precision in enumerate(evaluation.precisions):
            values = [n.precisions[precision].top1 for n in members]
            offsets = (
                np.arange(len(values)) * 0.618034 % 1 - 0.5
            ) * 0.5  # spread, the same each time
            panel.axes.scatter(x + offsets, values, s=7, color=colour, alpha=0.3, linewidths=0)
            _mean_and_error(panel.axes, x, summaries[group][precision]["top1"], colour)
        _precision_axis(panel.axes, evaluation.precisions)
        _chance_line(panel.axes, evaluation)
        panel.axes.set_ylim(0, top * 1.05)
        panels.append(panel)
    return panels


def _mean_and_error(axes: Axes, x: float, summary: Summary, colour: str) -> None:
    if summary.mean is None:
        return
    axes.errorbar(
        x, summary.mean, summary.standard_error or 0.0, fmt="o", color=colour, markersize=5.5,
        capsize=4, elinewidth=1.6, markeredgecolor="white", zorder=3,
    )  # fmt: skip


def _precision_axis(axes: Axes, precisions: Sequence[str]) -> None:
    axes.set_xticks(range(len(precisions)), [precision_title(p) for p in precisions])
    axes.set_xlim(-0.5, len(precisions) - 0.5)
    axes.grid(False, axis="x")


def _chance_line(axes: Axes, evaluation: Evaluation) -> None:
    chance = 100 / len(evaluation.facts["data"]["classes"])
    axes.axhline(chance, color="0.45", linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def comparison_panels(evaluations: dict[str, Evaluation]) -> list[Panel]:
    """For each split that all evaluations share, their mean top-1 side by side."""
    precisions = shared_precisions(evaluations)
    colour = colours(list(evaluations))
    summaries = {name: evaluation.summaries() for name, evaluation in evaluations.items()}
    panels = []
    for group in shared_groups(evaluations):
        panel = Panel(group_title(group), "", "mean top-1 (%)")
        for i, (name, of) in enumerate(summaries.items()):
            shift = (i - (len(evaluations) - 1) / 2) * 0.5 / len(evaluations)
            for x, precision in enumerate(precisions):
                _mean_and_error(panel.axes, x + shift, of[group][precision]["top1"], colour[name])
        _precision_axis(panel.axes, precisions)
        _chance_line(panel.axes, next(iter(evaluations.values())))
        panels.append(panel)
    top = max((panel.axes.get_ylim()[1] for panel in panels), default=1.0)
    for panel in panels:
        panel.axes.set_ylim(0, top)
    return panels


def shared_groups(evaluations: dict[str, Evaluation]) -> list[str]:
    """The splits that all evaluations have, in the paper's order."""
    first, *others = evaluations.values()
    return [g for g in ordered_groups(first.groups) if all(g in e.groups for e in others)]


def shared_precisions(evaluations: dict[str, Evaluation]) -> list[str]:
    """The precisions that all evaluations have."""
    first, *others = evaluations.values()
    return [p for p in first.precisions if all(p in e.precisions for e in others)]


def scatter_panels(evaluation: Evaluation) -> list[Panel]:
    """For each precision, every network's top-1 against float's, colored by split."""
    groups = ordered_groups(evaluation.groups)
    colour = colours(groups)
    limit = 1.05 * max(
        n.precisions[p].top1 for n in evaluation.networks for p in evaluation.precisions
    )
    panels = []
    for precision in evaluation.precisions[1:]:
        panel = Panel(precision, "float top-1 (%)", f"{precision} top-1 (%)")
        panel.axes.plot((0, limit), (0, limit), color="0.45", linewidth=1, zorder=1)
        for group in groups:
            members = evaluation.networks_of(group)
            points = [(n.precisions["float"].top1, n.precisions[precision].top1) for n in members]
            _dots(panel.axes, points, colour[group])
        panel.axes.set(xlim=(0, limit), ylim=(0, limit))
        panels.append(panel)
    return panels


def change_panels(evaluation: Evaluation) -> list[Panel]:
    """Every network's change of top-1 against its signal-to-noise ratios, colored by precision."""
    titles = {"output_snr_db": "of the logits", "weight_snr_db": "of the weights"}
    colour = colours(evaluation.precisions[1:])
    panels = []
    for metric, title in titles.items():
        panel = Panel(f"Change and noise {title}", f"SNR {title} (dB)", "top-1 − float (points)")
        panel.axes.axhline(0, color="0.45", linewidth=1, zorder=1)
        for precision in evaluation.precisions[1:]:
            noise = values_of(evaluation.networks, precision, metric)
            change = values_of(evaluation.networks, precision, "change")
            pairs = zip(noise, change, strict=True)
            points = [(max(x, _LOWEST_DB), y) for x, y in pairs if x is not None and y is not None]
            _dots(panel.axes, points, colour[precision])
        panels.append(panel)
    return panels


def _dots(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=13, color=colour, alpha=0.65, linewidths=0)


def distribution_panels(networks: Sequence[NetworkResult]) -> list[Panel]:
    """Histograms of :data:`LAYER_METRICS` over all layers, one line per source."""
    titles = {
        "kurtosis": ("Kurtosis", "kurtosis of a layer's weight"),
        "mismatch": ("Channel mismatch", "tensor's range / median channel's range"),
        "folded_mismatch": ("Mismatch, batch norm folded", "tensor's range / median channel's"),
        "range": ("Range", "range of a layer's weight"),
    }
    colour = colours(layer_sources(networks))
    panels = []
    for metric, (title, xlabel) in titles.items():
        panel = Panel(title, xlabel, "share of layers (%)")
        values = {s: layer_values(networks, s, metric) for s in layer_sources(networks)}
        values = {s: [x for x in v if x > 0] for s, v in values.items()}
        bins = _log_bins([x for v in values.values() for x in v])
        for source, v in values.items():
            weights = np.full(len(v), 100 / max(len(v), 1))
            style: dict[str, Any] = {"bins": bins, "weights": weights, "color": colour[source]}
            panel.axes.hist(v, histtype="stepfilled", alpha=0.2, **style)
            panel.axes.hist(v, histtype="step", linewidth=1.5, **style)
        panel.axes.set_xscale("log")
        _plain_log_ticks(panel.axes, bins)
        panels.append(panel)
    return panels


def _log_bins(values: list[float]) -> np.ndarray:
    """40 bins from the 0.5th to the 99.5th percentile; the outermost bins include what lies beyond."""
    if not values:
        return np.array([1.0, 10.0])
    low, high = np.percentile(values, (0.5, 99.5))
    inner = np.geomspace(low, max(high, low * 1.1), 41)
    inner[0], inner[-1] = min(low, *values), max(inner[-1], *values)
    return inner


def _plain_log_ticks(axes: Axes, bins: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if len(bins) > 3:
        ratio = bins[2] / bins[1]
        axes.set_xlim(bins[1] / ratio, bins[-2] * ratio)
    subs = (1.0, 2.0, 5.0) if bins[-2] / bins[1] < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curve_panels(history: Curves) -> list[Panel]:
    """Loss and accuracy of a finetuning run by step.

    Args:
        history: points (step, value) of ``loss``, ``top1`` and ``val_top1`` (both in [0, 1]).
    """
    loss = Panel("Loss", "step", "cross-entropy")
    _curve(loss.axes, history.get("loss", []), PALETTE[0])
    accuracy = Panel("Accuracy", "step", "top-1 (%)")
    percent = {k: [(x, 100 * y) for x, y in v] for k, v in history.items()}
    _curve(accuracy.axes, percent.get("top1", []), PALETTE[0])
    if percent.get("val_top1"):
        x, y = zip(*percent["val_top1"], strict=True)
        accuracy.axes.plot(x, y, "o-", color=PALETTE[1], markersize=4, label="validation")
    return [loss, accuracy]


def _curve(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """The points, thin, and their running mean over a twentieth of the run."""
    if not points:
        return
    x, y = (np.asarray(v) for v in zip(*points, strict=True))
    width = max(1, len(x) // 20)
    sums = np.cumsum(np.concatenate(([0.0], y)))
    first = np.maximum(np.arange(1, len(y) + 1) - width, 0)
    mean = (sums[1:] - sums[first]) / (np.arange(1, len(y) + 1) - first)
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(x, mean, color=colour, linewidth=1.6)
