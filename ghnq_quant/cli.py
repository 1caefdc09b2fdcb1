"""``ghnq``: every command reads its arguments and calls one function of the package.

The only library file that imports ``ghnq_quant.research``: it mounts the laboratory's commands, and
``ghnq init --data`` reads images as they do.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

import ghnq_quant
from ghnq_quant.cli_checkpoints import app as checkpoints
from ghnq_quant.cli_options import Backend, Bits, Checkpoint, StemBits, example, optional_ghn
from ghnq_quant.errors import GhnqError, GhnqWarning
from ghnq_quant.extras import EXTRA_OF, how_to_install
from ghnq_quant.research.cli import app as laboratory

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What the system, torch and safetensors raise for files, devices, numbers and shapes.
REFUSALS = (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError, SafetensorError)

app = typer.Typer(
    name="ghnq",
    help="Parameters for quantized CNNs, predicted by a graph hypernetwork (GHN-Q).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's panels leave half of 80 columns to the types
    epilog="\b\nExample:\n  ghnq quickstart\n\nShell completion: ghnq --install-completion",
)


@app.callback(invoke_without_command=True)
def _ghnq(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"ghnq-quant {ghnq_quant.__version__}")
        raise typer.Exit


@app.command(
    epilog=example("ghnq init mobilenet_v2 --data images.npz --bits 4/8 -o model.safetensors")
)
def init(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH|MODULE:CALLABLE",
            help="Name of a torchvision or timm model, or your own function that returns a "
            "model, such as mynets:tiny_cnn (in mynets.py in this folder).",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: *.safetensors or *.pt.")
    ],
    bits: Bits = "4",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W",
            help="Weight quantizer, if not as in --bits: bits and any of symmetric, channel, "
            "power_of_two, such as 4-symmetric-channel.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(metavar="A", help="Activation quantizer, if not as in --bits."),
    ] = None,
    stem_bits: StemBits = None,
    backend: Backend = "brevitas",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Outputs of the model [as in --data, else 10].")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images to fit the classifier to, as for quickstart."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images, for pt2e [as in --data].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    ghn: Checkpoint = None,
) -> None:
    """Initialize a model and save it quantized.

    Predicts the first convolutions, fits the classifier to --data if given, and leaves the rest
    new. Saves the state_dict. Prints one line per layer: how many of its parameters were predicted
    or fitted, and how well its weight survives quantization. With --data, a star marks the layer
    from which on the quantized model hardly tells the images apart.
    """
    import torch

    from ghnq_quant.files import check_state_path, save_state
    from ghnq_quant.quantization.layer_report import layer_table
    from ghnq_quant.quantization.scheme import parse_quantizers
    from ghnq_quant.research.data import first_epoch, load_images
    from ghnq_quant.zoos import create_model

    check_state_path(output)
    quantizers = parse_quantizers(bits, weights, activations)
    bits = bits if weights is activations is None else "/".join(map(str, quantizers))
    hypernetwork = optional_ghn(ghn)
    images = None if data is None else load_images(data).train
    outputs = num_classes or (10 if images is None else len(images.classes))
    torch.manual_seed(seed)
    model = create_model(arch, outputs)
    example_input = None
    if image_size is not None:
        example_input = _example_input(model, image_size)
    elif images is not None:
        example_input = torch.zeros(1, *images.images.shape[1:])
    start = time.perf_counter()
    quantized = ghnq_quant.init_quantized(
        model,
        quantizers,
        None if images is None or data is None else first_epoch(images, data, seed),
        stem_bits=stem_bits,
        backend=backend,
        ghn=hypernetwork,
        example_input=example_input,
    )
    seconds = time.perf_counter() - start
    metadata = {"arch": arch, "num_classes": str(outputs), "bits": bits, "backend": backend}
    if stem_bits is not None:
        metadata["stem_bits"] = str(stem_bits)
    save_state(quantized, output, {**metadata, "ghnq_quant": ghnq_quant.__version__})
    console = Console()
    title = escape(f"{arch}, {bits} bits")
    shown = None if images is None or data is None else next(first_epoch(images, data, seed))[0]
    console.print(layer_table(model, quantized, title=title, seconds=seconds, images=shown))
    console.print(f"Saved to {output}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=example("ghnq export mobilenet_v2 --weights trained.safetensors -o model.onnx"))
def export(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH|MODULE:CALLABLE", help="The model, as for init.")
    ],
    weights: Annotated[
        Path,
        typer.Option(help="The quantized model's trained state_dict: *.safetensors or *.pt."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File to write: *.onnx, or *.pte for xnnpack."),
    ],
    bits: Annotated[
        str | None,
        typer.Option(
            metavar="W or W/A",
            help="Its bits, or quantizers such as 4-symmetric-channel/8 [as saved by init].",
        ),
    ] = None,
    stem_bits: Annotated[
        int | None, typer.Option(help="Weight bits of its first layer [as saved by init].")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Its backend [as saved by init, else brevitas].")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Its outputs [as saved by init, else 10].")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="qdq or qonnx [the target's, else qdq].")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The runtime: onnxruntime, openvino, tensorrt, qnn, finn, hls4ml or xnnpack."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images.")] = 32,
) -> None:
    """Write a trained quantized model for a runtime.

    As an ONNX file, which takes any number of images at a time, or for xnnpack as an ExecuTorch
    program, which takes one. Needs the extra onnx, or for xnnpack executorch: pip install
    "ghnq-quant[onnx]".
    """
    from ghnq_quant.files import check_output, load_state, read_state
    from ghnq_quant.quantization.scheme import QuantScheme, parse_quantizers
    from ghnq_quant.quantization.targets import PLAIN, find_target
    from ghnq_quant.zoos import create_model

    rules = PLAIN if target is None else find_target(target)
    is_program = rules.format == "pt2e"
    if is_program and format is not None:
        raise GhnqError(f"--format is for ONNX files, which {target} does not read: leave it out")
    check_output(output, [".pte" if is_program else ".onnx"])
    state, noted = read_state(weights)
    bits = bits or noted.get("bits")
    if bits is None:
        raise GhnqError(
            f"{weights} does not say its precision, which its tensors cannot show: give --bits, "
            "and --stem-bits if the first layer's bits differ"
        )
    model = create_model(arch, num_classes or int(noted.get("num_classes", 10)))
    example_input = _example_input(model, image_size)
    quantized = ghnq_quant.quantize(
        model,
        scheme=QuantScheme(*parse_quantizers(bits), biases=rules.biases),
        stem_bits=stem_bits or (int(noted["stem_bits"]) if "stem_bits" in noted else None),
        backend=backend or noted.get("backend", "brevitas"),
        example_input=example_input,
    )
    load_state(quantized, state, weights)
    quantized.eval()
    if is_program:
        file = ghnq_quant.export_pte(quantized, output, example_input)
    else:
        file = ghnq_quant.export_onnx(
            quantized, output, example_input, format=format, target=target
        )
    Console().print(f"Saved to {file}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=example("ghnq check-export model.onnx --target tensorrt"))
def check_export(
    file: Annotated[Path, typer.Argument(help="The ONNX file.")],
    target: Annotated[str, typer.Option(help="The runtime, as for export.")],
) -> None:
    """List what a runtime rejects or runs in float.

    Exits with 1 if there is anything to list. Needs the extra onnx: pip install "ghnq-quant[onnx]".
    """
    from ghnq_quant.deployment.check import check_export

    found = check_export(file, target)
    for line in found or [f"{target} executes all of {file} on integers"]:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if found else 0)


def _example_input(model: nn.Module, image_size: int) -> Tensor:
    import torch
    from torch import nn

    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    return torch.zeros(1, 3 if first is None else first.in_channels, image_size, image_size)


app.add_typer(checkpoints)
app.add_typer(laboratory)  # after init and export: --help lists commands in this order


def main() -> None:
    """Run ``ghnq``; an error is one line on standard error, not a traceback.

    The exit code is 1 for errors of this package, and 2, as for a wrong option, for errors of the
    system or a library: a full disk, images that are too small, an unknown device.
    """
    stderr = Console(stderr=True)
    with _warnings_as_lines(stderr):
        try:
            app()
        except GhnqError as error:
            _fail(stderr, str(error), 1)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRA_OF:
                raise
            text = f"this needs {package}, which is not installed: {how_to_install(package)}"
            _fail(stderr, text, 1)
        except REFUSALS as error:
            if sys.flags.dev_mode:  # python -X dev, for the traceback
                raise
            _fail(stderr, " ".join(str(error).split()) or type(error).__name__, 2)


@contextmanager
def _warnings_as_lines(stderr: Console) -> Iterator[None]:
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
        yield
    finally:
        warnings.showwarning = show_other


def _fail(stderr: Console, text: str, code: int) -> NoReturn:
    _print_line(stderr, "[red]error:[/red]", text)
    sys.exit(code)


def _print_line(console: Console, label: str, text: str) -> None:
    console.print(f"{label} {escape(text)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
