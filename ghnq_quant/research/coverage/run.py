"""How many of the model zoos' models are captured, predicted, quantized and trainable."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ghnq_quant.capture.adapters import load_adapters
from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing
from ghnq_quant.research.coverage.stages import Measurement, ModelCoverage
from ghnq_quant.research.coverage.table import coverage_page
from ghnq_quant.research.runs.isolated import Say, run_isolated
from ghnq_quant.research.runs.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

MODELS_FILE = "coverage.jsonl"
PAGE_FILE = "coverage.md"


class Model(NamedTuple):
    """A model of a zoo."""

    library: str
    family: str
    name: str


class _Task(NamedTuple):
    model: Model
    measurement: Measurement


def zoo_models(library: str | None = None, pattern: str | None = None) -> list[Model]:
    """The models of the installed adapters' zoos.

    Args:
        library: one adapter's name, by default all.
        pattern: glob over all names; by default the convolutional models.

    Raises:
        GhnqError: no such adapter, or no model matches.

    Example:
        >>> zoo_models("torchvision", "resnet18")
        [Model(library='torchvision', family='resnet', name='resnet18')]
    """
    adapters = load_adapters()
    if library is not None and library not in adapters:
        raise GhnqError(f"no adapter {library!r}; installed are: {', '.join(adapters)}")
    found = []
    for name, adapter in adapters.items():
        if library in (None, name):
            families = adapter.convolutional_models()
            known = {model for models in families.values() for model in models}
            others = [model for model in adapter.model_names() if model not in known]
            if pattern is not None and others:
                families = {**families, "others": others}
            found += [
                Model(name, family, model)
                for family, models in families.items()
                for model in models
                if pattern is None or fnmatchcase(model, pattern)
            ]
    if not found:
        raise GhnqError(f"no model matches {pattern!r}")
    return found


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
    """Take each model through all stages, each in a process of its own with a memory limit.

    A call that was stopped goes on where it was when it is made again.

    Args:
        models: of :func:`zoo_models`, measured in this order.
        output: folder of ``coverage.jsonl``, one line a model, and ``coverage.md``, the table.
        measurement: bits, backend and memory.
        workers: models at a time.
        seconds: that a model may take.
        again: measure those once more that failed.
        command: for the table's heading.
        console: for the progress bar, None for none.

    Returns:
        what came of all models that the folder knows.

    Raises:
        GhnqError: the folder's file is damaged.
    """
    measurement = measurement or Measurement()
    path = Path(output) / MODELS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read_coverage(path)
    with replacing(path) as temporary:  # so that no line is cut off
        temporary.write_bytes(b"".join(_line(r) for r in known.values()))
    done = [m for m in models if m in known and not (again and known[m].failed)]
    tasks = [_Task(m, measurement) for m in models if m not in done]
    with Progress(len(models), len(done), console) as progress:
        for task, said, reason in run_isolated(
            _measure,
            tasks,
            workers=workers,
            memory=measurement.memory,
            seconds=seconds,
            preload=_packages(),
        ):
            result = said if isinstance(said, ModelCoverage) else ModelCoverage(*task.model)
            if reason is not None:
                result.failed, result.reason = result.failed or "create", reason
            known[task.model] = result
            _append(path, result)
            progress.advance(1)
    results = list(known.values())
    with replacing(path.with_name(PAGE_FILE)) as temporary:
        temporary.write_text(coverage_page(results, measurement, command), "utf-8")
    return results


def _measure(task: _Task, say: Say) -> None:
    say(task.measurement.measure(*task.model, say))


def _packages() -> list[str]:
    """What every process needs: the adapters' and backends' packages, and these their toolkits."""
    groups = ("ghnq_quant.adapters", "ghnq_quant.backends")
    return list(dict.fromkeys(e.module for group in groups for e in entry_points(group=group)))


def read_coverage(path: Path) -> dict[Model, ModelCoverage]:
    """The last line on each model, without one that was cut off.

    Raises:
        GhnqError: another line is damaged.
    """
    if not path.is_file():
        return {}
    lines = [x for x in path.read_bytes().splitlines(keepends=True) if x.endswith(b"\n")]
    try:
        results = [ModelCoverage(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise GhnqError(f"{path} is damaged ({error}): delete it to start anew") from error
    return {Model(r.library, r.family, r.model): r for r in results}


def _append(path: Path, result: ModelCoverage) -> None:
    with path.open("ab") as file:
        file.write(_line(result))
        file.flush()
        os.fsync(file.fileno())


def _line(result: ModelCoverage) -> bytes:
    return json.dumps(result.to_json()).encode("ascii") + b"\n"
