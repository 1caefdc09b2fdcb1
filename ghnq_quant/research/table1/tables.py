"""The paper's Table 1: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape

from ghnq_quant.files import replacing
from ghnq_quant.research.runs.tables import markdown, mean_cell
from ghnq_quant.research.table1.evaluation import Evaluation
from ghnq_quant.research.table1.results import LayerResult, PrecisionResult
from ghnq_quant.research.table1.settings import TABLE_SPLITS
from ghnq_quant.research.table1.summary import METRICS, Summary

if TYPE_CHECKING:
    from rich.table import Table

_TITLES = {
    "train": "Train",
    "val": "Validation",
    "test": "Test",
    "deep": "Deep",
    "wide": "Wide",
    "bn_free": "BN-Free",
    "mobile": "MobileNet-like",
}
_IN_DISTRIBUTION = ("train", "val", "test")
#: Metric and its title in the table.
ACCURACIES = (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy"))
#: Metric, title and unit of the robustness table.
ROBUSTNESS = (
    ("change", "Top-1 change against float", "points"),
    ("weight_snr_db", "Weights' signal-to-noise ratio", "dB"),
    ("output_snr_db", "Logits' signal-to-noise ratio", "dB"),
)
MISMATCH_TITLE = (
    "Range of a weight over the median range of its channels, median over the layers "
    "(folded: with batch norm folded in, by float statistics of the first batch)"
)


def write_tables(evaluation: Evaluation, folder: str | Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``networks.csv``."""
    tables = {
        "table.md": markdown_page(evaluation),
        "table.csv": csv_table(evaluation),
        "networks.csv": csv_of_networks(evaluation),
    }
    for name, text in tables.items():
        with replacing(Path(folder) / name) as temporary:
            temporary.write_text(text, "utf-8")


def ordered_groups(groups: Sequence[str]) -> list[str]:
    """The columns in the paper's order."""
    known = [*_IN_DISTRIBUTION, *TABLE_SPLITS[1:]]
    return sorted(groups, key=lambda g: known.index(g) if g in known else len(known))


def group_title(group: str) -> str:
    """A column's title: the split's as in the paper, or the model's name."""
    return _TITLES.get(group, group)


def group_kind(group: str) -> str:
    """``ID`` or ``OOD`` as in the paper; empty for a named model."""
    if group not in _TITLES:
        return ""
    return "ID" if group in _IN_DISTRIBUTION else "OOD"


def precision_title(precision: str) -> str:
    """A row's title as in the paper.

    Example:
        >>> precision_title("float"), precision_title("W4/A8")
        ('Float32', 'W4/A8')
    """
    return "Float32" if precision == "float" else precision


def accuracy_cell(summary: Summary) -> str:
    """Mean ± standard error; maximum. For a single network, only its value.

    Example:
        >>> accuracy_cell(Summary(count=3, mean=71.06, standard_error=0.32, maximum=80.2))
        '71.1±0.3; 80.2'
    """
    return (
        f"{mean_cell(summary)}; {summary.maximum:.1f}" if summary.count > 1 else mean_cell(summary)
    )


def table_cells(evaluation: Evaluation, metric: str) -> list[list[str]]:
    """The rows of one metric's table, each with its title first, columns in the paper's order."""
    summaries = evaluation.summaries()
    groups = ordered_groups(evaluation.groups)
    is_accuracy = metric in dict(ACCURACIES)
    cell = accuracy_cell if is_accuracy else mean_cell
    return [
        [precision_title(p), *(cell(summaries[g][p][metric]) for g in groups)]
        for p in (evaluation.precisions if is_accuracy else evaluation.precisions[1:])
    ]


def caption(evaluation: Evaluation) -> str:
    """What the numbers describe: networks, images, data set and checkpoint."""
    counts = {g: len(evaluation.networks_of(g)) for g in evaluation.groups}
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
        networks = "one network" if count == 1 else f"n = {count} networks a column"
    else:
        networks = "n = " + ", ".join(f"{group_title(g)} {c}" for g, c in counts.items())
    data = evaluation.facts["data"]
    text = (
        f"{data['name']}, {data['images_used']:,} test images in batches of "
        f"{evaluation.facts['settings']['batch_size']}; parameters predicted by "
        f"{evaluation.facts['ghn']['name']}. "
    )
    if set(counts.values()) == {1}:
        return f"{text}{'One network' if len(counts) == 1 else 'One network a row'}; in %."
    return f"{text}Mean ± standard error of the mean; max, in %; {networks}." + nonfinite_note(
        evaluation
    )


def nonfinite_note(evaluation: Evaluation) -> str:
    """A sentence about networks that computed values that are not finite; empty if there are none."""
    counts = {
        p: sum(n.precisions[p].nonfinite_images > 0 for n in evaluation.networks)
        for p in evaluation.precisions
    }
    found = ", ".join(f"{precision_title(p)}: {count}" for p, count in counts.items() if count)
    if not found:
        return ""
    return f" Networks with logits that are not finite ({found}): those images count as wrong."


