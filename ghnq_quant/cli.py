"""``ghnq``: every command reads its arguments and calls one function of the package."""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal, TextIO

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import nn

import ghnq_quant
from ghnq_quant.errors import GhnqError, GhnqWarning
from ghnq_quant.ghn import GHN
from ghnq_quant.ghn.checkpoints import DEFAULT_CHECKPOINT
from ghnq_quant.quantization.scheme import parse_precision
from ghnq_quant.zoos import create_model

app = typer.Typer(
    name="ghnq",
    help="Parameters for quantized CNNs, predicted by a graph hypernetwork (GHN-Q).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels leave half of 80 columns to the types
    epilog="\b\nExample:\n  ghnq quickstart\n\nShell completion: ghnq --install-completion",
)


def _example(*commands: str) -> str:
    """What a command's help ends with; the mark keeps the lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


Bits = Annotated[
    str,
    typer.Option(
        metavar="W or W/A",
        help="Bits of weights and activations, 2 to 8 or 32 (off): 4, or 4/8 for weights of 4 "
        "bits and activations of 8.",
    ),
]
StemBits = Annotated[
    int | None,
    typer.Option(help="Bits of the first layer's weight, if others: 8 is usual and recommended."),
]
DataName = Annotated[str | None, typer.Option(help="The data set's name in the results.")]
Backend = Annotated[
    str, typer.Option(help="The toolkit that the quantized model is made of, e.g. brevitas.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--ghn", help="A GHN checkpoint's folder or name instead of the shipped one."),
]


@app.callback(invoke_without_command=True)
def _ghnq(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"ghnq-quant {ghnq_quant.__version__}")
        raise typer.Exit


@app.command(
    epilog=_example("ghnq init mobilenet_v2 --data images.npz --bits 4/8 -o model.safetensors")
)
def init(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH|MODULE:CALLABLE",
            help="A torchvision or timm model's name, or a function of yours that returns a "
            "model, such as mynets:tiny_cnn (mynets.py in this folder).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to save: *.safetensors or *.pt.")
    ],
    bits: Bits = "4",
    stem_bits: StemBits = None,
    backend: Backend = "brevitas",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Outputs of the model [those of --data, or 10].")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images to fit the classifier to, as for quickstart."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is new.")] = 0,
    ghn: Checkpoint = None,
) -> None:
    """Give a model the start and save it quantized.

    The first convolutions are predicted, the classifier is fitted to --data if that is given, all
    else is new. Saves the state_dict. Prints one line a layer: how many of its parameters were
    predicted or fitted, and how well its weight survives quantization.
    """
    from ghnq_quant.quantization.layer_report import layer_table
    from ghnq_quant.research.data import first_epoch, load_images
    from ghnq_quant.state_files import check_state_path, save_state

    check_state_path(output)
    precision = parse_precision(bits)
    hypernetwork = _optional_ghn(ghn)
    images = None if data is None else load_images(data).train
    outputs = num_classes or (10 if images is None else len(images.classes))
    torch.manual_seed(seed)
    model = create_model(arch, outputs)
    start = time.perf_counter()
    quantized = ghnq_quant.init_quantized(
        model,
        precision,
        None if images is None or data is None else first_epoch(images, data, seed),
        stem_bits=stem_bits,
        backend=backend,
        ghn=hypernetwork,
    )
    seconds = time.perf_counter() - start
    metadata = {"arch": arch, "num_classes": str(outputs), "bits": bits, "backend": backend}
    if stem_bits is not None:
        metadata["stem_bits"] = str(stem_bits)
    save_state(quantized, output, {**metadata, "ghnq_quant": ghnq_quant.__version__})
    console = Console()
    console.print(layer_table(model, quantized, title=f"{arch}, {bits} bits", seconds=seconds))
    console.print(f"Saved to {output}", markup=False, highlight=False, soft_wrap=True)


@app.command(
    epilog=_example("ghnq export mobilenet_v2 --weights trained.safetensors -o model.onnx")
)
def export(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH|MODULE:CALLABLE", help="The model, as for init.")
    ],
    weights: Annotated[
        Path,
        typer.Option(help="The quantized model's trained state_dict: *.safetensors or *.pt."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the *.onnx.")],
    bits: Annotated[
        str | None, typer.Option(metavar="W or W/A", help="Its bits [those that init noted, or 4].")
    ] = None,
    stem_bits: Annotated[
        int | None, typer.Option(help="Its first layer's weight bits [those that init noted].")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Its backend [that which init noted, or brevitas].")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Its outputs [those that init noted, or 10].")
    ] = None,
    format: Annotated[str, typer.Option(help="qdq or qonnx.")] = "qdq",
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images.")] = 32,
) -> None:
    """Write a trained quantized model as an ONNX file.

    Needs the extra onnx: pip install "ghnq-quant[onnx]".
    """
    from ghnq_quant.state_files import load_state, read_state

    state, noted = read_state(weights)
    model = create_model(arch, num_classes or int(noted.get("num_classes", 10)))
    quantized = ghnq_quant.quantize(
        model,
        parse_precision(bits or noted.get("bits", "4")),
        stem_bits=stem_bits or (int(noted["stem_bits"]) if "stem_bits" in noted else None),
        backend=backend or noted.get("backend", "brevitas"),
    )
    load_state(quantized, state, weights)
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    example = torch.zeros(1, channels, image_size, image_size)
    file = ghnq_quant.export_onnx(quantized.eval(), output, example, format=format)
    Console().print(f"Saved to {file}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=_example("ghnq quickstart --bits 8 --epochs 2 --seeds 1"))
def quickstart(
    data: Annotated[
        str,
        typer.Option(
            help="digits (from scikit-learn, offline), cifar10 (downloaded once), an image folder, "
            "a folder with CIFAR-10's files, or an .npz."
        ),
    ] = "digits",
    data_name: DataName = None,
    bits: Bits = "4",
    stem_bits: Annotated[int, typer.Option(help="Bits of the first layer's weight.")] = 8,
    backend: Backend = "brevitas",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Runs from each start.")] = 5,
    max_train: Annotated[
        int | None, typer.Option(min=1, help="Train on no more than this many images.")
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
    from ghnq_quant.research.starts.quickstart import QuickstartSettings, run_quickstart

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
    run_quickstart(settings, output, ghn=_optional_ghn(ghn), console=Console())


Data = Annotated[
    str,
    typer.Option(
        help="cifar10, digits, an image folder, a folder with CIFAR-10's files, or an .npz."
    ),
]


@app.command(epilog=_example("ghnq finetune --data images.npz --steps 2000 --bits float,4 -o run"))
def finetune(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    data: Data = "cifar10",
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CHECKPOINT|RUN|scratch",
            help="A checkpoint's folder or name, a public GHN-2 file (*.pt), the folder of a run "
            "(goes on with its optimizer and average), or scratch.",
        ),
    ] = "ghnq-cifar10",
    recipe: Annotated[
        Literal["ghnq", "paper"],
        typer.Option(help="Where the settings come from that are not given."),
    ] = "ghnq",
    steps: Annotated[int | None, typer.Option(help="Length of the run in steps,")] = None,
    epochs: Annotated[float | None, typer.Option(help="or in passes over the images,")] = None,
    minutes: Annotated[float | None, typer.Option(help="or in minutes.")] = None,
    bits: Annotated[
        str,
        typer.Option(
            metavar="float|W|W/A,…",
            help="Precision of the networks; of several, one is drawn for each meta-batch.",
        ),
    ] = "float",
    precision_embedding: Annotated[
        bool, typer.Option("--precision-embedding", help="Tell the hypernetwork the precision.")
    ] = False,
    new_batch_norms: Annotated[
        bool,
        typer.Option(
            "--new-batch-norms", help="For networks with new batch norms, as init_quantized's."
        ),
    ] = False,
    meta_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Networks a step and process.")
    ] = None,
    image_batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images that each of them sees.")
    ] = None,
    architectures: Annotated[
        str | None, typer.Option(metavar="N|all", help="How many networks there are to draw from.")
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(help="The largest, as in 10M, or 6M@0.7,all: six million at first."),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Side of the images, or progressive as in 16@0.7,32.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="The learning rate.")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps over which it rises [from a checkpoint: 200].")
    ] = None,
    schedule: Annotated[
        Literal["constant", "linear", "step"] | None,
        typer.Option(help="Not at all, to zero, or to a tenth is how it falls,"),
    ] = None,
    decay_at: Annotated[
        float | None, typer.Option(min=0.0, max=0.999, help="from this fraction of the run on.")
    ] = None,
    average: Annotated[
        float | None, typer.Option(help="Decay of the weights' exponential average; 0 for none.")
    ] = None,
    inner_steps: Annotated[
        int, typer.Option(min=0, help="Steps of SGD that each network takes in the objective.")
    ] = 0,
    inner_lr: Annotated[float, typer.Option(min=0.0, help="Their learning rate.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Order of networks and images.")] = 0,
    validate_every: Annotated[int, typer.Option(min=1, help="In steps, a multiple of 10.")] = 500,
    val_networks: Annotated[int, typer.Option(min=1, help="Networks of the split val.")] = 32,
    val_images: Annotated[int, typer.Option(min=2, help="Held-out training images.")] = 256,
    bf16: Annotated[bool, typer.Option("--bf16", help="Networks in bfloat16, on GPUs.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Of one thread each; on a CPU, one a core is fastest.")
    ] = 1,
    data_name: DataName = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder's run.")] = False,
) -> None:
    """Train a hypernetwork on networks of ConvNets-250K.

    From scratch or further, in float or on quantized networks (--bits). A run that is killed or
    stopped (Ctrl-C) goes on with --resume.
    """
    from ghnq_quant.research.finetuning.launch import train_from_names
    from ghnq_quant.research.finetuning.settings import (
        RECIPES,
        parse_architectures,
        parse_bits,
        parse_image_sizes,
        parse_macs,
    )

    if warmup is None and recipe == "ghnq" and start != "scratch":
        warmup = 200  # for the optimizer's moments; a run that goes on has them, and is past it
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
    }
    settings = RECIPES[recipe](
        bits=parse_bits(bits),
        precision_embedding=precision_embedding,
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


@app.command(
    epilog=_example("ghnq evaluate --data images.npz --split test,mobile --num-nets 50 -o table1")
)
def evaluate(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    data: Data = "cifar10",
    ghn: Annotated[str, typer.Option(help="A checkpoint's folder or name.")] = DEFAULT_CHECKPOINT,
    split: Annotated[
        str | None,
        typer.Option(help="Splits of ConvNets-250K [test,deep,wide,bn_free,mobile]."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Torchvision's and timm's models, such as timm:mobilenetv2_050, not splits.",
        ),
    ] = None,
    adapt_stem: Annotated[
        bool, typer.Option("--adapt-stem", help="Adapt --model to the images' size.")
    ] = False,
    trained: Annotated[
        Path | None, typer.Option(help="A trained state_dict of --model, to compare with.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precisions, float first.")
    ] = "float,W8/A8,W4/A8,W4/A4,W2/A2",
    num_nets: Annotated[int | None, typer.Option(help="First networks of each split.")] = None,
    num_images: Annotated[int | None, typer.Option(help="Test images, at least 64.")] = None,
    data_name: DataName = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    device: Annotated[str, typer.Option(help="That the networks run on.")] = "cpu",
) -> None:
    """Measure accuracy with predicted parameters.

    The paper's Table 1: at several precisions, on splits of ConvNets-250K or on models of the zoos.
    A run that is killed goes on where it was when it is started again.
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
        num_nets=num_nets,
        num_images=num_images,
        data_name=data_name,
        download=download,
        workers=workers,
        device=device,
        console=Console(),
    )


