"""Options shared by the library's and the laboratory's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ghnq_quant.ghn import GHN

#: Same as in :mod:`ghnq_quant.ghn.checkpoints`, whose import takes a second.
DEFAULT_CHECKPOINT = "ghnq-cifar10"

Bits = Annotated[
    str,
    typer.Option(
        metavar="W or W/A",
        help="Bits of weights and activations, 2 to 8 or 32 (off): 4, or 4/8 for 4-bit weights "
        "and 8-bit activations.",
    ),
]
StemBits = Annotated[
    int | None,
    typer.Option(help="Weight bits of the first layer, if different: 8 is usual and recommended."),
]
Backend = Annotated[str, typer.Option(help="Toolkit of the quantized model, e.g. brevitas.")]
Checkpoint = Annotated[
    str | None,
    typer.Option("--ghn", help="Folder or name of a GHN checkpoint instead of the shipped one."),
]


def example(*commands: str) -> str:
    """The end of a command's help; the leading mark keeps its line breaks."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def optional_ghn(name_or_path: str | None) -> GHN | None:
    """The hypernetwork that ``--ghn`` names; without the option None, for the shipped one."""
    from ghnq_quant.ghn import GHN

    return None if name_or_path is None else GHN.from_pretrained(name_or_path)
