"""The numbers of Table 1: mean, standard error and maximum over the networks of a split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghnq_quant.research.table1.results import NetworkResult

#: What is summarized for each split and precision; ``change`` is top-1 against float.
METRICS = ("top1", "top5", "change", "weight_snr_db", "output_snr_db")


@dataclass(frozen=True)
class Summary:
    """Statistics of one metric's values.

    Attributes:
        count: number of values, n.
        mean: None if there are none.
        standard_error: of the mean, s / √n with s² = Σ (x − mean)² / (n − 1); None for fewer than
            two.
        maximum: None if there are none.
    """

    count: int
    mean: float | None
    standard_error: float | None
    maximum: float | None


def summarize(values: Iterable[float | None]) -> Summary:
    """Mean, standard error and maximum, ignoring values that are None.

    Example:
        >>> summarize([1.0, 3.0, None])
        Summary(count=2, mean=2.0, standard_error=1.0, maximum=3.0)
    """
    known = [v for v in values if v is not None]
    count = len(known)
    if not known:
        return Summary(0, None, None, None)
    mean = math.fsum(known) / count
    error = None
    if count > 1:
        error = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (count - 1) / count)
    return Summary(count, mean, error, max(known))


def values_of(networks: Iterable[NetworkResult], precision: str, metric: str) -> list[float | None]:
    """One of :data:`METRICS` of each network at a precision."""
    if metric == "change":
        return [network.change(precision) for network in networks]
    return [getattr(network.precisions[precision], metric) for network in networks]


def summarize_networks(
    networks: Sequence[NetworkResult], precisions: Iterable[str]
) -> dict[str, dict[str, Summary]]:
    """Summaries by precision and metric."""
    return {
        precision: {metric: summarize(values_of(networks, precision, metric)) for metric in METRICS}
        for precision in precisions
    }


#: The numbers of a layer's weight that are summarized.
LAYER_METRICS = ("range", "kurtosis", "mismatch", "folded_mismatch")


def layer_values(networks: Iterable[NetworkResult], source: str, metric: str) -> list[float]:
    """One of :data:`LAYER_METRICS` for all layers' weights from a source, where defined."""
    described = (layer.sources.get(source) for n in networks for layer in n.layers)
    values = (_layer_value(d, metric) for d in described if d is not None)
    return [v for v in values if v is not None]


def _layer_value(described: Mapping[str, float | None], metric: str) -> float | None:
    if metric == "range":
        return (described["high"] or 0.0) - (described["low"] or 0.0)
    return described[metric]


def layer_sources(networks: Iterable[NetworkResult]) -> tuple[str, ...]:
    """``predicted``, ``initial`` and, if given, ``trained``."""
    return tuple(dict.fromkeys(s for n in networks for layer in n.layers for s in layer.sources))


def summarize_layers(
    networks: Sequence[NetworkResult],
) -> dict[str, dict[str, dict[str, float]]]:
    """Median and 10th and 90th percentiles over all layers, by source and metric."""
    return {
        source: {
            metric: _percentiles(layer_values(networks, source, metric)) for metric in LAYER_METRICS
        }
        for source in layer_sources(networks)
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    low, median, high = np.percentile(values, (10, 50, 90)).tolist()
    return {"p10": low, "median": median, "p90": high}
