"""What commands of the library and of the laboratory have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ghnq_quant.ghn import GHN

#: That of :mod:`ghnq_quant.ghn.checkpoints`, whose import takes a second.
DEFAULT_CHECKPOINT = "ghnq-cifar10"

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
Backend = Annotated[
    str, typer.Option(help="The toolkit that the quantized model is made of, e.g. brevitas.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--ghn", help="A GHN checkpoint's folder or name instead of the shipped one."),
]


def example(*commands: str) -> str:
    """What a command's help ends with; the mark keeps the lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def optional_ghn(name_or_path: str | None) -> GHN | None:
    """The hypernetwork that ``--ghn`` names; None, for the shipped one, without the option."""
    from ghnq_quant.ghn import GHN

    return None if name_or_path is None else GHN.from_pretrained(name_or_path)
