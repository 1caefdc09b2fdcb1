"""The commands for public checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ghnq_quant.cli_options import example
from ghnq_quant.errors import CheckpointError

app = typer.Typer()


@app.command(epilog=example("ghnq convert-checkpoint ghn3xlm16.pt -o ghn3-xl"))
def convert_checkpoint(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME",
            help="A file by the authors of GHN-3 or GHN-2, or the name of one to download from "
            "the Hugging Face Hub (SamsungSAILMontreal/ghn3), such as ghn3xlm16.pt.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
) -> None:
    """Convert a public GHN-3 or GHN-2.

    Writes config.json and model.safetensors, for --ghn and GHN.from_pretrained. The public file is
    a pickle; reading it runs no code that it may hold.
    """
    from ghnq_quant.ghn import GHN
    from ghnq_quant.ghn.ghn3_checkpoints import find_public_file

    path = find_public_file(source)
    ghn = GHN.from_ghn3(path)
    parent = {"file": Path(source).name, "sha256": _sha256(path)}
    ghn.provenance = {"name": output.name, "parent": parent}
    ghn.save_pretrained(output)
    Console().print(f"Saved to {output}", markup=False, highlight=False, soft_wrap=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@app.command(epilog=example("ghnq verify-checkpoint ghn3-xl --model resnet18,resnet50"))
def verify_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(metavar="FOLDER|FILE", help="A converted checkpoint or a public file.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Torchvision models to check [all 74].")
    ] = None,
) -> None:
    """Check a public GHN-3 against published norms.

    Compares the norms of its predictions with those its authors published for ghn3tm8.pt,
    ghn3xlm16.pt and ghn2.pt, on 74 torchvision models with 1000 classes. The seven transformers
    among them are not read. Exits with 1 if a norm is off by more than 0.01.
    """
    from ghnq_quant.ghn import GHN
    from ghnq_quant.verification import verify_checkpoint as verify

    console = Console()
    different, count = [], 0
    for result in verify(
        GHN.from_pretrained(checkpoint), None if model is None else model.split(",")
    ):
        if result.found is None:
            console.print(f"{result.model}: not read: {result.reason}", markup=False)
            continue
        count += 1
        verdict = "equal" if result.agrees else "DIFFERENT"
        line = (
            f"{result.model}: published {result.published:.4f}, found {result.found:.4f}, {verdict}"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        different += [] if result.agrees else [result.model]
    if different:
        raise CheckpointError(
            f"{len(different)} of {count} norms differ from the published ones: "
            f"{', '.join(different)}. Is {checkpoint} the authors' file, and torchvision recent?"
        )
    console.print(f"All {count} norms match the published ones", markup=False, highlight=False)
