"""Searched and learned ranges: every backend against the reference, in training and eval."""

from __future__ import annotations

import pytest
import torch
from backends import ALL, BACKENDS, RANGES, assert_equal, scheme, train
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant.quantization import QuantModel

#: One width for each kind, or all.
CASES = [
    (kind, bits)
    for i, kind in enumerate(RANGES)
    for bits in ([8, 4, 3, 2] if ALL else [[2, 8, 4][i % 3]])
]


def batches() -> list[Tensor]:
    torch.manual_seed(9)
    return [images() for _ in range(3)]


def make(kind: tuple[str, str], bits: int, backend: str, model: nn.Module) -> QuantModel:
    example = next(iter(batches())).to(next(model.parameters()).dtype)
    return ghnq_quant.quantize(
        model, scheme=scheme(kind, bits), backend=backend, example_input=example
    )


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_equals_the_reference(kind: tuple[str, str], bits: int, backend: str) -> None:
    data, models = batches(), []
    for name in (backend, "reference"):
        qmodel = make(kind, bits, name, small_network(steps=2, dropout=0.0))
        models.append(ghnq_quant.calibrate(qmodel, data))
    ours, theirs = models
    for mode in (False, True):
        assert_equal(ours.train(mode), theirs.train(mode), data[0])
    for qmodel in models:
        train(qmodel, data)
    assert_equal(ours.eval(), theirs.eval(), data[0])
    for p, q in zip(ours.range_parameters(), theirs.range_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
