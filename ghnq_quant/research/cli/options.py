"""Options shared by several of the laboratory's commands."""

from __future__ import annotations

from typing import Annotated

import typer

ChannelLimit = Annotated[
    float | None,
    typer.Option(
        min=1.0, help="Largest folded range of a channel in quantized networks, in medians [none]."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="cifar10, digits, an image folder, a folder with CIFAR-10's files, or an .npz file."
    ),
]
DataName = Annotated[str | None, typer.Option(help="Name of the data set in the results.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")]
GhnName = Annotated[str, typer.Option("--ghn", help="Folder or name of a checkpoint.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, one thread each.")]