@app.command(
    epilog=_example("ghnq compare-init resnet8 --data images.npz --steps 100,400 -o comparison")
)
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
        str, typer.Option(metavar="N,…", help="Steps of the trainings.")
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
        int | None, typer.Option(min=2, help="Train on so few images of each class.")
    ] = None,
    test_images: Annotated[int, typer.Option(min=64, help="To measure on.")] = 2000,
    ghn: Annotated[str, typer.Option(help="A checkpoint's folder or name.")] = DEFAULT_CHECKPOINT,
    data_name: DataName = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
) -> None:
    """Measure what a start is worth to quantization-aware training.

    From PyTorch's initialization, from the same with a fitted classifier, from GHN-Q's start, and
    from a float training that takes half of the steps; same images, tuned learning rate. A run that
    is killed goes on where it was when it is started again.
    """
    from ghnq_quant.research.starts import CompareSettings
    from ghnq_quant.research.starts import compare_init as run

    settings = CompareSettings(
        archs=tuple(archs),
        bits=tuple(parse_precision(part) for part in bits.split(",")),
        stem_bits=stem_bits,
        backend=backend,
        steps=_integers(steps),
        seeds=seeds,
        starts=tuple(start.split(",")),
        lrs=_numbers(lr),
        lr_steps=lr_steps,
        data=data,
        data_name=data_name,
        foreign=foreign,
        images_per_class=images_per_class,
        test_images=test_images,
        ghn=ghn,
    )
    run(settings, output, download=download, workers=workers, console=Console())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise GhnqError(f"{text!r}: write numbers as in 0.03,0.1") from error


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise GhnqError(f"{text!r}: write whole numbers as in 100,400") from error


