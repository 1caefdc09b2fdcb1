"""``ghnq evaluate``, ``report`` and ``coverage``: how good predictions are, and for which models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ghnq_quant.cli_options import DEFAULT_CHECKPOINT, Backend, Bits
from ghnq_quant.research.cli.options import ChannelLimit, Data, DataName, Download, GhnName, Workers


def evaluate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    data: Data = "cifar10",
    ghn: GhnName = DEFAULT_CHECKPOINT,
    split: Annotated[
        str | None,
        typer.Option(help="Splits of ConvNets-250K [test,deep,wide,bn_free,mobile]."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Torchvision and timm models, such as timm:mobilenetv2_050, instead of splits.",
        ),
    ] = None,
    adapt_stem: Annotated[
        bool, typer.Option("--adapt-stem", help="Adapt --model to the images' size.")
    ] = False,
    trained: Annotated[
        Path | None, typer.Option(help="A trained state_dict of --model, for comparison.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precisions to measure, float first.")
    ] = "float,W8/A8,W4/A8,W4/A4,W2/A2",
    channel_limit: ChannelLimit = None,
    num_nets: Annotated[
        int | None, typer.Option(help="First networks of each split [all].")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Test images, at least 64 [all].")] = None,
    data_name: DataName = None,
    download: Download = False,
    workers: Workers = 1,
    device: Annotated[str, typer.Option(help="Device for the networks.")] = "cpu",
) -> None:
    """Measure accuracy with predicted parameters.

    The paper's Table 1: at several precisions, on splits of ConvNets-250K or on models of the zoos.
    A killed run continues where it was when started again.
    """
    from ghnq_quant.research.table1 import evaluate as run

    run(
        data,
        output,
        ghn=ghn,
        split=None if split is None else split.split(","),
        model=None if model is None else model.split(","),
        adapt_stem=adapt_stem,
        trained=trained,
        precision=precision.split(","),
        channel_limit=channel_limit,
        num_nets=num_nets,
        num_images=num_images,
        data_name=data_name,
        download=download,
        workers=workers,
        device=device,
        console=Console(),
    )


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders of evaluate and finetune runs.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("report.html"),
) -> None:
    """Make one HTML page of evaluations and finetuning runs.

    With their tables and plots; the page needs no other files.
    """
    from ghnq_quant.files import check_output
    from ghnq_quant.research.report.page import write_report

    check_output(output)
    page = write_report(runs, output)
    Console().print(f"Saved to {page}", markup=False, highlight=False, soft_wrap=True)


def coverage(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Glob pattern for model names [the convolutional models]."),
    ] = None,
    library: Annotated[
        str | None, typer.Option(help="timm, torchvision or another adapter [all].")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for coverage.jsonl and coverage.md.")
    ] = Path("ghnq-coverage"),
    bits: Bits = "4",
    backend: Backend = "brevitas",
    workers: Annotated[int, typer.Option(min=1, help="Models at a time, one per core.")] = 1,
    memory: Annotated[float, typer.Option(min=1.0, help="GiB that one model may use.")] = 8.0,
    again: Annotated[bool, typer.Option("--again", help="Repeat the failed ones.")] = False,
) -> None:
    """Count the models of a zoo that work.

    Each is captured, predicted, quantized, and run forward and backward. Takes seconds per model. A
    killed run continues where it was when started again.
    """
    from rich.markdown import Markdown

    from ghnq_quant.quantization.scheme import parse_precision
    from ghnq_quant.research.coverage.run import PAGE_FILE, measure_coverage
    from ghnq_quant.research.coverage.stages import Measurement
    from ghnq_quant.research.coverage.zoo import zoo_models

    console = Console()
    measure_coverage(
        zoo_models(library, pattern),
        output,
        Measurement(parse_precision(bits), backend, int(memory * 2**30)),
        workers=workers,
        again=again,
        command=shlex.join(["ghnq", *sys.argv[1:]]),
        console=console,
    )
    console.print(Markdown((output / PAGE_FILE).read_text("utf-8")))
