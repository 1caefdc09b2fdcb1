"""Hooks run where the network has them, or are refused; so are layers whose weight is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from backends import backends
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from ghnq_quant import CaptureError, quantize

KINDS = ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"]


def network() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), block, nn.Conv2d(4, 2, 1))


@backends
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["", "2.0", "2.1", "3"])
def test_hooks_run(backend: str, kind: str, where: str) -> None:
    model = network()
    calls = []
    getattr(model.get_submodule(where), kind)(lambda *_: calls.append(where))
    copied = quantize(model, bits=8, backend=backend)
    copied(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert calls == [where]


@backends
@pytest.mark.parametrize("where", ["0", "1", "2"])
def test_hooks_that_would_not_run(backend: str, where: str) -> None:
    model = network()
    model.get_submodule(where).register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=rf"module '{where}' .* has hooks"):
        quantize(model, backend=backend)


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm by a hook": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_computed_weight_is_refused(name: str) -> None:
    for position in (0, 1):
        model = network()
        PARAMETRIZED[name](model.get_submodule(str(position * 3)))
        with pytest.raises(CaptureError, match=rf"'{position * 3}'.*make it permanent"):
            quantize(model, backend="reference")
