"""Convolutions whose weight is computed from their parameter, as in weight standardization."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


class ComputedWeight(nn.Module):
    """Mixin of a conv or linear layer: ``weight`` is a function of the parameter of that name.

    ``compute_weight`` is defined in a separate mixin that is not yet a layer.

    The backend's replacement computes its weight in the same way: the computed weight is quantized
    and absorbs a batch norm; the parameter is trained, saved and predicted.

    Example:
        >>> from ghnq_quant.capture.adapters import recast
        >>> class Centred(ComputedWeight):
        ...     def compute_weight(self, parameter):
        ...         return parameter - parameter.mean()
        >>> class CentredConv2d(Centred, nn.Conv2d):
        ...     pass
        >>> conv = recast(nn.Conv2d(3, 8, 3), CentredConv2d)
        >>> conv.weight.mean().abs() < 1e-6
        tensor(True)
    """

    def compute_weight(self, parameter: Tensor) -> Tensor:
        """The weight that the layer applies."""
        raise NotImplementedError

    if TYPE_CHECKING:
        weight: Tensor
    else:

        @property
        def weight(self) -> Tensor:
            return self.compute_weight(self._parameters["weight"])


def keep_computing(layer: nn.Module, original: ComputedWeight) -> None:
    """Make ``layer``, which replaces ``original``, compute its weight as ``original`` does."""
    for name, parameter in original._parameters.items():
        if name not in layer._parameters:
            layer.register_parameter(name, parameter)
    for name, value in vars(original).items():
        if not name.startswith("_") and not hasattr(layer, name):
            setattr(layer, name, value)
    if not isinstance(layer, ComputedWeight):
        mixin = next(cls for cls in type(original).__mro__ if "compute_weight" in vars(cls))
        layer.__class__ = _computing((mixin, type(layer)))


class _Computing(ComputedWeight):
    """Pickles a layer whose class is made at run time from two bases."""

    bases: tuple[type[ComputedWeight], type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, self.bases, *reduced[2:]


@cache
def _computing(bases: tuple[Any, Any]) -> Any:
    return type(bases[1].__name__, (_Computing, *bases), {"bases": bases})


def _new(mixin: type[ComputedWeight], layer: type[nn.Module]) -> nn.Module:
    cls = _computing((mixin, layer))
    new: nn.Module = cls.__new__(cls)
    return new
