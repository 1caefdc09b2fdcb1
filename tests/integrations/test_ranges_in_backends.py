"""Searched and learned ranges: every backend against the reference, in training and eval."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import ALL, BACKENDS, assert_equal, quantized_units
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel

#: (weights, activations) but for their bits.
KINDS = [
    ("mse", "mse"),
    ("symmetric-channel-mse", "symmetric-percentile"),
    ("learned", "learned"),
    ("symmetric-channel-learned", "symmetric-learned"),
    ("channel-learned-power_of_two", "learned-power_of_two"),
]
#: One width for each kind, or all.
CASES = [
    (kind, bits)
    for i, kind in enumerate(KINDS)
    for bits in ([8, 4, 3, 2] if ALL else [[2, 8, 4][i % 3]])
]


def scheme(kind: tuple[str, str], bits: int) -> QuantScheme:
    return QuantScheme(*(Quantizer.parse(f"{bits}-{k}") for k in kind))


def batches() -> list[Tensor]:
    torch.manual_seed(9)
    return [images() for _ in range(3)]


def train(qmodel: QuantModel, data: list[Tensor]) -> None:
    """A step of SGD for each batch, small enough that rounding is not amplified."""
    groups = [{"params": list(qmodel.parameters()), "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups)
    for x in data:
        optimizer.zero_grad()
        qmodel(x).square().mean().backward()
        optimizer.step()


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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "bits"), CASES if ALL else [CASES[1], CASES[3]])
def test_pt2e_equals_the_reference(kind: tuple[str, str], bits: int) -> None:
    """With frozen batch norms: the same numbers in another order, so in float64."""
    pytest.importorskip("torchao.quantization.pt2e")
    data, models = [x.double() for x in batches()], []
    for name in ("pt2e", "reference"):
        qmodel = make(kind, bits, name, small_network(steps=3, dropout=0.0).double())
        models.append(ghnq_quant.calibrate(qmodel, data))
    ours, theirs = models
    ours.load_state_dict(in_its_names(ours, theirs))
    for mode in (False, True):
        for qmodel in models:
            qmodel.train(mode)
            for module in qmodel.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        if mode:
            for qmodel in models:
                train(qmodel, data)
        y, seen = quantized_units(ours, data[0])
        expected, expected_seen = quantized_units(theirs, data[0])
        torch.testing.assert_close(y, expected)
        for name, (_, value) in seen.items():
            torch.testing.assert_close(value, expected_seen[name][1])


def in_its_names(ours: QuantModel, theirs: QuantModel) -> dict[str, Any]:
    """The state of ``theirs``, a reference, as ``ours`` of torchao calls it."""
    state, reference = copy.deepcopy(ours.state_dict()), theirs.state_dict()
    for key in state:
        other = key.replace("weight_fake_quant.activation_post_process", "weight_quant")
        other = other.replace(".activation_post_process.range", ".range")
        other = other.replace("activation_post_process.min_val", "range.running_min")
        other = other.replace("activation_post_process.max_val", "range.running_max")
        if other in reference:
            state[key] = reference[other]
    return state
