"""``write_report``: evaluations and finetuning runs as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing
from ghnq_quant.research.report import contents, plots
from ghnq_quant.research.runs.history import HISTORY_FILE, read_curves
from ghnq_quant.research.table1 import tables
from ghnq_quant.research.table1.evaluation import RESULTS_FILE, Evaluation


def write_report(runs: Sequence[str | Path], output: str | Path = "report.html") -> Path:
    """Write the tables and plots of some runs as one self-contained page.

    Args:
        runs: folders of finished evaluations (``results.json``), of finetuning runs
            (``history.csv``), or with both. Several evaluations are also compared side by side.
        output: the page.

    Returns:
        ``output``.

    Raises:
        GhnqError: a folder has neither, or a damaged file.

    Example:
        >>> write_report(["runs/ghnq", "runs/ghnq-w4a4"], "report.html")  # doctest: +SKIP
    """
    if not runs:
        raise GhnqError("give at least one run's folder to report on")
    evaluations: dict[str, Evaluation] = {}
    histories = {}
    for run, name in zip(runs, _names(runs), strict=True):
        has_history = (Path(run) / HISTORY_FILE).is_file()
        if has_history:
            histories[name] = read_curves(Path(run) / HISTORY_FILE)
        if (Path(run) / RESULTS_FILE).is_file() or not has_history:
            evaluations[name] = Evaluation.load(run)
    template = _environment().get_template("report.html")
    page = template.render(
        evaluations=evaluations, histories=histories, contents=contents, plots=plots, tables=tables
    )
    with replacing(output) as temporary:
        temporary.write_text(page, "utf-8")
    return Path(output)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The folders' names, or their whole paths if two names are equal."""
    short = [Path(run).resolve().name for run in runs]
    if len(set(short)) == len(short):
        return short
    if len({str(run) for run in runs}) < len(runs):
        raise GhnqError("the same run is named twice: " + ", ".join(map(str, runs)))
    return [str(run) for run in runs]
