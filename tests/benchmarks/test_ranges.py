"""Processor time of searched and learned ranges: resnet18, W4/A4, 64 images of 3×32×32, one thread.

pytest tests/benchmarks/test_ranges.py -s --benchmark-disable
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torchvision
from conftest import fastest
from torch import Tensor

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel

ROUNDS = 3
#: (weights, activations)
KINDS = [
    ("4", "4-ema"),
    ("4-mse", "4-ema"),
    ("4-symmetric-channel-mse", "4-ema"),
    ("4", "4-percentile"),
    ("4", "4-mse"),
    ("4-learned", "4-learned"),
    ("4-symmetric-channel-learned", "4-learned"),
]


def step(qmodel: QuantModel, x: Tensor) -> None:
    qmodel(x).square().mean().backward()


def test_ranges() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, batches = torchvision.models.resnet18(), [torch.randn(64, 3, 32, 32) for _ in range(4)]
    models = {}
    for kind in KINDS:
        scheme = QuantScheme(*map(Quantizer.parse, kind))
        qmodel = ghnq_quant.quantize(model, scheme=scheme, backend="reference").train()
        models["/".join(kind)] = ghnq_quant.calibrate(qmodel, batches[:1])
    calibrations = {k: partial(ghnq_quant.calibrate, m, batches) for k, m in models.items()}
    steps = {k: partial(step, m, batches[0]) for k, m in models.items()}
    seconds = fastest(calibrations, 1, time.process_time)
    times = fastest(steps, ROUNDS, time.process_time)
    usual = times["/".join(KINDS[0])]
    print()
    for kind in times:
        print(f"{kind}: calibrate {seconds[kind]:.2f} s, step {times[kind] / usual:.2f} times")