@app.command(epilog=_example("ghnq ladder --data images.npz --workers 2 -o ladder"))
def ladder(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    data: Data = "cifar10",
    only: Annotated[
        str | None, typer.Option(metavar="RUNG,…", help="Some of its comparisons [all].")
    ] = None,
    ghn: Annotated[str, typer.Option(help="A checkpoint's folder or name.")] = DEFAULT_CHECKPOINT,
    data_name: DataName = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
) -> None:
    """Make every comparison of starts in the documentation.

    Five networks on CIFAR-10, on strange images made of it and on digits; longer trainings, other
    precisions and a deep network. Takes hours; a run that is killed goes on where it was when it is
    started again.
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


@app.command(epilog=_example("ghnq report run table1 -o report.html"))
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders of evaluate and finetune.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("report.html"),
) -> None:
    """Make one HTML page of evaluations and finetuning runs.

    With their tables and plots, and no reference to another file.
    """
    from ghnq_quant.research.report.page import write_report

    page = write_report(runs, output)
    Console().print(f"Saved to {page}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=_example("ghnq coverage 'mobilenet*' --library timm -o coverage"))
def coverage(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Glob over all model names [the convolutional models]."),
    ] = None,
    library: Annotated[
        str | None, typer.Option(help="timm, torchvision or another adapter's name [all].")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for coverage.jsonl and coverage.md.")
    ] = Path("ghnq-coverage"),
    bits: Bits = "4",
    backend: Backend = "brevitas",
    workers: Annotated[int, typer.Option(min=1, help="Models at a time, a core each.")] = 1,
    memory: Annotated[float, typer.Option(min=1.0, help="GiB that a model may take.")] = 8.0,
    again: Annotated[bool, typer.Option("--again", help="Measure the failed ones anew.")] = False,
) -> None:
    """Count the models of a zoo that work.

    Each is captured, predicted, quantized and run forward and backward. Takes seconds a model. A run
    that is killed goes on where it was when it is started again.
    """
    from rich.markdown import Markdown

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


space = typer.Typer(
    help="The networks of ConvNets-250K.",
    no_args_is_help=True,
    epilog=_example("ghnq space show test 17"),
)
app.add_typer(space, name="space")


@space.command("stats", epilog=_example("ghnq space stats --num 100"))
def space_stats(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for statistics.png.")
    ] = Path("design-space"),
    num: Annotated[int, typer.Option(min=1, help="First networks of each split.")] = 2000,
) -> None:
    """Show a table and a picture of each split.

    Of parameters, MACs, depth, nodes and operations.
    """
    from ghnq_quant.research.networks import (
        SPLITS,
        plot_statistics,
        space_statistics,
        statistics_table,
    )

    statistics = []
    for name in track(SPLITS, "Splits"):
        statistics += space_statistics(name, num)
    console = Console()
    console.print(statistics_table(statistics))
    output.mkdir(parents=True, exist_ok=True)
    plot_statistics(statistics, output / "statistics.png")
    console.print(f"Saved to {output / 'statistics.png'}", markup=False, highlight=False)


@space.command("show", epilog=_example("ghnq space show test 17 -o network.png"))
def space_show(
    split: Annotated[str, typer.Argument(help="Such as test.")],
    index: Annotated[int, typer.Argument(min=0, help="The network's number in the split.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Picture [SPLIT-INDEX.png].")
    ] = None,
) -> None:
    """Print one network's description and draw its graph."""
    from ghnq_quant.research.networks import ConvNets250K, draw_network

    networks = ConvNets250K(split)
    if index >= len(networks):
        raise GhnqError(f"split {split} has networks 0 to {len(networks) - 1}, not {index}")
    network = networks[index]
    picture = output if output is not None else Path(f"{split}-{index}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_network(network, picture)
    console = Console()
    console.print_json(network.description.to_json())
    console.print(f"Saved to {picture}", markup=False, highlight=False)


def _optional_ghn(name_or_path: str | None) -> GHN | None:
    return None if name_or_path is None else GHN.from_pretrained(name_or_path)


def main() -> None:
    """Run ``ghnq``; errors of this package become one line on standard error and exit code 1."""
    stderr = Console(stderr=True)
    show_other = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, GhnqWarning):
            _print_line(stderr, "[yellow]warning:[/yellow]", str(message))
        else:
            show_other(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        app()
    except GhnqError as error:
        _print_line(stderr, "[red]error:[/red]", str(error))
        sys.exit(1)
    finally:
        warnings.showwarning = show_other


def _print_line(console: Console, label: str, text: str) -> None:
    console.print(f"{label} {escape(text)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
