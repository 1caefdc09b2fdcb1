"""What the report's template shows but cannot compute: rows of tables, and legends of plots.

The first row of a table is its head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from ghnq_quant.research.report import plots
from ghnq_quant.research.table1.evaluation import Evaluation
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.summary import LAYER_METRICS, layer_sources, layer_values
from ghnq_quant.research.table1.tables import (
    accuracy_cell,
    group_kind,
    group_title,
    ordered_groups,
    precision_title,
    table_cells,
)

Lines = list[list[str]]


def comparison(evaluations: dict[str, Evaluation]) -> Lines:
    """Top-1 by precision and run, on the splits that all runs share."""
    groups, precisions = plots.shared_groups(evaluations), plots.shared_precisions(evaluations)
    summaries = {name: evaluation.summaries() for name, evaluation in evaluations.items()}
    rows = [
        [precision_title(p), name, *(accuracy_cell(of[g][p]["top1"]) for g in groups)]
        for p in precisions
        for name, of in summaries.items()
    ]
    return [["", "run", *map(group_title, groups)], *rows]


def splits(evaluation: Evaluation, metric: str) -> Lines:
    """One metric by precision and split."""
    groups = ordered_groups(evaluation.groups)
    return [["", *map(group_title, groups)], *table_cells(evaluation, metric)]


def kinds(evaluation: Evaluation) -> list[tuple[str, int]]:
    """``ID`` and ``OOD`` above :func:`splits`, with their spans; nothing above named models."""
    of_groups = groupby(map(group_kind, ordered_groups(evaluation.groups)))
    over = [(kind, len(list(same))) for kind, same in of_groups]
    return [("", 1), *over] if any(kind for kind, _ in over) else []


def distributions(evaluation: Evaluation) -> Lines:
    """:data:`LAYER_METRICS` for each source, over all layers and over the depthwise ones."""
    networks = evaluation.networks
    depthwise = [replace(n, layers=tuple(x for x in n.layers if x.depthwise)) for n in networks]
    rows = [
        [kind, plots.SOURCE_TITLES[s], *(_spread(some, s, metric) for metric in LAYER_METRICS)]
        for kind, some in (("all layers", networks), ("depthwise", depthwise))
        if any(n.layers for n in some)
        for s in layer_sources(networks)
    ]
    return [["", "weights", "range", "kurtosis", "mismatch", "mismatch, folded"], *rows]


def _spread(networks: Sequence[NetworkResult], source: str, metric: str) -> str:
    values = layer_values(networks, source, metric)
    if not values:
        return "–"
    low, median, high = np.percentile(values, (10, 50, 90))
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def networks(evaluation: Evaluation) -> Lines:
    """Each network with its size, its top-1 and the signal-to-noise ratio of its logits."""
    head = ["network", "parameters", *map(precision_title, evaluation.precisions)]
    head += [f"{p} SNR (dB)" for p in evaluation.precisions[1:]]
    rows = []
    for network in evaluation.networks:
        results = [network.precisions[p] for p in evaluation.precisions]
        snr = ("–" if r.output_snr_db is None else f"{r.output_snr_db:.1f}" for r in results[1:])
        title = f"{group_title(network.group)} {network.index}"
        rows.append([title, f"{network.parameters:,}", *(f"{r.top1:.1f}" for r in results), *snr])
    return [head, *rows]


def provenance(evaluation: Evaluation) -> str:
    """Checkpoint, data and versions, as JSON."""
    keys = ("ghn", "data", "versions", "device", "seconds")
    return json.dumps({k: evaluation.facts[k] for k in keys}, indent=1, ensure_ascii=False)


def split_legend(evaluation: Evaluation) -> dict[str, str]:
    """Colors by split title."""
    colours = plots.colours(ordered_groups(evaluation.groups))
    return {group_title(group): colour for group, colour in colours.items()}


def source_legend(evaluation: Evaluation) -> dict[str, str]:
    """Colors by the titles of the weights' sources."""
    colours = plots.colours(layer_sources(evaluation.networks))
    return {plots.SOURCE_TITLES[source]: colour for source, colour in colours.items()}


def curve_legend(curves: plots.Curves) -> dict[str, str]:
    """Colors of a finetuning run's curves."""
    names = ("training", "validation") if "val_top1" in curves else ("training",)
    return plots.colours(names)


def steps(curves: plots.Curves) -> str:
    """Number of steps that a finetuning run has logged."""
    return f"{max(step for points in curves.values() for step, _ in points):,.0f}"
