"""Processor time of a QAT step, 64 images of 3×64×64, W4/A4: per tensor and per channel, also by the
toolkits themselves, frozen, compiled, and as it is.

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
from test_simulation import StockActivation, StockBrevitas, fx_qat
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.quantization import emit

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


@pytest.mark.filterwarnings("default")  # deprecations of the other toolkits
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_toolkits(name: str, per_channel: bool) -> None:
    x = torch.randn(64, 3, 64, 64)
    model = getattr(torchvision.models, name)(num_classes=10).train()
    weight = Quantizer(4, symmetric=True, granularity="channel") if per_channel else Quantizer(4)
    scheme = QuantScheme(weight, 4)
    networks = {
        "as it is": ghnq_quant.quantize(model, scheme=scheme, backend="reference"),
        "brevitas": ghnq_quant.quantize(model, scheme=scheme, backend="brevitas"),
        "torch_ao": ghnq_quant.quantize(model, scheme=scheme, backend="torch_ao"),
        "torch.ao FX": fx_qat(model, x, per_channel=per_channel),
        "Brevitas's own": emit(
            capture(copy.deepcopy(model)), scheme, StockBrevitas(StockActivation)
        ),
    }
    print(f"\n{name}, {weight}: {ratios(networks, x)}")


@pytest.mark.parametrize("backend", ["reference", "torch_ao"])
def test_compiled(backend: str) -> None:
    """Only the first blocks: the whole network would compile for minutes."""
    x = torch.randn(16, 3, 64, 64)
    model = torchvision.models.mobilenet_v2(num_classes=10).features[:4].train()
    qmodel = ghnq_quant.quantize(model, 4, backend=backend)
    networks = {"float": model, "as it is": qmodel}
    networks |= {f"{n}, compiled": torch.compile(copy.deepcopy(m)) for n, m in networks.items()}
    print(f"\nmobilenet_v2's first blocks with {backend}: {ratios(networks, x)}")
