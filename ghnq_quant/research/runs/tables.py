"""Tables of results, as text and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Mean(Protocol):
    """A mean to show in a cell; None if there is no value."""

    @property
    def mean(self) -> float | None: ...
    @property
    def standard_error(self) -> float | None: ...


def mean_cell(summary: Mean) -> str:
    """Mean ± standard error, or a dash if there is no value."""
    if summary.mean is None:
        return "–"
    error = "" if summary.standard_error is None else f"±{summary.standard_error:.1f}"
    return f"{summary.mean:.1f}{error}".replace("-", "−")


def markdown(lines: Sequence[Sequence[str]], titles: int = 1) -> str:
    """Lines of cells as a Markdown table: the first is its head, the first ``titles`` columns text."""
    head, *rows = lines
    lines = [head, ["---"] * titles + ["---:"] * (len(head) - titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_result(
    console: Console, tables: Iterable[Table], caption: str, folder: str | Path
) -> None:
    """Print a finished run's tables and the location of its files."""
    for table in tables:
        console.print(table)
    console.print(caption, markup=False, highlight=False)
    console.print(f"Saved to {folder}", markup=False, highlight=False, soft_wrap=True)
