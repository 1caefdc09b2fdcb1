"""Keeps a user's modules as they were, whatever their code does while it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Undo on leaving all that happened to the modules' attributes: modes, caches, kept tensors.

    Attributes are put back, and so is the content of those that are dicts, lists or sets.
    """
    saved = [(m, dict(vars(m)), _containers(m)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                container = attributes[name]
                if content or container:  # most are empty: dicts of hooks
                    container.clear()
                    (container.extend if isinstance(container, list) else container.update)(content)


def _containers(module: nn.Module) -> dict[str, Any]:
    builtin = (dict, OrderedDict, list, set)
    return {name: v.copy() if v else () for name, v in vars(module).items() if type(v) in builtin}
