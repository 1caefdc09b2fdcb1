"""``ghnq space``: the networks of ConvNets-250K."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from ghnq_quant.cli_options import example
from ghnq_quant.errors import GhnqError

space = typer.Typer(
    help="The networks of ConvNets-250K.",
    no_args_is_help=True,
    epilog=example("ghnq space show test 17"),
)


@space.command("stats", epilog=example("ghnq space stats --num 100"))
def space_stats(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for statistics.png.")
    ] = Path("design-space"),
    num: Annotated[int, typer.Option(min=1, help="First networks of each split.")] = 2000,
) -> None:
    """Show a table and a plot of each split.

    Of parameters, MACs, depth, nodes and operations.
    """
    from ghnq_quant.files import check_output_folder, replacing
    from ghnq_quant.research.networks import (
        SPLITS,
        plot_statistics,
        space_statistics,
        statistics_table,
    )

    check_output_folder(output)
    statistics = []
    for name in track(SPLITS, "Splits"):
        statistics += space_statistics(name, num)
    console = Console()
    console.print(statistics_table(statistics))
    with replacing(output / "statistics.png") as temporary:
        plot_statistics(statistics, temporary)
    console.print(f"Saved to {output / 'statistics.png'}", markup=False, highlight=False)


@space.command("show", epilog=example("ghnq space show test 17 -o network.png"))
def space_show(
    split: Annotated[str, typer.Argument(help="Name of the split, e.g. test.")],
    index: Annotated[int, typer.Argument(min=0, help="The network's number in the split.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Picture [SPLIT-INDEX.png].")
    ] = None,
) -> None:
    """Print one network's description and draw its graph."""
    from ghnq_quant.files import check_output, replacing
    from ghnq_quant.research.networks import ConvNets250K, draw_network

    picture = output if output is not None else Path(f"{split}-{index}.png")
    check_output(picture, (".png", ".pdf", ".svg"))
    networks = ConvNets250K(split)
    if index >= len(networks):
        raise GhnqError(f"split {split} has networks 0 to {len(networks) - 1}, not {index}")
    network = networks[index]
    with replacing(picture) as temporary:
        draw_network(network, temporary)
    console = Console()
    console.print_json(network.description.to_json())
    console.print(f"Saved to {picture}", markup=False, highlight=False)