def terminal_tables(evaluation: Evaluation) -> list[Table]:
    """Top-1 and top-5 as rich tables, laid out like the paper's Table 1."""
    from rich.table import Table

    tables = []
    for metric, title in ACCURACIES:
        table = Table(title=f"{title} by bitwidth", title_justify="left")
        head, *rows = _lines(evaluation, metric, "{kind}\n{title}")
        for column in head:
            table.add_column(escape(column), justify="right" if column else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    return tables


def _lines(evaluation: Evaluation, metric: str, split_title: str) -> list[list[str]]:
    """A table's head and rows; with several named models, which may be many, one row per model."""
    head = [
        split_title.format(title=group_title(g), kind=kind) if (kind := group_kind(g)) else g
        for g in ordered_groups(evaluation.groups)
    ]
    lines = [["", *head], *table_cells(evaluation, metric)]
    if len(head) > 1 and not any(map(group_kind, evaluation.groups)):
        return [list(column) for column in zip(*lines, strict=True)]
    return lines


def markdown_page(evaluation: Evaluation) -> str:
    """All tables and the command that made them."""
    facts = evaluation.facts
    parts = [f"{title} by bitwidth\n\n{markdown_table(evaluation, m)}" for m, title in ACCURACIES]
    parts.append(caption(evaluation))
    if len(evaluation.precisions) > 1:
        parts += [
            f"{title} ({unit})\n\n{markdown_table(evaluation, metric)}"
            for metric, title, unit in ROBUSTNESS
        ]
    if mismatch := mismatch_lines(evaluation):
        parts.append(f"{MISMATCH_TITLE}\n\n{markdown(mismatch)}")
    parts.append(f"```sh\n{facts['command']}\n```")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    parts.append(f"Made with {versions}.")
    return "\n\n".join(parts) + "\n"


def markdown_table(evaluation: Evaluation, metric: str) -> str:
    """One metric's table."""
    head, *rows = _lines(evaluation, metric, "{title} ({kind})")
    return markdown([head, *rows])


def mismatch_lines(evaluation: Evaluation) -> list[list[str]]:
    """How much the ranges of depthwise layers' channels differ, as initialized and as predicted.

    The paper's section 4 calls for it: with one range for the whole tensor, channels with a small range
    get few levels, and depthwise layers are known for channels that differ.

    Returns:
        head and rows of a table, one row per split or model; empty without depthwise layers.
    """
    columns = [
        (depthwise, metric, source)
        for depthwise in (True, False)
        for metric in ("mismatch", "folded_mismatch")
        for source in ("initial", "predicted")
    ]
    head = ["", "depthwise layers"]
    for depthwise, metric, source in columns:
        kind, of = "depthwise" if depthwise else "other", ", folded" if "folded" in metric else ""
        head.append(f"{kind}, {source}{of}")
    rows = []
    for group in evaluation.groups:
        layers = [layer for network in evaluation.networks_of(group) for layer in network.layers]
        count = sum(layer.depthwise for layer in layers)
        cells = [_median_cell(layers, *column) for column in columns]
        rows.append([group, f"{count} of {len(layers)}", *cells])
    has_depthwise = any(layer.depthwise for n in evaluation.networks for layer in n.layers)
    return [head, *rows] if has_depthwise else []


def _median_cell(layers: Iterable[LayerResult], depthwise: bool, metric: str, source: str) -> str:
    values = [x.sources[source][metric] for x in layers if x.depthwise == depthwise]
    known = [v for v in values if v is not None]
    return f"{np.median(known):.2f}" if known else "–"


def csv_table(evaluation: Evaluation) -> str:
    """One line for each split, precision and metric, with all digits."""
    lines: list[Sequence[object]] = [
        ("split", "precision", "metric", "n", "mean", "standard_error", "max")
    ]
    for group, by_precision in evaluation.summaries().items():
        for precision, by_metric in by_precision.items():
            for metric in METRICS:
                s = by_metric[metric]
                if s.mean is not None:
                    numbers = (s.count, s.mean, s.standard_error, s.maximum)
                    lines.append((group, precision, metric, *numbers))
    return _csv(lines)


def csv_of_networks(evaluation: Evaluation) -> str:
    """One line for each network and precision; errors that are None stay empty.

    Example:
        >>> print(csv_of_networks(Evaluation({}, ())).strip())
        split,index,parameters,precision,top1,top5,nonfinite_images,weight_mse,weight_snr_db,output_mse,output_snr_db
    """
    numbers = [field.name for field in fields(PrecisionResult)]
    lines: list[Sequence[object]] = [("split", "index", "parameters", "precision", *numbers)]
    for group in ordered_groups(evaluation.groups):
        for network in evaluation.networks_of(group):
            place = (group, network.index, network.parameters)
            for precision, result in network.precisions.items():
                cells = ["" if v is None else f"{v:.5g}" for v in astuple(result)]
                lines.append((*place, precision, *cells))
    return _csv(lines)


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
