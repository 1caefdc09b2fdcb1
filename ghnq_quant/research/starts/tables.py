"""A comparison as a table, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from ghnq_quant.quantization.scheme import Precision, precision_name
from ghnq_quant.research.runs.tables import markdown, mean_cell
from ghnq_quant.research.starts.results import BASELINE, Comparison
from ghnq_quant.research.starts.starts import STARTS

if TYPE_CHECKING:
    from rich.table import Table

#: Titles of the columns that identify a row.
_CASE_TITLES = ("network", "precision", "start")


def accuracy_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows, one for each network, precision and start."""
    titles = [*_CASE_TITLES, "learning rate", "before", *_steps_titles(comparison)]
    rows = [
        [
            *_case_cells(arch, bits, start),
            f"{curve.lr:g}",
            mean_cell(curve.first),
            *(mean_cell(s) for s in curve.accuracy),
        ]
        for arch, bits in comparison.cases()
        for start, curve in comparison.curves(arch, bits).items()
    ]
    return titles, rows


def ratio_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The same for the ratios of steps; no rows if PyTorch's start is not among the starts."""
    settings = comparison.settings
    titles = [*_CASE_TITLES, *_steps_titles(comparison)]
    rows = [
        [
            *_case_cells(arch, bits, start),
            *(_ratio_cell(r, settings.steps[0] / steps) for steps, r in ratios.items()),
        ]
        for arch, bits in comparison.cases()
        for start in settings.starts
        if start != BASELINE and (ratios := comparison.ratios(arch, bits, start))
    ]
    return titles, rows


def _steps_titles(comparison: Comparison) -> list[str]:
    return [f"{steps} steps" for steps in comparison.settings.steps]


def _case_cells(arch: str, bits: Precision, start: str) -> tuple[str, str, str]:
    return arch, precision_name(bits), STARTS[start].title


def _ratio_cell(ratio: float | None, smallest: float) -> str:
    """``smallest`` is the ratio for the shortest training."""
    if ratio is None:
        return "> 1"
    return f"≤ {ratio:.2f}" if ratio == smallest else f"{ratio:.2f}"


def accuracy_caption(comparison: Comparison) -> str:
    """What the accuracies describe."""
    settings, data = comparison.settings, comparison.facts["data"]
    stem = settings.stem_bits
    first = "" if stem is None else f", first layers' weights at {stem} bits"
    return (
        f"{data['name']}, {data['train_images']:,} training and {data['test_images']:,} test "
        f"images; backend {settings.backend}{first}. Top-1 in %, mean ± standard error over "
        f"{settings.seeds} seeds, each number of steps a training of its own."
    )


def ratio_caption() -> str:
    """What the ratios describe."""
    return (
        f"Steps that a start takes to the accuracy that {STARTS[BASELINE].title} has after so many, "
        "over them; 0: it has it before the first step, > 1: not within the longest training."
    )


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Rich tables: accuracies by network and precision, then the ratios of all."""
    from rich.table import Table

    titles, rows = accuracy_rows(comparison)
    tables = []
    for arch, bits in comparison.cases():
        case = [arch, precision_name(bits)]
        table = Table(title=escape(", ".join(case)))
        _fill(table, titles[2:], [row[2:] for row in rows if row[:2] == case])
        tables.append(table)
    titles, rows = ratio_rows(comparison)
    if rows:
        table = Table(
            title=f"Steps over those of {STARTS[BASELINE].title}", caption=ratio_caption()
        )
        _fill(table, titles, rows)
        tables.append(table)
    return tables


def _fill(table: Table, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for title in titles:
        justify: Literal["left", "right"] = "left" if title in _CASE_TITLES else "right"
        table.add_column(title.removesuffix(" steps"), justify=justify)
    for row in rows:
        table.add_row(*map(escape, row))


def markdown_page(comparison: Comparison) -> str:
    """The content of ``table.md``."""
    parts = [f"`{comparison.facts['command']}`", accuracy_caption(comparison)]
    titles, rows = accuracy_rows(comparison)
    parts.append(markdown([titles, *rows], len(_CASE_TITLES)))
    titles, rows = ratio_rows(comparison)
    if rows:
        parts += [ratio_caption(), markdown([titles, *rows], len(_CASE_TITLES))]
    return "\n\n".join(parts) + "\n"
