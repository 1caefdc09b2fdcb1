"""Float models by name, from the zoos whose adapters are installed."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys

from torch import nn

from ghnq_quant.capture.adapters import load_adapters, missing_zoos
from ghnq_quant.errors import GhnqError
from ghnq_quant.extras import how_to_install


def create_model(arch: str, num_classes: int) -> nn.Module:
    """Create a float model from a zoo's model name or from ``module:callable``.

    Args:
        arch: a torchvision name, else a timm name, else one from any other installed adapter,
            optionally prefixed with the zoo (``timm:resnet18``); or ``module:callable``, imported
            with the working directory on the path. The callable gets ``num_classes`` if it has such
            a parameter.
        num_classes: outputs of the model.

    Raises:
        GhnqError: there is no such model (the message has the closest names), module or callable, or
            the callable did not return a module.
    """
    if ":" in arch and not _has_zoo_prefix(arch):
        return _call_by_name(arch, num_classes)
    return create_zoo_model(arch, num_classes)


def _has_zoo_prefix(name: str) -> bool:
    """Whether a model name has a zoo's prefix, as ``timm:resnet18`` does."""
    zoo, colon, _ = name.partition(":")
    return bool(colon) and zoo in (*load_adapters(), *missing_zoos())


def create_zoo_model(name: str, num_classes: int) -> nn.Module:
    """Create a zoo's float model by name: from torchvision, else from another installed adapter.

    A prefix names the zoo: ``timm:resnet18``.

    Raises:
        GhnqError: no zoo has a model of that name; the message has the closest names.
    """
    adapters = load_adapters()
    zoo, _, rest = name.rpartition(":")
    if zoo:
        if zoo in missing_zoos():
            raise GhnqError(f"{name} needs {zoo}, which is not installed: {how_to_install(zoo)}")
        if zoo not in adapters:
            raise GhnqError(f"{name}: no adapter named {zoo}, only {', '.join(adapters)}")
        adapters, name = {zoo: adapters[zoo]}, rest
    for zoo in sorted(adapters, key=lambda zoo: zoo != "torchvision"):
        model = adapters[zoo].create_model(name, num_classes)
        if model is not None:
            return model
    names = {name for adapter in adapters.values() for name in adapter.model_names()}
    close = difflib.get_close_matches(name, sorted(names), n=5)
    hint = f"did you mean {', '.join(close)}?" if close else "give your own as module:callable"
    if missing := missing_zoos():
        hint += f"; for more models: {', '.join(map(how_to_install, missing))}"
    raise GhnqError(f"no model named {name} in {', '.join(adapters) or 'any adapter'}: {hint}")


def _call_by_name(arch: str, num_classes: int) -> nn.Module:
    module_name, _, callable_name = arch.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), callable_name)
        parameters = inspect.signature(function).parameters
    except ModuleNotFoundError as error:
        raise GhnqError(f"{arch}: {error} (looked in {os.getcwd()} too)") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise GhnqError(f"{arch}: {module_name} has no callable {callable_name}") from error
    model = function(num_classes=num_classes) if "num_classes" in parameters else function()
    if not isinstance(model, nn.Module):
        raise GhnqError(f"{arch} returned {type(model).__name__}, not a torch.nn.Module")
    return model
