"""The models that are measured, from the zoos of the installed adapters."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from ghnq_quant.capture.adapters import load_adapters
from ghnq_quant.errors import GhnqError


class Model(NamedTuple):
    """A model of a zoo."""

    library: str
    family: str
    name: str


def zoo_models(library: str | None = None, pattern: str | None = None) -> list[Model]:
    """The models of the installed adapters' zoos.

    Args:
        library: name of one adapter; all by default.
        pattern: glob pattern for all names; the convolutional models by default.

    Raises:
        GhnqError: there is no such adapter, or no model matches.

    Example:
        >>> zoo_models("torchvision", "resnet18")
        [Model(library='torchvision', family='resnet', name='resnet18')]
    """
    adapters = load_adapters()
    if library is not None and library not in adapters:
        raise GhnqError(f"no adapter {library!r}; installed are: {', '.join(adapters)}")
    found = []
    for name, adapter in adapters.items():
        if library in (None, name):
            families = adapter.convolutional_models()
            known = {model for models in families.values() for model in models}
            others = [model for model in adapter.model_names() if model not in known]
            if pattern is not None and others:
                families = {**families, "others": others}
            found += [
                Model(name, family, model)
                for family, models in families.items()
                for model in models
                if pattern is None or fnmatchcase(model, pattern)
            ]
    if not found:
        raise GhnqError(f"no model matches {pattern!r}")
    return found
