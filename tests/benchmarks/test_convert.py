"""CPU time of what `convert` makes, on one thread: 8 bits, images of 3×64×64.

pytest tests/benchmarks/test_convert.py -s --benchmark-disable
"""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
import torchvision
from conftest import fastest

import ghnq_quant


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_convert(name: str) -> None:
    torch.manual_seed(0)
    model, x = getattr(torchvision.models, name)(num_classes=10), torch.randn(64, 3, 64, 64)
    qmodel = ghnq_quant.quantize(model, 8, backend="reference").train()
    ghnq_quant.calibrate(qmodel, [x])
    models = {
        "float": model.eval(),
        "simulated": ghnq_quant.convert(qmodel, integer=False),
        "integers": ghnq_quant.convert(qmodel, integer=True),
    }
    print()
    for images, rounds in ((x[:1], 20), (x, 5)):
        work = {kind: partial(m, images) for kind, m in models.items()}
        times = fastest(work, rounds, time.process_time)
        row = ", ".join(f"{kind} {1e3 * seconds:.1f} ms" for kind, seconds in times.items())
        print(f"{name}, batch {len(images)}: {row}")
