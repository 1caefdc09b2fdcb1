"""The laboratory's commands, which ``ghnq_quant.cli`` mounts, in the order of ``ghnq --help``.

Commands import what they run when called: ``ghnq --help`` and completion must not wait for it.
"""

import typer

from ghnq_quant.cli_options import example
from ghnq_quant.research.cli.finetuning import finetune
from ghnq_quant.research.cli.measuring import coverage, evaluate, report
from ghnq_quant.research.cli.space import space
from ghnq_quant.research.cli.starts import compare_init, ladder, quickstart

__all__ = ["app"]

app = typer.Typer()
app.command(epilog=example("ghnq quickstart --bits 8 --epochs 2 --seeds 1"))(quickstart)
app.command(epilog=example("ghnq finetune --data images.npz --steps 2000 --bits float,4 -o run"))(
    finetune
)
app.command(
    epilog=example("ghnq evaluate --data images.npz --split test,mobile --num-nets 50 -o table1")
)(evaluate)
app.command(
    epilog=example("ghnq compare-init resnet8 --data images.npz --steps 100,400 -o comparison")
)(compare_init)
app.command(epilog=example("ghnq ladder --data images.npz --workers 2 -o ladder"))(ladder)
app.command(epilog=example("ghnq report run table1 -o report.html"))(report)
app.command(epilog=example("ghnq coverage 'mobilenet*' --library timm -o coverage"))(coverage)
app.add_typer(space, name="space")
