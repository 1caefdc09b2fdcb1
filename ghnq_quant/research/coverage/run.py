"""How many models of the zoos can be captured, predicted, quantized and trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from ghnq_quant.files import replacing
from ghnq_quant.quantization import load_backend
from ghnq_quant.research.coverage.stages import Measurement, ModelCoverage
from ghnq_quant.research.coverage.table import coverage_page
from ghnq_quant.research.coverage.zoo import Model
from ghnq_quant.research.runs.identity import IDENTITY
from ghnq_quant.research.runs.journal import Journal
from ghnq_quant.research.runs.lock import locked
from ghnq_quant.research.runs.processes import Limits, in_limited_processes
from ghnq_quant.research.runs.progress import Progress
from ghnq_quant.research.runs.provenance import versions

if TYPE_CHECKING:
    from rich.console import Console

MODELS_FILE = "coverage.jsonl"
PAGE_FILE = "coverage.md"


def measure_coverage(
    models: Sequence[Model],
    output: str | Path,
    measurement: Measurement | None = None,
    *,
    workers: int = 1,
    seconds: float = 900.0,
    again: bool = False,
    command: str = "",
    console: Console | None = None,
) -> list[ModelCoverage]:
    """Take each model through all stages, in its own process with a memory limit.

    If stopped, a call with the same arguments continues where it was.

    Args:
        models: models from :func:`ghnq_quant.research.coverage.zoo.zoo_models`, measured in this order.
        output: folder for ``coverage.jsonl``, one line per model, and ``coverage.md``, the table.
        measurement: bits, backend and memory.
        workers: models at a time.
        seconds: time limit per model.
        again: measure failed models once more.
        command: for the table's heading.
        console: for the progress bar; None for no bar.
        console: for the progress bar, None for none.

    Returns:
        the results of all models in the folder.

    Raises:
        GhnqError: the folder's file is damaged, or belongs to another measurement or other versions
            of the packages; or there is no such backend.
    """
    measurement = measurement or Measurement()
    load_backend(measurement.backend)  # otherwise every model would fail, and count as measured
    identity = {**asdict(measurement), "seconds": seconds, "versions": versions()}
    journal = Journal(Path(output) / MODELS_FILE, {IDENTITY: identity}, ModelCoverage)
    limits = Limits(measurement.memory, seconds, _packages())
    with locked(output):
        known = journal.resume()
        missing = [m for m in models if m not in known or (again and known[m].failed)]
        done = len(models) - len(missing)
        with Progress(len(models), console, unit="model", done=done) as progress:
            for outcome in in_limited_processes(measurement.results, missing, workers, limits):
                result = outcome.result or ModelCoverage(*outcome.task)
                if outcome.failure is not None:
                    result.failed, result.reason = result.failed or "create", outcome.failure
                known[result.key] = result
                journal.append(result)
                progress.advance(1)
        results = list(known.values())
        with replacing(Path(output) / PAGE_FILE) as temporary:
            temporary.write_text(coverage_page(results, measurement, command), "utf-8")
    return results


def _packages() -> tuple[str, ...]:
    """What every process needs: packages of adapters and backends, which import their toolkits."""
    groups = ("ghnq_quant.adapters", "ghnq_quant.backends")
    modules = (entry.module for group in groups for entry in entry_points(group=group))
    return tuple(dict.fromkeys((Measurement.__module__, *modules)))
