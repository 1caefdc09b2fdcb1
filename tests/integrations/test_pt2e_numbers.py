"""torchao's export flow equals the reference: every quantizer and range, whole networks."""

from __future__ import annotations

import pytest
import torch
from backends import ALL, KINDS, RANGES, assert_equal, scheme, train
from small_networks import images, network
from torch import Tensor, nn

import ghnq_quant

pytest.importorskip("torchao.quantization.pt2e")

CASES = [
    ("small", KINDS[1], 2),
    ("small", KINDS[4], 8),
    ("small", RANGES[1], 8),
    ("small", RANGES[3], 2),
    ("bn_free", KINDS[2], 3),
    ("mobile", RANGES[3], 4),
]
if ALL:
    CASES = [
        (name, kind, bits)
        for name in ("resnet18", "mobilenet_v2", "bn_free", "mobile")
        for kind in KINDS + RANGES
        for bits in (8, 4, 3, 2)
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "kind", "bits"), CASES)
def test_equals_the_reference(name: str, kind: tuple[str, str], bits: int) -> None:
    """With frozen batch norms it sums the same numbers in another order, so in float64."""
    model, data = network(name).double(), batches(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # without bias, sums lie exactly between two levels
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for x in data:
        model(x)
    models = [
        ghnq_quant.quantize(
            model, scheme=scheme(kind, bits), backend=backend, example_input=data[0]
        )
        for backend in ("pt2e", "reference")
    ]
    ours, theirs = models
    for qmodel in models:
        ghnq_quant.calibrate(qmodel, data, batch_norms=False)
    assert_equal(ours.eval(), theirs.eval(), data[0])
    for qmodel in models:
        ghnq_quant.freeze_batch_norms(qmodel)
        train(qmodel.train(), data)
    assert_equal(ours, theirs, data[0])
    expected = dict(theirs.named_parameters())
    pairs = [(p, expected[n]) for n, p in ours.named_parameters() if n in expected]
    for p, q in (*pairs, *zip(ours.range_parameters(), theirs.range_parameters(), strict=True)):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def batches(name: str) -> list[Tensor]:
    torch.manual_seed(9)
    shape = images().shape if name == "small" else (4, 3, 32, 32)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
