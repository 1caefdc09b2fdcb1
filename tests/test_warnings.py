"""Warnings point to the user's line, from wherever in the package they come."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import pytest
import torch
from small_networks import tiny_network
from torch import nn

import ghnq_quant
from ghnq_quant.errors import GhnqWarning

IMAGES, LABELS = torch.randn(8, 3, 8, 8), torch.arange(8) % 2


def network() -> nn.Module:
    return tiny_network(num_classes=3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ghnq_quant.predict_parameters(network()),
        lambda: ghnq_quant.initialize(network(), [(IMAGES, LABELS)]),
        lambda: ghnq_quant.init_quantized(network(), 4, [(IMAGES, LABELS)], backend="reference"),
        lambda: ghnq_quant.init_quantized(network(), as_predicted=True, backend="reference"),
        lambda: nn.Sequential(ghnq_quant.quantize(network(), backend="brevitas")).eval()(IMAGES),
    ],
)
def test_a_warning_points_to_the_call(call: Callable[[], object]) -> None:
    first = inspect.getsourcelines(call)[1]
    last = first + len(inspect.getsourcelines(call)[0]) - 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GhnqWarning)
        call()
    found = [w for w in caught if issubclass(w.category, GhnqWarning)]
    assert found
    assert {w.filename for w in found} == {__file__}
    assert all(first <= w.lineno <= last for w in found)
