"""Processor time of a QAT step, 64 images of 3×64×64, W4/A4: frozen, compiled, and as it is.

pytest tests/benchmarks/test_qat_step.py -s --benchmark-disable
"""

from __future__ import annotations

import copy
import time
from functools import partial

import pytest
import torch
import torchvision
from conftest import fastest
from torch import Tensor, nn

import ghnq_quant

ROUNDS = 5


def step(network: nn.Module, x: Tensor) -> None:
    network(x).square().mean().backward()


def ratios(networks: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    for network in networks.values():
        step(network, x)  # compiles
    steps = {name: partial(step, network, x) for name, network in networks.items()}
    times = fastest(steps, ROUNDS, time.process_time)
    return {name: round(value / times["as it is"], 2) for name, value in times.items()}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_frozen(name: str) -> None:
    x = torch.randn(64, 3, 64, 64)
    model = getattr(torchvision.models, name)(num_classes=10).train()
    qmodel = ghnq_quant.quantize(model, 4, backend="reference")
    ghnq_quant.calibrate(qmodel, [x])
    norms = ghnq_quant.freeze_batch_norms(copy.deepcopy(qmodel))
    both = ghnq_quant.freeze_ranges(copy.deepcopy(norms))
    networks = {"float": model, "as it is": qmodel, "frozen norms": norms, "and ranges": both}
    print(f"\n{name}: {ratios(networks, x)}")


@pytest.mark.parametrize("backend", ["reference", "torch_ao"])
def test_compiled(backend: str) -> None:
    x = torch.randn(64, 3, 64, 64)
    model = torchvision.models.mobilenet_v2(num_classes=10).train()
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    networks = {"as it is": qmodel, "compiled": torch.compile(qmodel, fullgraph=True)}
    print(f"\nmobilenet_v2 with {backend}: {ratios(networks, x)}")
