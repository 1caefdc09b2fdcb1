"""Biases in steps of input scale · weight scale."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from backends import BACKENDS, assert_equal, backends
from naive_simulation import NaiveSimulation
from small_networks import images, small_network
from torch import nn

import ghnq_quant
from ghnq_quant import BackendError, Quantizer, QuantScheme
from ghnq_quant.deployment.fold import fold
from ghnq_quant.quantization import QuantModel

CHANNELS = Quantizer(4, symmetric=True, granularity="channel")
ROUNDED = QuantScheme(CHANNELS, 4, biases="int32")


@pytest.mark.parametrize("weights", [CHANNELS, Quantizer(3)], ids=str)
def test_equals_the_naive_simulation(weights: Quantizer) -> None:
    """Outputs and gradients, with a batch norm and without, with the batch's statistics and running
    ones. ReLU and the first batch's own ranges are avoided: their zeros and ties are exact here."""
    torch.manual_seed(0)
    scheme = QuantScheme(weights, 4, biases="int32")
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(64, 10)),
    ).double()
    naive = NaiveSimulation(copy.deepcopy(model), scheme)
    rounded, floating = (
        ghnq_quant.quantize(model, scheme=s, backend="reference")
        for s in (scheme, replace(scheme, biases="float"))
    )
    for point in rounded.plan.points:
        naive.ranges[point.name] = ends = torch.tensor(-1.37).double(), torch.tensor(2.91).double()
        for qmodel in (rounded, floating):
            qmodel.get_submodule(f"activation_quantizers.{point.key}").range.set_range(*ends)
    for training in (True, True, False):
        x = images().double()
        naive.model.train(training)
        y, expected = rounded.train(training)(x), naive(x)
        torch.testing.assert_close(y, expected)
        assert not torch.allclose(y, floating.train(training)(x))
        ours, theirs = (
            torch.autograd.grad(out.square().sum(), m.parameters())
            for out, m in ((y, rounded), (expected, naive.model))
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree(backend: str) -> None:
    ours, theirs = (
        ghnq_quant.quantize(small_network(dropout=0.0), scheme=ROUNDED, backend=name)
        for name in (backend, "reference")
    )
    torch.manual_seed(2)
    for training in (True, True, False):
        assert_equal(ours.train(training), theirs.train(training), images())


@backends
def test_folded_biases_are_whole_steps(backend: str) -> None:
    qmodel = ghnq_quant.quantize(small_network(), scheme=ROUNDED, backend=backend)
    folded = fold(ghnq_quant.calibrate(qmodel, [images()]))
    inputs = {"stem.0": "x", "depthwise": "stem_0", "plain": "add", "head": "mul"}
    assert {u.name: u.input for u in qmodel.plan.units} == inputs
    for name, source in inputs.items():
        layer = folded.get_submodule(name)
        scale = folded.get_submodule(f"activation_quantizers.{source}").scale
        levels = layer.bias / (layer.weight_quant.scale * scale)
        assert levels.abs().max() > 1
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_copies_round_with_their_own_ranges() -> None:
    qmodel, x = calibrated(small_network(dropout=0.0)), images()
    y = qmodel(x)
    for twin in (copy.deepcopy(qmodel), pickle.loads(pickle.dumps(qmodel))):
        assert torch.equal(twin(x), y)
        twin.get_submodule("activation_quantizers.x").range.running_max.mul_(3)
        layer = twin.get_submodule("stem.0")
        scale = twin.get_submodule("activation_quantizers.x").range.fixed_qparams().scale
        levels = layer.rounded_bias(torch.ones(8), layer.weight) / scale
        assert not torch.equal(twin(x), y)
        steps = layer.bias_steps(layer.weight) / scale
        torch.testing.assert_close(levels / steps, (levels / steps).round())
    assert torch.equal(qmodel(x), y)


def calibrated(model: nn.Module) -> QuantModel:
    qmodel = ghnq_quant.quantize(model, scheme=ROUNDED, backend="reference")
    return ghnq_quant.calibrate(qmodel, [images(), images()]).eval()


def test_the_bias_of_a_channel_of_zeros_keeps_its_value() -> None:
    """Such a weight has scale 1, whose steps would be coarse."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0.3
    qmodel, x = calibrated(model), images()
    assert abs(qmodel.get_submodule("0")(x)[0, 1, 0, 0] - 0.3) < 0.02
    folded = fold(qmodel).get_submodule("0")
    assert abs(folded.bias[1] - 0.3) < 0.02
    assert folded.weight_quant.scale.max() < 0.1


def test_pt2e_refuses_them_and_a_range_of_each_batch_has_none() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(BackendError, match=r"biases='int32'.*biases='float'"):
        ghnq_quant.quantize(small_network(), scheme=ROUNDED, backend="pt2e", example_input=images())
    models = [
        ghnq_quant.quantize(
            small_network(dropout=0.0),
            scheme=QuantScheme(4, 4, act_range="batch", biases=biases),
            backend="reference",
        )
        for biases in ("float", "int32")
    ]
    x = images()
    assert torch.equal(models[0](x), models[1](x))
