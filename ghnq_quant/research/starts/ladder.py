"""All comparisons of starts in the documentation, with one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ghnq_quant.errors import GhnqError
from ghnq_quant.ghn.checkpoints import DEFAULT_CHECKPOINT
from ghnq_quant.quantization.scheme import FLOAT
from ghnq_quant.research.runs.seeds import CHOICE_SEED
from ghnq_quant.research.starts.results import Comparison, TrialResult
from ghnq_quant.research.starts.run import compare_init
from ghnq_quant.research.starts.settings import CompareSettings, Trial

if TYPE_CHECKING:
    from rich.console import Console

_NETWORKS = ("resnet8", "vgg7", "mobilenet_v2_small", "shufflenet_small", "repvgg_small")
_THREE = ("pytorch", "pytorch-fitted", "ghnq")


def rungs(
    data: str = "cifar10", *, data_name: str | None = None, ghn: str = DEFAULT_CHECKPOINT
) -> dict[str, CompareSettings]:
    """The comparisons by name, in the order in which they run.

    Args:
        data, data_name: CIFAR-10.
        ghn: folder or name of the checkpoint.

    Example:
        >>> list(rungs())[:4]
        ['cifar10', 'foreign', 'digits', 'widths']
    """
    base = CompareSettings(
        _NETWORKS, stem_bits=8, backend="reference", starts=_THREE,
        data=data, data_name=data_name, ghn=ghn,
    )  # fmt: skip
    two = ("resnet8", "mobilenet_v2_small")
    halved = (25, 50, 100, 200, 400)
    return {
        "cifar10": replace(base, steps=(50, 100, 400, 1600)),
        "foreign": replace(base, foreign=True, steps=halved),
        "digits": replace(base, data="digits", data_name=None, steps=halved),
        "widths": replace(base, archs=("resnet8",), bits=((3, 3), (8, 8)), steps=(400,)),
        "float": replace(base, archs=("resnet8",), bits=(FLOAT,), stem_bits=None, steps=(400,)),
        "between": replace(base, steps=(25, 800), starts=("ghnq",)),
        "long": replace(base, archs=two, steps=(6400,), seeds=2),
        "float-first": replace(base, archs=two, steps=(100, 400, 1600), starts=("float-first",)),
        # one rate, because one step takes as long as about fifty of the others
        "deep": replace(
            base, archs=("resnet18_small_stem",), steps=(100, 400), lrs=(0.1,), seeds=1
        ),
    }


def run_ladder(
    data: str,
    output: str | Path,
    *,
    only: Sequence[str] | None = None,
    ghn: str = DEFAULT_CHECKPOINT,
    data_name: str | None = None,
    download: bool = False,
    workers: int = 1,
    console: Console | None = None,
) -> dict[str, Comparison]:
    """Make the comparisons of :func:`rungs`, each in a folder of its name inside ``output``.

    A learning rate that one comparison chose is reused by others with the same conditions. If stopped
    and called again with the same arguments, it continues with what is missing.

    Args:
        data: CIFAR-10, as for :func:`ghnq_quant.research.data.load_images`.
        output: folder for the results.
        only: names of the comparisons to make; None for all.
        ghn, data_name, download, workers, console: as for
            :func:`ghnq_quant.research.starts.compare_init`.

    Raises:
        GhnqError: an unknown name in ``only``, or what the comparisons raise.
    """
    all_rungs = rungs(data, data_name=data_name, ghn=ghn)
    unknown = [name for name in only or () if name not in all_rungs]
    if unknown:
        raise GhnqError(f"unknown comparison {unknown[0]!r}; known are {', '.join(all_rungs)}")
    chosen: dict[tuple[str, bool], dict[Trial, TrialResult]] = {}
    made = {}
    for name, settings in all_rungs.items():
        if only is not None and name not in only:
            continue
        known = chosen.setdefault((settings.data, settings.foreign), {})
        made[name] = compare_init(
            settings,
            Path(output) / name,
            known=known,
            download=download,
            workers=workers,
            console=console,
        )
        known.update({t: r for t, r in made[name].results.items() if t.seed == CHOICE_SEED})
    return made
