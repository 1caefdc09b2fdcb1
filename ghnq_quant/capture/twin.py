"""A throwaway copy of a model's modules, whose code then cannot affect the user's model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

from torch import Tensor, nn

#: Types of attributes that are immutable, or that copies share with the original anyway.
_SHARED = {NoneType, bool, int, float, str, FunctionType, BuiltinFunctionType, type}
_PLAIN = {dict, OrderedDict, list, set}


def twin(model: nn.Module) -> nn.Module:
    """Copy the module tree, without running any code of the modules, and share all tensors.

    Attributes are copied with their contents; those that cannot be copied are shared. Modules of
    ``torch.nn`` itself change none of their attributes in a forward, so these are left as they are.
    """
    twins: dict[nn.Module, nn.Module] = {}
    memo: dict[int, Any] = {}
    for module in model.modules():
        twins[module] = memo[id(module)] = object.__new__(type(module))
    for module, copied in twins.items():
        attributes = vars(module)
        if not is_of_torch(module):
            memo |= {id(t): t for t in (*module._parameters.values(), *module._buffers.values())}
            memo |= {id(v): v for v in attributes.values() if isinstance(v, Tensor)}
            attributes = {
                k: v if type(v) in _SHARED else _copied(v, memo) for k, v in attributes.items()
            }
        vars(copied).update(attributes)
        children = module._modules
        if children:
            copied.__dict__["_modules"] = {
                name: None if child is None else twins[child] for name, child in children.items()
            }
    return twins[model]


def is_of_torch(module: nn.Module) -> bool:
    """Whether ``module`` is one of PyTorch's own layers or containers."""
    return type(module).__module__.startswith("torch.nn.")


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in _PLAIN and not value:
        return value.copy()  # mostly dicts of hooks
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, an open file, a random number generator
        return value


def copy_of_modules(model: nn.Module) -> nn.Module:
    """Copy the module tree, and share every parameter, buffer and other tensor attribute."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return copy.deepcopy(model, {id(t): t for t in tensors})
