"""``ghnq finetune``: train a hypernetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ghnq_quant.research.cli.options import ChannelLimit, Data, DataName, Download


def finetune(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    data: Data = "cifar10",
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CHECKPOINT|RUN|scratch",
            help="A checkpoint's folder or name, a public GHN-2 or GHN-3 file (*.pt), the folder of "
            "a run (continues with its optimizer and average), scratch, or scratch-ghn3.",
        ),
    ] = "ghnq-cifar10",
    recipe: Annotated[
        Literal["ghnq", "paper"],
        typer.Option(help="Recipe for the settings that are not given."),
    ] = "ghnq",
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Or in passes over the images.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Or in minutes.")] = None,
    bits: Annotated[
        str,
        typer.Option(
            metavar="float|W|W/A,…",
            help="Precision of the networks; if several, one is drawn at random.",
        ),
    ] = "float",
    bits_per: Annotated[
        Literal["meta-batch", "network"], typer.Option(help="What a precision is drawn for.")
    ] = "meta-batch",
    channel_limit: ChannelLimit = None,
    range_gradient: Annotated[
        bool,
        typer.Option("--range-gradient", help="Pass each range's gradient to what sets the range."),
    ] = False,
    precision_embedding: Annotated[
        bool,
        typer.Option("--precision-embedding", help="Tell the hypernetwork the precision as input."),
    ] = False,
    precision_decoder: Annotated[
        bool, typer.Option("--precision-decoder", help="Tell it before it decodes parameters.")
    ] = False,
    new_batch_norms: Annotated[
        bool,
        typer.Option(
            "--new-batch-norms", help="Train for new batch norms, as init_quantized makes them."
        ),
    ] = False,
    meta_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Networks per step and process.")
    ] = None,
    image_batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images per network and step.")
    ] = None,
    architectures: Annotated[
        str | None, typer.Option(metavar="N|all", help="Number of networks to draw from.")
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(help="Largest networks, e.g. 10M, or 6M@0.7,all: at first 6 million MACs."),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the images, or progressive, e.g. 16@0.7,32.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps of warmup [from a checkpoint: 200].")
    ] = None,
    schedule: Annotated[
        Literal["constant", "linear", "step"] | None,
        typer.Option(help="Decay of the rate: none, linear to zero, or a step to a tenth."),
    ] = None,
    decay_at: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.999, help="Fraction of the run where the decay starts."),
    ] = None,
    average: Annotated[
        float | None, typer.Option(help="Decay of the weights' exponential average; 0 for none.")
    ] = None,
    network_clip: Annotated[
        float | None,
        typer.Option(min=0.0, help="Largest norm of a network's gradient of its parameters."),
    ] = None,
    inner_steps: Annotated[
        int, typer.Option(min=0, help="SGD steps that each network takes in the objective.")
    ] = 0,
    inner_lr: Annotated[float, typer.Option(min=0.0, help="Learning rate of these steps.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Order of networks and images.")] = 0,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps, a multiple of 10.")] = 500,
    val_networks: Annotated[int, typer.Option(min=1, help="Networks of the split val.")] = 32,
    val_images: Annotated[int, typer.Option(min=2, help="Held-out training images.")] = 256,
    bf16: Annotated[bool, typer.Option("--bf16", help="Networks in bfloat16, on GPUs.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Of one thread each; on a CPU, one per core is fastest.")
    ] = 1,
    data_name: DataName = None,
    download: Download = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the folder's run.")] = False,
) -> None:
    """Train a hypernetwork on networks of ConvNets-250K.

    From scratch or from a checkpoint, in float or on quantized networks (--bits). Resume a killed or
    stopped (Ctrl-C) run with --resume.
    """
    from ghnq_quant.research.finetuning.launch import train_from_names
    from ghnq_quant.research.finetuning.settings import (
        RECIPES,
        parse_architectures,
        parse_bits,
        parse_image_sizes,
        parse_macs,
    )

    if warmup is None and recipe == "ghnq" and not start.startswith("scratch"):
        warmup = 200  # for the optimizer's moments; a resumed run has them, and is past warmup
    given = {
        "steps": steps,
        "epochs": epochs,
        "minutes": minutes,
        "meta_batch_size": meta_batch_size,
        "image_batch_size": image_batch_size,
        "architectures": None if architectures is None else parse_architectures(architectures),
        "max_macs": None if max_macs is None else parse_macs(max_macs),
        "image_sizes": None if image_size is None else parse_image_sizes(image_size),
        "lr": lr,
        "warmup": warmup,
        "schedule": schedule,
        "decay_at": decay_at,
        "average": average,
        "network_clip": network_clip,
    }
    settings = RECIPES[recipe](
        bits=parse_bits(bits),
        bits_per=bits_per,
        channel_limit=channel_limit,
        range_gradient=range_gradient,
        precision_embedding=precision_embedding,
        precision_decoder=precision_decoder,
        new_batch_norms=new_batch_norms,
        inner_steps=inner_steps,
        inner_lr=inner_lr,
        seed=seed,
        validate_every=validate_every,
        val_networks=val_networks,
        val_images=val_images,
        **{name: value for name, value in given.items() if value is not None},
    )
    train_from_names(
        start,
        data,
        settings,
        output,
        data_name=data_name,
        download=download,
        resume=resume,
        bf16=bf16,
        processes=processes,
    )
    Console().print(f"Best checkpoint: {output / 'best'}", markup=False, highlight=False)
