"""What a report says: comparison, accuracy, robustness, distributions, networks, training curve."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ghnq_quant.research.report import html, plots
from ghnq_quant.research.table1.evaluation import Evaluation
from ghnq_quant.research.table1.results import NetworkResult
from ghnq_quant.research.table1.summary import LAYER_METRICS, layer_sources, layer_values
from ghnq_quant.research.table1.tables import (
    ACCURACIES,
    ROBUSTNESS,
    accuracy_cell,
    caption,
    group_kind,
    group_title,
    ordered_groups,
    precision_title,
    table_cells,
)


def comparison(evaluations: dict[str, Evaluation]) -> str:
    """Several evaluations side by side."""
    groups, precisions = plots.shared_groups(evaluations), plots.shared_precisions(evaluations)
    if not groups:
        return html.section("Comparison", html.paragraph("The evaluations share no split."))
    summaries = {name: evaluation.summaries() for name, evaluation in evaluations.items()}
    rows = [
        [precision_title(p), name, *(accuracy_cell(of[g][p]["top1"]) for g in groups)]
        for p in precisions
        for name, of in summaries.items()
    ]
    return html.section(
        "Comparison",
        html.paragraph("Top-1 accuracy: mean ± standard error of the mean; max, in %."),
        html.table(["", "run", *map(group_title, groups)], rows, texts=2),
        html.panels(plots.comparison_panels(evaluations), plots.colours(list(evaluations))),
    )


def evaluation_sections(name: str, evaluation: Evaluation) -> list[str]:
    """Everything about one evaluation."""
    return [
        _accuracy(name, evaluation),
        *([_robustness(name, evaluation)] if len(evaluation.precisions) > 1 else []),
        _distributions(name, evaluation),
        _details(name, evaluation),
    ]


def _accuracy(name: str, evaluation: Evaluation) -> str:
    groups = ordered_groups(evaluation.groups)
    tables = [
        html.heading(f"{title} by bitwidth") + _split_table(groups, table_cells(evaluation, metric))
        for metric, title in ACCURACIES
    ]
    parts = [html.paragraph(caption(evaluation), soft=True), html.beside(*tables)]
    parts.append(html.heading("Top-1 of every network"))
    parts.append(
        html.paragraph(
            "Small dots: networks. Large dots: their mean, with its standard error. Dashed line: "
            "chance.",
            soft=True,
        )
    )
    parts.append(html.panels(plots.accuracy_panels(evaluation)))
    return html.section(f"{name}: accuracy", *parts)


def _split_table(groups: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    over: list[tuple[str, int]] = [("", 1)]
    for group in groups:
        kind = group_kind(group)
        if over[-1][0] == kind and len(over) > 1:
            over[-1] = (kind, over[-1][1] + 1)
        else:
            over.append((kind, 1))
    shown = over if any(kind for kind, _ in over) else ()
    return html.table(["", *map(group_title, groups)], rows, shown)


def _robustness(name: str, evaluation: Evaluation) -> str:
    groups = ordered_groups(evaluation.groups)
    by_group = {group_title(g): c for g, c in plots.colours(groups).items()}
    tables = [
        html.heading(f"{title} ({unit})") + _split_table(groups, table_cells(evaluation, metric))
        for metric, title, unit in ROBUSTNESS
    ]
    parts = [html.beside(*tables)]
    parts.append(
        html.paragraph(
            "Signal-to-noise ratio: 10 · log₁₀(Σ r² / Σ (r − q)²). Weights: all that are "
            "quantized, with batch norm folded in by the float network's statistics of the first "
            "batch. Logits: of all images, against the float network with the same parameters. "
            "Mean ± standard error over the networks.",
            soft=True,
        )
    )
    parts.append(html.heading("Every network: float and quantized top-1"))
    parts.append(html.panels(plots.scatter_panels(evaluation), by_group))
    parts.append(html.heading("Every network: change of top-1 and quantization noise"))
    parts.append(
        html.panels(plots.change_panels(evaluation), plots.colours(evaluation.precisions[1:]))
    )
    parts.append(html.paragraph("Ratios below −20 dB are drawn at −20 dB.", soft=True))
    return html.section(f"{name}: robustness to quantization", *parts)


def _distributions(name: str, evaluation: Evaluation) -> str:
    networks = evaluation.networks
    sources = layer_sources(networks)
    colour = {plots.SOURCE_TITLES[s]: c for s, c in plots.colours(sources).items()}
    rows = [
        [kind, plots.SOURCE_TITLES[s], *(_spread(some, s, metric) for metric in LAYER_METRICS)]
        for kind, some in (("all layers", networks), ("depthwise", _only_depthwise(networks)))
        if any(n.layers for n in some)
        for s in sources
    ]
    head = ["", "weights", "range", "kurtosis", "mismatch", "mismatch, folded"]
    return html.section(
        f"{name}: distributions of the weights",
        html.paragraph(
            "Of each conv and linear layer's weight: its range; its kurtosis (3 of a normal "
            "distribution, 1.8 of a uniform one); and the mismatch of its channels, which is the "
            "tensor's range over the median range of its output channels. A tensorwise quantizer "
            "leaves the median channel log₂(mismatch) bits fewer than the tensor has. «Folded»: "
            "after batch norm was folded in, with float statistics of the first batch.",
            soft=True,
        ),
        html.table(head, rows, texts=2),
        html.paragraph("Median over the layers (10th to 90th percentile).", soft=True),
        html.panels(plots.distribution_panels(networks), colour),
    )


def _only_depthwise(networks: Sequence[NetworkResult]) -> list[NetworkResult]:
    """The same networks with their depthwise layers alone."""
    return [
        NetworkResult(**{**vars(n), "layers": tuple(x for x in n.layers if x.depthwise)})
        for n in networks
    ]


def _spread(networks: Sequence[NetworkResult], source: str, metric: str) -> str:
    values = layer_values(networks, source, metric)
    if not values:
        return "–"
    low, median, high = np.percentile(values, (10, 50, 90))
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _details(name: str, evaluation: Evaluation) -> str:
    facts = evaluation.facts
    head = ["network", "parameters", *map(precision_title, evaluation.precisions)]
    head += [f"{p} SNR (dB)" for p in evaluation.precisions[1:]]
    rows = [_network_row(n, evaluation) for n in evaluation.networks]
    provenance = {k: facts[k] for k in ("ghn", "data", "versions", "device", "seconds")}
    return html.section(
        f"{name}: how it was made",
        html.code(facts["command"]),
        html.folded(
            f"All {len(rows)} networks",
            html.paragraph("Top-1 in %; SNR of the logits.", soft=True),
            html.table(head, rows),
        ),
        html.folded(
            "Checkpoint, data and versions",
            html.code(json.dumps(provenance, indent=1, ensure_ascii=False)),
        ),
    )


def _network_row(network: NetworkResult, evaluation: Evaluation) -> list[str]:
    results = [network.precisions[p] for p in evaluation.precisions]
    snr = ("–" if r.output_snr_db is None else f"{r.output_snr_db:.1f}" for r in results[1:])
    return [
        f"{group_title(network.group)} {network.index}",
        f"{network.parameters:,}",
        *(f"{r.top1:.1f}" for r in results),
        *snr,
    ]


def training_curve(name: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """Loss and accuracy of a finetuning run."""
    if not curves:
        return html.section(f"{name}: finetuning", html.paragraph("No steps yet."))
    steps = max(step for points in curves.values() for step, _ in points)
    text = f"{steps:,.0f} steps. Thin: as logged; thick: mean over the last twentieth of the run."
    legend = {"training": plots.PALETTE[0]}
    if "val_top1" in curves:
        legend["validation"] = plots.PALETTE[1]
    return html.section(
        f"{name}: finetuning",
        html.paragraph(text, soft=True),
        html.panels(plots.curve_panels(curves), legend),
    )
