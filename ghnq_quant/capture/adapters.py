"""Adapters tell the capture about a zoo's own layer types, so that the core knows no zoo by name.

An adapter is registered under the entry-point group ``ghnq_quant.adapters``: the entry's name is the
import name of the package whose layers it knows, and its value is the adapter's class.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from ghnq_quant.capture.computed_weight import ComputedWeight


@runtime_checkable
class Adapter(Protocol):
    """What the capture needs from an adapter."""

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether to keep ``module`` whole and run it as it is.

        Such a module is either a norm layer of any kind, whose 1-d ``weight`` and ``bias`` are
        predicted, or has no parameters.
        """

    def rewrite(self, module: nn.Module) -> nn.Module | None:
        """An equal module of standard layers with the same parameter objects and names, or None."""

    def create_model(self, name: str, num_classes: int) -> nn.Module | None:
        """The zoo's model ``name`` with its own initialization; None if there is no such model."""

    def model_names(self) -> list[str]:
        """All names that :meth:`create_model` knows."""

    def convolutional_models(self) -> dict[str, list[str]]:
        """The names of convolutional classifiers, by family: what ``ghnq coverage`` measures."""


class Surrounded(nn.Module):
    """Mixin of a standard layer with operations before or after it, which are recorded separately.

    For what zoos write as one layer with one set of parameters, such as a batch norm with its
    activation function. ``forward`` is the standard layer alone, so that a backend can replace it
    with its own.
    """

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, x: Tensor) -> Tensor:
        return x


class NormThen(Surrounded):
    """A norm layer whose child modules are applied to its output, in order."""

    def after(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class BatchNormThen(NormThen, nn.BatchNorm2d):
    """A batch norm, then its child modules."""


class GroupNormThen(NormThen, nn.GroupNorm):
    """A group norm, then its child modules."""


class _RowWeight(ComputedWeight):
    def compute_weight(self, parameter: Tensor) -> Tensor:
        return parameter.unsqueeze(2)


class Conv1dAs2d(_RowWeight, Surrounded, nn.Conv2d):
    """A 1-d convolution as a 1×k one, with a parameter of shape (c_out, c_in, k)."""

    def before(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)

    def after(self, x: Tensor) -> Tensor:
        return x.squeeze(2)


def conv1d_as_2d(conv: nn.Conv1d) -> Conv1dAs2d:
    """Turn a 1-d convolution with numeric zero padding into a 1×k one."""
    assert conv.padding_mode == "zeros"
    assert not isinstance(conv.padding, str)
    return recast(
        conv,
        Conv1dAs2d,
        kernel_size=(1, *conv.kernel_size),
        stride=(1, *conv.stride),
        padding=(0, *conv.padding),
        dilation=(1, *conv.dilation),
    )


_Module = TypeVar("_Module", bound=nn.Module)


def recast(module: nn.Module, cls: type[_Module], **settings: object) -> _Module:
    """Make ``module`` an instance of ``cls``, with the same tensors, children, hooks and settings.

    Args:
        settings: further attributes of ``cls``.
    """
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__, **settings)
    return new


@cache
def _entries() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group="ghnq_quant.adapters"))


@cache
def _load(entry: EntryPoint) -> Adapter | None:
    try:
        adapter: Adapter = entry.load()()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != entry.name:
            raise
        return None
    return adapter


def load_adapters() -> dict[str, Adapter]:
    """All installed adapters by name, except those whose zoo is not installed."""
    return {e.name: a for e in _entries() if (a := _load(e)) is not None}


def adapters_in_use() -> tuple[Adapter, ...]:
    """The adapters of packages that this process has imported; no model needs others."""
    loaded = (_load(entry) for entry in _entries() if entry.name in sys.modules)
    return tuple(adapter for adapter in loaded if adapter is not None)


def missing_zoos() -> list[str]:
    """The adapters that :func:`load_adapters` leaves out."""
    return [entry.name for entry in _entries() if _load(entry) is None]
