"""Helpers for tests of several backends."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ghnq_quant import Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel

#: Backends that make layers for the plan.
BACKENDS = ["reference", "brevitas", "torch_ao"]
backends = pytest.mark.parametrize("backend", BACKENDS)
#: ``PARITY=all``: every kind of quantizer at every bit width on every network, which takes long.
ALL = os.environ.get("PARITY") == "all"


#: (weights, activations) without bits: kinds of quantizers, and ranges.
KINDS = [
    ("symmetric", "symmetric"),
    ("channel", ""),
    ("symmetric-channel", "symmetric"),
    ("power_of_two", "power_of_two"),
    ("symmetric-channel-power_of_two", "symmetric-power_of_two"),
]
RANGES = [
    ("mse", "mse"),
    ("symmetric-channel-mse", "symmetric-percentile"),
    ("learned", "learned"),
    ("symmetric-channel-learned", "symmetric-learned"),
    ("channel-learned-power_of_two", "learned-power_of_two"),
]


def scheme(kind: tuple[str, str], bits: int, **settings: Any) -> QuantScheme:
    """A scheme with one of :data:`KINDS` or :data:`RANGES`."""
    weights, activations = (Quantizer.parse(f"{bits}-{k}".rstrip("-")) for k in kind)
    return QuantScheme(weights, activations, **settings)


class Range(NamedTuple):
    """A moving range of an activation."""

    low: Tensor
    high: Tensor


#: Names of the moving minimum and maximum in each toolkit's quantizer state.
_NAMES = (("running_min", "running_max"), ("min_val", "max_val"))


def activation_ranges(qmodel: QuantModel) -> dict[str, Range]:
    """The range that each activation quantizer stores, by name."""
    ranges = {}
    for name, quantizer in qmodel.get_submodule("activation_quantizers").named_children():
        state = {key.rpartition(".")[2]: value for key, value in quantizer.state_dict().items()}
        for low, high in _NAMES:
            if low in state:
                ranges[name] = Range(state[low], state[high])
    return ranges


def lasting_state(qmodel: nn.Module) -> dict[str, Tensor]:
    """A copy of the state without what torch.ao's observers store of each weight, even in eval."""
    return {
        key: value.clone()
        for key, value in qmodel.state_dict().items()
        if ".weight_fake_quant." not in key
    }


def is_quantizer_state(key: str) -> bool:
    """Whether a ``state_dict`` entry belongs to a quantizer, not to the float model."""
    return key.startswith("activation_quantizers.") or ".weight_fake_quant." in key


def quantized_units(
    qmodel: nn.Module, x: Tensor
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The output, and the input and output of each activation quantizer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, y, name=name: seen.update(
                {name: (args[0].detach(), y.detach().clone())}
            )
        )
        for name, module in qmodel.get_submodule("activation_quantizers").named_children()
    ]
    with torch.no_grad():
        y = qmodel(x)
    for hook in hooks:
        hook.remove()
    return y, seen


def levels_apart(ours: Tensor, theirs: Tensor, bits: int) -> tuple[int, int]:
    """How many quantized values differ, and by how many levels at most."""
    span = max(theirs.max().item(), 0) - min(theirs.min().item(), 0)
    scale = span / (2**bits - 1) if span > 0 else 1.0
    distance = ((ours - theirs).abs() / scale).round()
    return int((distance > 0).sum()), int(distance.max())


def assert_forward_equal(ours: QuantModel, theirs: QuantModel, x: Tensor, bits: int) -> None:
    """At most 1 in 10^5 quantized values a unit is one level apart, outputs within 1e-3 of their
    range, and the moving ranges are the same."""
    y, seen = quantized_units(ours, x)
    expected, expected_seen = quantized_units(theirs, x)
    assert (y - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    assert seen.keys() == expected_seen.keys()
    for name, (_, value) in seen.items():
        count, distance = levels_apart(value, expected_seen[name][1], bits)
        assert count <= value.numel() * 1e-5, name
        assert distance <= 1
    ranges = activation_ranges(theirs)
    for name, found in activation_ranges(ours).items():
        torch.testing.assert_close(found.low, ranges[name].low, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.high, ranges[name].high, rtol=1e-5, atol=1e-6)


def step(values: Tensor) -> float:
    """The smallest distance between two levels that occur."""
    distinct = values.double().unique()
    gaps = distinct.diff()
    gaps = gaps[gaps > 1e-6 * distinct.abs().max()]
    return float(gaps.min()) if gaps.numel() else 1.0


def assert_equal(ours: QuantModel, theirs: QuantModel, x: Tensor) -> None:
    """At most 1 in 10^5 quantized values a unit is one level apart, outputs within 1e-3 of their
    range."""
    y, seen = quantized_units(ours, x)
    expected, expected_seen = quantized_units(theirs, x)
    assert seen.keys() == expected_seen.keys()
    for name, (_, value) in seen.items():
        wanted = expected_seen[name][1]
        apart = ((value - wanted).abs() / step(wanted)).round()
        assert (apart > 0).sum() <= value.numel() * 1e-5, name
        assert apart.max() <= 1
    assert (y - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    ranges = activation_ranges(theirs)
    for name, found in activation_ranges(ours).items():
        if name not in ranges:  # torch.ao's observers store learned ranges, too
            continue
        torch.testing.assert_close(found.low, ranges[name].low, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.high, ranges[name].high, rtol=1e-5, atol=1e-6)


def train(qmodel: QuantModel, data: list[Tensor]) -> None:
    """One SGD step per batch, small enough not to amplify rounding."""
    optimizer = torch.optim.SGD(list(qmodel.parameters()), 1e-3)
    for x in data:
        optimizer.zero_grad()
        qmodel(x).square().mean().backward()
        optimizer.step()
