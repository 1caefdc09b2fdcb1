"""How a model zoo's own layer types are told to the capture, without the core knowing any zoo by name.

An adapter is registered under the entry-point group ``ghnq_quant.adapters``: the entry's name is the
import name of the package whose layers it knows, its value the adapter's class.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Adapter(Protocol):
    """What the capture asks of an adapter."""

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether ``module`` is to be kept whole: it has no parameters of its own and runs as it is."""

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        """An equal module of standard layers with the same parameter objects and names, or None."""

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        """The zoo's model ``name`` with its own initialization, None if the zoo has none of that name."""

    def model_names(self) -> list[str]:
        """All names that :meth:`create_model` knows."""


class BatchNormThen(nn.BatchNorm2d):
    """A batch norm whose child modules are applied to its output, in order.

    The layer that zoos call batch norm + activation, under one name and with one set of parameters.
    ``forward`` is the batch norm alone: the capture records the children as operations of their own.
    """

    def apply_children(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


@cache
def _entries() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="ghnq_quant.adapters"))


@cache
def _load(entry: EntryPoint) -> Adapter | None:
    try:
        adapter: Adapter = entry.load()()
    except ImportError:
        return None
    return adapter


def load_adapters() -> dict[str, Adapter]:
    """All installed adapters by name; one whose zoo is not installed is left out."""
    return {e.name: a for e in _entries() if (a := _load(e)) is not None}


def adapters_in_use() -> tuple[Adapter, ...]:
    """The adapters of the packages that this process has imported: no model has layers of any other."""
    loaded = (_load(entry) for entry in _entries() if entry.name in sys.modules)
    return tuple(adapter for adapter in loaded if adapter is not None)
