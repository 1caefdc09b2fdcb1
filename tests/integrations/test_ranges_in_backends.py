"""Searched and learned ranges: every backend equals the reference, in training and eval."""

from __future__ import annotations

import pytest
import torch
from backends import ALL, BACKENDS, RANGES, assert_equal, scheme, train
from small_networks import images, network

import ghnq_quant

#: One bit width per kind, or all, also on whole networks.
CASES = [("small", kind, [2, 8, 4][i % 3]) for i, kind in enumerate(RANGES)]
if ALL:
    CASES = [
        (name, kind, bits)
        for name in ("small", "resnet18", "mobilenet_v2", "bn_free", "mobile")
        for kind in RANGES
        for bits in (8, 4, 3, 2)
    ]


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(("name", "kind", "bits"), CASES)
def test_equals_the_reference(name: str, kind: tuple[str, str], bits: int, backend: str) -> None:
    torch.manual_seed(9)
    data = [images() if name == "small" else torch.randn(4, 3, 32, 32) for _ in range(3)]
    models = [
        ghnq_quant.quantize(network(name), scheme=scheme(kind, bits), backend=b)
        for b in (backend, "reference")
    ]
    ours, theirs = (ghnq_quant.calibrate(qmodel, data) for qmodel in models)
    for mode in (False, True):
        assert_equal(ours.train(mode), theirs.train(mode), data[0])
    for qmodel in models:
        train(qmodel, data)
    assert_equal(ours.eval(), theirs.eval(), data[0])
    for p, q in zip(ours.range_parameters(), theirs.range_parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
