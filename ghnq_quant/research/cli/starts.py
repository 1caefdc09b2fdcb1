"""``ghnq quickstart``, ``compare-init`` and ``ladder``: what a start is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from ghnq_quant.cli_options import (
    DEFAULT_CHECKPOINT,
    Backend,
    Bits,
    Checkpoint,
    StemBits,
    optional_ghn,
)
from ghnq_quant.errors import GhnqError
from ghnq_quant.research.cli.options import Data, DataName, Download, GhnName, Workers

_Number = TypeVar("_Number", int, float)


def quickstart(
    data: Annotated[
        str,
        typer.Option(
            help="digits (from scikit-learn, offline), cifar10 (downloaded once), an image folder, "
            "a folder with CIFAR-10's files, or an .npz file."
        ),
    ] = "digits",
    data_name: DataName = None,
    bits: Bits = "4",
    stem_bits: Annotated[int, typer.Option(help="Weight bits of the first layer.")] = 8,
    backend: Backend = "brevitas",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Runs from each start.")] = 5,
    max_train: Annotated[
        int | None, typer.Option(min=1, help="Train on at most this many images [all].")
    ] = None,
    ghn: Checkpoint = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for results and the trained model.")
    ] = Path("ghnq-quickstart"),
) -> None:
    """Try 4-bit training of a small CNN from both starts.

    Quantization-aware training from GHN-Q's start and from PyTorch's initialization: the same
    network, images, order and budget for both. Saves a table (JSON), the curves (PNG) and the
    trained model. Takes under two minutes on two cores with the default images.
    """
    from ghnq_quant.quantization.scheme import parse_precision
    from ghnq_quant.research.starts.quickstart import run_quickstart
    from ghnq_quant.research.starts.quickstart_results import QuickstartSettings

    settings = QuickstartSettings(
        data=data,
        data_name=data_name,
        bits=parse_precision(bits),
        stem_bits=stem_bits,
        backend=backend,
        epochs=epochs,
        seeds=seeds,
        max_train=max_train,
    )
    run_quickstart(settings, output, ghn=optional_ghn(ghn), console=Console())


def compare_init(
    archs: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCH…",
            help="resnet8, vgg7, mobilenet_v2_small, shufflenet_small and repvgg_small, made for "
            "32×32 images, or any model as for init.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    bits: Annotated[str, typer.Option(metavar="W|W/A,…", help="Precisions.")] = "4",
    stem_bits: StemBits = None,
    backend: Backend = "brevitas",
    steps: Annotated[
        str, typer.Option(metavar="N,…", help="Lengths of the trainings in steps.")
    ] = "50,100,200,400",
    seeds: Annotated[int, typer.Option(help="Trainings of each kind.")] = 3,
    start: Annotated[
        str, typer.Option(metavar="NAME,…", help="Starts; the documentation lists all.")
    ] = "pytorch,pytorch-fitted,ghnq,float-first",
    lr: Annotated[
        str,
        typer.Option(metavar="LR,…", help="Learning rates; each start gets its best."),
    ] = "0.03,0.1,0.3",
    lr_steps: Annotated[int, typer.Option(help="Steps of the trainings that choose it.")] = 400,
    data: Data = "cifar10",
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Grey, inverted, blurred; two classes in one.")
    ] = False,
    images_per_class: Annotated[
        int | None, typer.Option(min=2, help="Images of each class to train on [all].")
    ] = None,
    test_images: Annotated[int, typer.Option(min=64, help="Images to measure on.")] = 2000,
    ghn: GhnName = DEFAULT_CHECKPOINT,
    data_name: DataName = None,
    download: Download = False,
    workers: Workers = 1,
) -> None:
    """Measure what a start is worth to quantized training.

    From PyTorch's initialization, from the same with a fitted classifier, from GHN-Q's start, and
    from float training for half of the steps; same images, tuned learning rate. A killed run
    continues where it was when started again.
    """
    from ghnq_quant.quantization.scheme import parse_precision
    from ghnq_quant.research.starts import CompareSettings
    from ghnq_quant.research.starts import compare_init as run

    settings = CompareSettings(
        archs=tuple(archs),
        bits=tuple(parse_precision(part) for part in bits.split(",")),
        stem_bits=stem_bits,
        backend=backend,
        steps=_numbers(steps, int, "whole numbers as in 100,400"),
        seeds=seeds,
        starts=tuple(start.split(",")),
        lrs=_numbers(lr, float, "numbers as in 0.03,0.1"),
        lr_steps=lr_steps,
        data=data,
        data_name=data_name,
        foreign=foreign,
        images_per_class=images_per_class,
        test_images=test_images,
        ghn=ghn,
    )
    run(settings, output, download=download, workers=workers, console=Console())


def _numbers(text: str, kind: Callable[[str], _Number], form: str) -> tuple[_Number, ...]:
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError as error:
        raise GhnqError(f"{text!r}: write {form}") from error


def ladder(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    data: Data = "cifar10",
    only: Annotated[
        str | None, typer.Option(metavar="RUNG,…", help="Comparisons to make [all].")
    ] = None,
    ghn: GhnName = DEFAULT_CHECKPOINT,
    data_name: DataName = None,
    download: Download = False,
    workers: Workers = 1,
) -> None:
    """Make every comparison of starts in the documentation.

    Five networks on CIFAR-10, on strange images made from it and on digits; longer trainings, other
    precisions and a deep network. Takes hours; a killed run continues where it was when started
    again.
    """
    from ghnq_quant.research.starts.ladder import run_ladder

    run_ladder(
        data,
        output,
        only=None if only is None else tuple(only.split(",")),
        ghn=ghn,
        data_name=data_name,
        download=download,
        workers=workers,
        console=Console(),
    )
