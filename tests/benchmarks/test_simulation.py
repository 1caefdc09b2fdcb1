"""Time of the quantized simulation: 64 images of 3×64×64, W4/A4, batch norm folded on every batch.

    pytest tests/benchmarks/test_simulation.py --benchmark-json=simulation.json

All networks of a case take turns within one run, so that other load on the machine affects them equally;
the ratios of their fastest CPU times are in ``extra_info``.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from conftest import fastest
from naive_simulation import NaiveSimulation
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.capture import capture
from ghnq_quant.quantization import FoldsBatchNorm, emit

qnn = pytest.importorskip("brevitas.nn")

from brevitas.quant import (  # noqa: E402
    Int8WeightPerChannelFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
)

ROUNDS = 4


class StockWeight(ShiftedUint8WeightPerTensorFloat):
    bit_width = 4


class StockChannelWeight(Int8WeightPerChannelFloat):
    bit_width = 4


class StockActivation(ShiftedUint8ActPerTensorFloat):
    """As in its first 300 steps: the range is a percentile of each batch."""

    bit_width = 4


class LearnedActivation(StockActivation):
    """As after them: the range is a parameter."""

    collect_stats_steps = 1


class StockConvBatchNorm2d(FoldsBatchNorm, qnn.QuantConv2d):
    """Brevitas's own quantized convolution, followed by the float batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return self.bn(super().forward(input))


class StockBrevitas:
    """Brevitas's own layers and quantizers at the plan's places."""

    def __init__(self, activation: type) -> None:
        self._activation = activation

    def conv2d(self, conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
        return _layer(qnn.QuantConv2d, conv, quantizer)

    def conv2d_batch_norm(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, quantizer: Quantizer, mode: str
    ) -> nn.Module:
        layer = _layer(StockConvBatchNorm2d, conv, quantizer)
        layer.mode = mode
        layer.fold(bn)
        return layer

    def linear(self, linear: nn.Linear, quantizer: Quantizer) -> nn.Module:
        layer = qnn.QuantLinear(
            linear.in_features, linear.out_features, weight_quant=_stock_weight(quantizer)
        )
        layer.load_state_dict(linear.state_dict(), strict=False)
        return layer

    def activation(self, quantizer: Quantizer) -> nn.Module:
        return qnn.QuantIdentity(act_quant=self._activation)


def _stock_weight(quantizer: Quantizer) -> type:
    return StockChannelWeight if quantizer.per_channel else StockWeight


def _layer(cls: type[nn.Module], conv: nn.Conv2d, quantizer: Quantizer) -> nn.Module:
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
    )
    settings = {name: getattr(conv, name) for name in names}
    weight = _stock_weight(quantizer)
    layer = cls(**settings, bias=conv.bias is not None, weight_quant=weight)
    layer.load_state_dict(conv.state_dict(), strict=False)
    return layer


def fx_qat(model: nn.Module, x: Tensor, *, per_channel: bool = False) -> nn.Module:
    """torch.ao's FX quantization-aware training with its default fused fake quantization, at 4 bits."""
    from torch.ao.quantization import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        QConfig,
        QConfigMapping,
    )
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    quantizer = FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=15,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )
    channels = FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-7,
        quant_max=7,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    weight = channels if per_channel else quantizer
    mapping = QConfigMapping().set_global(QConfig(activation=quantizer, weight=weight))
    return prepare_qat_fx(copy.deepcopy(model), mapping, (x,))


def networks(name: str, x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).train()
    scheme = QuantScheme(4, 4)

    def stock(activation: type) -> nn.Module:
        return emit(capture(copy.deepcopy(model)), scheme, StockBrevitas(activation))

    return {
        "float": model,
        "reference": ghnq_quant.quantize(model, 4, backend="reference"),
        "brevitas": ghnq_quant.quantize(model, 4, backend="brevitas"),
        "torch.ao FX QAT": fx_qat(model, x),
        "Brevitas's own": stock(StockActivation),
        "Brevitas's own, learned ranges": stock(LearnedActivation),
        "naive": NaiveSimulation(copy.deepcopy(model), scheme),
    }


def forward(network: Callable[[Tensor], Any], x: Tensor) -> None:
    with torch.no_grad():
        network(x)


def forward_backward(network: Callable[[Tensor], Any], x: Tensor) -> None:
    module = getattr(network, "model", network)
    module.zero_grad()
    network(x).square().mean().backward()


@pytest.mark.parametrize("work", [forward, forward_backward])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_simulation(name: str, work: Callable[..., None], benchmark: Any) -> None:
    x = torch.randn(64, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of the other toolkits
        candidates = networks(name, x)
        times = fastest(
            {key: partial(work, network, x) for key, network in candidates.items()},
            ROUNDS,
            time.process_time,
        )
    benchmark.pedantic(work, (candidates["reference"], x), rounds=3)
    ratios = {key: round(value / times["float"], 2) for key, value in times.items()}
    benchmark.extra_info.update(ratios)
    print(f"\n{name} {work.__name__}, times of float: {ratios}")
    # the other ratios, torch.ao's too, depend on the CPU
    assert times["reference"] < times["naive"]
    assert times["brevitas"] < times["Brevitas's own"]
