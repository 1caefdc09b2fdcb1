"""A throwaway copy of a model's modules, so that what their code does leaves the user's alone."""

from __future__ import annotations

import copy
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

from torch import Tensor, nn

#: Types of attributes that nobody can change, or that a copy shares with the original anyway.
_SHARED = {NoneType, bool, int, float, str, FunctionType, BuiltinFunctionType, type}


def twin(model: nn.Module) -> nn.Module:
    """A copy of the module tree, made without any code of the modules, that shares all tensors.

    Attributes are copied with what they hold; one that cannot be copied is shared. Modules of
    ``torch.nn`` itself change no attribute of theirs in a forward, so those are not looked into.
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
    if isinstance(value, (dict, list, set)) and not value:
        return copy.copy(value)  # most are dicts of hooks
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, an open file, a generator of random numbers
        return value


def copy_of_modules(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter, buffer and other tensor attribute."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return copy.deepcopy(model, {id(t): t for t in tensors})
