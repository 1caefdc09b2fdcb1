"""A quantizer as a value, and its numbers against PyTorch's, formulas and each other."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from ghnq_quant import Quantizer, SchemeError
from ghnq_quant.quantization import fake_quantize, qparams_of, quantize_dequantize

BITS = [2, 3, 4, 8]
KINDS = [
    "symmetric",
    "channel",
    "symmetric-channel",
    "power_of_two",
    "symmetric-channel-power_of_two",
    "channel-power_of_two",
    "symmetric-never_negative",
]
QUANTIZERS = st.builds(
    lambda bits, kind: Quantizer.parse(f"{bits}-{kind}"),
    st.sampled_from(range(2, 9)),
    st.sampled_from(KINDS),
)
TENSORS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
kinds = pytest.mark.parametrize("kind", KINDS)


def weights() -> Tensor:
    """(8, 5000): channels with different spreads and means, one constant, one dead."""
    torch.manual_seed(3)
    x = torch.randn(8, 5000) * torch.logspace(-3, 3, 8)[:, None] + torch.arange(8)[:, None]
    x[3], x[4] = 0.7, 0
    return x


# The value


@given(QUANTIZERS)
def test_text_and_json_bring_it_back(quantizer: Quantizer) -> None:
    assert Quantizer.parse(str(quantizer)) == quantizer
    assert Quantizer(**json.loads(json.dumps(asdict(quantizer)))) == quantizer
    assert hash(replace(quantizer)) == hash(quantizer)


def test_is_frozen_and_the_papers_by_default() -> None:
    quantizer = Quantizer(4)
    with pytest.raises(FrozenInstanceError):
        quantizer.bits = 8  # type: ignore[misc]
    assert (str(quantizer), quantizer.levels) == ("4", (0, 15))
    assert quantizer == Quantizer(4, False, "tensor", False)
    assert Quantizer(4, symmetric=True).levels == (-7, 7)
    assert Quantizer(4, symmetric=True, never_negative=True).levels == (0, 15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits=1: a bit width"),
        ({"bits": 4, "symmetric": 1}, "symmetric=1"),
        ({"bits": 4, "power_of_two": None}, "power_of_two=None"),
        ({"bits": 4, "granularity": "group"}, "granularity='group': expected one of tensor, chan"),
        ({"bits": 4, "range": "max"}, "range='max': expected one of .*minmax, mse, learned, ema"),
        ({"bits": 4, "never_negative": True}, "never_negative=True: an asymmetric"),
    ],
)
def test_no_such_quantizer(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        Quantizer(**settings)


@pytest.mark.parametrize("text", ["", "symmetric", "4-", "4-symetric", "²-channel", "4 channel"])
def test_no_such_text(text: str) -> None:
    with pytest.raises(SchemeError, match="write it as 4 or 4-symmetric-channel"):
        Quantizer.parse(text)


# The numbers


def formula(x: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Scale and zero point of one tensor or channel, in double precision."""
    lowest, highest = quantizer.levels
    low, high = x.double().min().clamp(max=0), x.double().max().clamp(min=0)
    if quantizer.symmetric:
        low = high * 0 if lowest == 0 else -torch.maximum(-low, high)
        high = high if lowest == 0 else -low
    scale = (high - low) / (highest - lowest)
    scale = torch.where(scale > 0, scale, 1.0)
    if quantizer.power_of_two:
        scale = 2 ** scale.log2().ceil()
    zero_point = torch.zeros(()) if quantizer.symmetric else (-low / scale).round()
    return scale, zero_point.clamp(lowest, highest)


@kinds
@pytest.mark.parametrize("bits", BITS)
def test_parameters_are_those_of_the_formula(kind: str, bits: int) -> None:
    x, quantizer = weights(), Quantizer.parse(f"{bits}-{kind}")
    found = qparams_of(x, quantizer)
    parts = x.unbind() if quantizer.per_channel else [x]
    expected = [formula(part, quantizer) for part in parts]
    scale = torch.stack([s for s, _ in expected]).float().view_as(found.scale)
    zero_point = torch.stack([z for _, z in expected]).float().view_as(found.zero_point)
    torch.testing.assert_close(found.scale, scale, rtol=1e-6, atol=0)
    assert torch.equal(found.zero_point, zero_point)


@kinds
@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_torch(kind: str, bits: int) -> None:
    x, quantizer = weights(), Quantizer.parse(f"{bits}-{kind}")
    found = qparams_of(x, quantizer)
    scale, zero_point = (v.expand(8).contiguous() for v in (found.scale, found.zero_point))
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale, zero_point.int(), 0, *quantizer.levels
    )
    ours = fake_quantize(x, quantizer)
    # torch multiplies by 1 / scale: a value halfway between two levels may round to the other
    differing = (ours - theirs).abs() > scale[:, None] * 1e-3
    assert differing.sum() <= x.numel() * 1e-5
    assert torch.all((ours - theirs).abs() <= scale[:, None] * 1.001)


@settings(deadline=None, max_examples=200)
@given(TENSORS, QUANTIZERS)
@example(np.full((1, 3), 3.4e38, np.float32), Quantizer(2, True, "channel", True))
@example(np.array([[3.4e38], [-3.4e38]], np.float32), Quantizer(8, power_of_two=True))
@example(np.array([[1e-45, 0], [0, 0]], np.float32), Quantizer(4, True, "channel"))
def test_properties_of_any_weight(array: np.ndarray, quantizer: Quantizer) -> None:
    x = torch.from_numpy(array)
    y, found = fake_quantize(x, quantizer), qparams_of(x, quantizer)
    lowest, highest = quantizer.levels
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.all(y[x == 0] == 0)
    assert torch.all(found.scale > 0)
    assert found.scale.isfinite().all()
    assert found.scale.shape == (x.shape[:1] if quantizer.per_channel else ())
    for part, original in zip(y, x, strict=True):
        assert part.unique().numel() <= highest - lowest + 1
        if quantizer.per_channel:  # each channel on its own
            alone = replace(quantizer, granularity="tensor")
            assert torch.equal(part, fake_quantize(original, alone))
    assert torch.equal(found.values(found.levels(x)), y)
    if quantizer.power_of_two:
        assert torch.all(torch.frexp(found.scale)[0] == 0.5)


@kinds
@pytest.mark.parametrize("value", [0.7, 3e38, 1e-30])
def test_a_constant_keeps_its_value(kind: str, value: float) -> None:
    quantizer, x = Quantizer.parse(f"4-{kind}"), torch.full((5, 3), value)
    y = fake_quantize(x, quantizer)
    if quantizer.power_of_two:
        assert torch.all((y - x).abs() <= qparams_of(x, quantizer).scale[..., None] / 2)
    else:
        torch.testing.assert_close(y, x, rtol=1e-6, atol=0)


@kinds
def test_gradient_passes_straight_through(kind: str) -> None:
    quantizer, x = Quantizer.parse(f"4-{kind}"), torch.randn(6, 4, 3, requires_grad=True)
    found, gradient = qparams_of(x, quantizer), torch.randn(6, 4, 3)
    quantize_dequantize(x, found.scale / 4, found.zero_point, quantizer).backward(gradient)
    assert torch.equal(x.grad, gradient)


def test_channels_last_weights() -> None:
    x = torch.randn(8, 4, 3, 3)
    quantizer = Quantizer(4, symmetric=True, granularity="channel")
    y = fake_quantize(x.to(memory_format=torch.channels_last), quantizer)
    assert torch.equal(y, fake_quantize(x, quantizer))
