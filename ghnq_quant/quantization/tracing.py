"""Tells a compiler or an export, which see no values, about a model's statistics."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ghnq_quant.errors import GhnqError

#: Attribute of a module that had no running statistics when it was last checked.
_LACKS = "lacks_statistics"


def note_statistics(modules: dict[str, nn.Module], missing: Collection[str]) -> None:
    """Record which of ``modules`` have running statistics: all except the ``missing``."""
    for name, module in modules.items():
        setattr(module, _LACKS, name in missing)


def traced_with_statistics(module: nn.Module) -> bool:
    """Whether a graph that is being traced may use the running statistics of ``module``: always.

    Raises:
        GhnqError: it had none when the model was last put into train or eval.
    """
    if getattr(module, _LACKS, False):
        raise GhnqError(
            f"a {type(module).__name__} had no running statistics when the model was last put into "
            "eval, so it cannot be compiled or exported in eval: train it or call "
            "ghnq_quant.calibrate(model, batches), then model.eval()"
        )
    return True
