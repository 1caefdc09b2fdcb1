"""Options that several of the laboratory's commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        help="cifar10, digits, an image folder, a folder with CIFAR-10's files, or an .npz."
    ),
]
DataName = Annotated[str | None, typer.Option(help="The data set's name in the results.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10.")]
GhnName = Annotated[str, typer.Option("--ghn", help="A checkpoint's folder or name.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes of one thread each.")]
