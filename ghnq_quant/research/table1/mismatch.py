"""How far the channels of depthwise layers differ in range, as initialized and as predicted.

The paper's section 4 asks for it: with one range for the whole tensor, channels of a small range
are left few levels, and depthwise layers are known for channels that differ.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ghnq_quant.research.table1.record import Evaluation
from ghnq_quant.research.table1.results import LayerResult

MISMATCH_TITLE = (
    "Range of a weight over the median range of its channels, median over the layers "
    "(folded: with batch norm folded in, by float statistics of the first batch)"
)
_METRICS = (("mismatch", ""), ("folded_mismatch", ", folded"))
_SOURCES = ("initial", "predicted")


def mismatch_lines(evaluation: Evaluation) -> list[list[str]]:
    """Head and rows of a table, a row for each split or model; empty without depthwise layers."""
    head = ["", "depthwise layers"]
    head += [f"{kind}, {source}{of}" for kind, of, source, *_ in _columns()]
    rows = []
    for group in evaluation.groups:
        layers = [x for n in evaluation.networks if n.group == group for x in n.layers]
        count = sum(layer.depthwise for layer in layers)
        cells = [
            _median(layers, depthwise, source, metric)
            for _, _, source, depthwise, metric in _columns()
        ]
        rows.append([group, f"{count} of {len(layers)}", *cells])
    has_depthwise = any(layer.depthwise for n in evaluation.networks for layer in n.layers)
    return [head, *rows] if has_depthwise else []


def _columns() -> list[tuple[str, str, str, bool, str]]:
    return [
        (kind, of, source, depthwise, metric)
        for kind, depthwise in (("depthwise", True), ("other", False))
        for metric, of in _METRICS
        for source in _SOURCES
    ]


def _median(layers: Iterable[LayerResult], depthwise: bool, source: str, metric: str) -> str:
    values = [x.sources[source][metric] for x in layers if x.depthwise == depthwise]
    known = [v for v in values if v is not None]
    return f"{np.median(known):.2f}" if known else "–"
