"""A comparison as a table, for the terminal and in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghnq_quant.comparison.record import BASELINE, Comparison
from ghnq_quant.comparison.starts import STARTS
from ghnq_quant.evaluation.precision import precision_name
from ghnq_quant.evaluation.tables import mean_cell

if TYPE_CHECKING:
    from rich.table import Table


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows, one for each network, precision and start."""
    settings = comparison.settings
    titles = ["network", "precision", "start", "lr", "before"]
    titles += [f"{steps} steps" for steps in settings.budgets] + ["steps ratio"]
    rows = []
    for arch, bits in comparison.cases():
        ratios = comparison.ratios(arch, bits)
        for start, curve in comparison.curves(arch, bits).items():
            rows.append(
                [
                    arch,
                    precision_name(bits),
                    STARTS[start].title,
                    f"{curve.lr:g}",
                    mean_cell(curve.first),
                    *(mean_cell(s) for s in curve.accuracy),
                    _ratio_cell(ratios, start, settings.budgets[0] / settings.budget),
                ]
            )
    return titles, rows


def _ratio_cell(ratios: dict[str, float | None], start: str, smallest: float) -> str:
    if start not in ratios or start == BASELINE:
        return ""
    ratio = ratios[start]
    if ratio is None:
        return "> 1"
    return f"≤ {ratio:.2f}" if ratio <= smallest else f"{ratio:.2f}"


def caption(comparison: Comparison) -> str:
    """What the numbers are of."""
    settings, data = comparison.settings, comparison.facts["data"]
    return (
        f"{data['name']}, {data['train_images']:,} training and {settings.test_images:,} test "
        f"images; backend {settings.backend}. Top-1 in %, mean ± standard error over "
        f"{settings.seeds} seeds, each budget a training of its own. Steps ratio: steps to the "
        f"accuracy that {STARTS[BASELINE].title} has after {settings.budget}, over "
        f"{settings.budget}; > 1: not reached."
    )


def terminal_tables(comparison: Comparison) -> list[Table]:
    """For rich: one for each network and precision."""
    from rich.table import Table

    titles, rows = table_rows(comparison)
    tables = []
    for arch, bits in comparison.cases():
        precision = precision_name(bits)
        table = Table(title=f"{arch}, {precision}")
        for number, title in enumerate(titles[2:]):
            table.add_column(title.removesuffix(" steps"), justify="right" if number else "left")
        for row in rows:
            if row[:2] == [arch, precision]:
                table.add_row(*row[2:])
        tables.append(table)
    return tables


def markdown_page(comparison: Comparison) -> str:
    """The content of ``table.md``."""
    titles, rows = table_rows(comparison)
    lines = [titles, ["---"] * 3 + ["---:"] * (len(titles) - 3), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"`{comparison.facts['command']}`\n\n{caption(comparison)}\n\n{table}\n"
