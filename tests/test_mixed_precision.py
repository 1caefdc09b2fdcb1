"""Sensitivity of layers, and the bits assigned from it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import DataError, Quantizer, QuantScheme, SchemeError

BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return small_network(steps=3).eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return [(images(8), torch.arange(8)), (images(4), torch.arange(4))]


def test_harm_is_that_of_a_model_with_one_quantized_layer(model, batches):
    measured = ghnq_quant.sensitivity(model, batches, bits=BITS)
    assert [layer.name for layer in measured.layers] == ["stem.0", "depthwise", "plain", "head"]
    assert [layer.parameters for layer in measured.layers] == [216, 72, 64, 1280]
    x = [x for x, _ in batches]
    for layer, bits in itertools.product(measured.layers, BITS):
        scheme = QuantScheme(32, 32, overrides={layer.name: (bits, 32)})
        quantized = ghnq_quant.quantize(model, scheme=scheme, backend="reference").eval()
        with torch.no_grad():
            y, expected = (torch.cat([net(b) for b in x]) for net in (quantized, model))
        ratio = (y - expected).square().sum() / expected.square().sum()
        assert layer.harm[bits] == pytest.approx(float(ratio), rel=1e-3, abs=1e-9)


def test_a_loss_is_measured_where_it_is_given(model, batches):
    weights = Quantizer(4, symmetric=True, granularity="channel")
    measured = ghnq_quant.sensitivity(
        model, batches, bits=(2,), weights=weights, loss=F.cross_entropy
    )
    scheme = QuantScheme(weights, 32, overrides={"*": (32, 32), "head": (2, 32)})
    quantized = ghnq_quant.quantize(model, scheme=scheme, backend="reference").eval()
    x, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    with torch.no_grad():
        increase = F.cross_entropy(quantized(x), labels) - F.cross_entropy(model(x), labels)
    assert measured.layers[-1].harm[2] == pytest.approx(float(increase), abs=1e-6)
    assert measured.assign_bits(2).weights_of("head") == Quantizer(
        2, symmetric=True, granularity="channel"
    )


@pytest.mark.parametrize("mean_bits", [2, 3.5, 4, 8])
def test_no_assignment_within_the_size_does_less_harm(model, batches, mean_bits):
    layers = ghnq_quant.sensitivity(model, batches, bits=BITS).layers
    total = sum(layer.parameters for layer in layers)
    allowed = [
        chosen
        for chosen in itertools.product(BITS, repeat=len(layers))
        if sum(b * layer.parameters for b, layer in zip(chosen, layers, strict=True))
        <= mean_bits * total
    ]
    best = min(
        allowed, key=lambda chosen: sum(x.harm[b] for b, x in zip(chosen, layers, strict=True))
    )
    scheme = ghnq_quant.assign_bits(model, batches, mean_bits, activations=8, bits=BITS)
    assert tuple(scheme.weights_of(layer.name).bits for layer in layers) == best
    quantized = ghnq_quant.quantize(model, scheme=scheme, backend="reference")
    assert {quantized.scheme.activations_of(p).bits for p in quantized.plan.points} == {8}


def test_the_table_names_layers_and_unit(model, batches):
    measured = ghnq_quant.sensitivity(model, batches[:1], bits=(8, 2))
    head, *rows, unit = str(measured).splitlines()
    assert head.split() == ["layer", "weights", "2", "bits", "8", "bits"]
    assert [row.split()[:2] for row in rows[::3]] == [["stem.0", "216"], ["head", "1,280"]]
    assert unit == "(signal-to-noise ratio of the logits in dB)"


def test_the_model_stays_as_it_is(model, batches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ghnq_quant.sensitivity(model, batches, bits=(2,))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mistakes_are_named(model, batches):
    quantized = ghnq_quant.quantize(model, 4, backend="reference")
    with pytest.raises(SchemeError, match="float network"):
        ghnq_quant.sensitivity(quantized, batches)
    with pytest.raises(SchemeError, match="bits=9"):
        ghnq_quant.sensitivity(model, batches, bits=(9,))
    with pytest.raises(SchemeError, match="bits is empty"):
        ghnq_quant.sensitivity(model, batches, bits=())
    with pytest.raises(SchemeError, match=r"mean_bits=1.5: the fewest"):
        ghnq_quant.assign_bits(model, batches, 1.5)
    with pytest.raises(DataError, match="batches is empty"):
        ghnq_quant.sensitivity(model, [])
    with pytest.raises(DataError, match="batch 0 is a Tensor"):
        ghnq_quant.sensitivity(model, [batches[0][0]], loss=F.cross_entropy)
    with pytest.raises(DataError, match="not finite"):
        ghnq_quant.sensitivity(model, [batches[0][0] * float("nan")])
