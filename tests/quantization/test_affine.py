"""The affine quantizer equals PyTorch's, Brevitas's and its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor, nn

from ghnq_quant import SchemeError
from ghnq_quant.quantization import (
    affine_parameters,
    fake_quantize,
    quantize_dequantize,
    tensor_range,
)

BITS = range(2, 9)
TENSORS = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=4, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def parameters(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return affine_parameters(*tensor_range(x), bits)


def formula(x: np.ndarray, bits: int) -> np.ndarray:
    """The formula in float32, without overflow."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    levels = np.float32(2**bits - 1)
    scale = np.float32((high - low) / levels)
    if scale == 0:
        return x
    zero_point = np.clip(np.rint(-low / scale), 0, levels)
    return (np.clip(np.rint(x / scale) + zero_point, 0, levels) - zero_point) * scale


@pytest.fixture(params=["normal", "positive", "negative", "uneven"])
def sample(request: pytest.FixtureRequest) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(200_000)
    return {
        "normal": x,
        "positive": x.abs() + 0.5,
        "negative": -x.abs() - 0.5,
        "uneven": x.exp() - 0.3,
    }[request.param]


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_the_formula(sample: Tensor, bits: int) -> None:
    expected = torch.from_numpy(formula(sample.numpy(), bits))
    assert torch.equal(fake_quantize(sample, bits), expected)


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_torch(sample: Tensor, bits: int) -> None:
    scale, zero_point = parameters(sample, bits)
    theirs = torch.fake_quantize_per_tensor_affine(
        sample, scale.item(), int(zero_point), 0, 2**bits - 1
    )
    ours = fake_quantize(sample, bits)
    # torch multiplies by 1 / scale where the formula divides: at most one value in 10^5, halfway
    # between two levels, may round to the other one
    differing = ours != theirs
    assert differing.sum() <= sample.numel() * 1e-5
    edge = (sample[differing] / scale) % 1
    assert torch.allclose(edge, torch.tensor(0.5), atol=1e-4)
    assert torch.all((ours - theirs).abs() <= scale * 1.001)


@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_brevitas(sample: Tensor, bits: int) -> None:
    qnn = pytest.importorskip("brevitas.nn")
    if sample.max() < 0:
        pytest.skip("Brevitas's range of an all-negative tensor leaves zero out")
    from brevitas.quant import ShiftedUint8WeightPerTensorFloat

    class Quantizer(ShiftedUint8WeightPerTensorFloat):
        bit_width = bits

    layer = qnn.QuantLinear(1000, 200, bias=False, weight_quant=Quantizer)
    layer.weight = nn.Parameter(sample.view(200, 1000))
    theirs = layer.quant_weight()
    scale, zero_point = parameters(sample, bits)
    torch.testing.assert_close(theirs.scale.detach(), scale, rtol=1e-6, atol=0)
    assert theirs.zero_point.item() == zero_point.item()
    differing = (theirs.value.detach().flatten() - fake_quantize(sample, bits)).abs() > scale * 1e-3
    assert differing.sum() <= sample.numel() * 1e-5


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(7,), (400_000,), (2, 64, 64, 64)])
def test_gradient_passes_straight_through(bits: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    y = quantize_dequantize(x, torch.tensor(0.1), torch.tensor(1.0), bits)  # most of x is clamped
    gradient = torch.randn(shape)
    y.backward(gradient)
    assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
def test_any_memory_layout(layout: str) -> None:
    x = torch.randn(3, 64, 40, 50)
    laid_out = {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": x.transpose(1, 3)[..., ::2],
        "expanded": x[:1].expand(3, -1, -1, -1),
    }[layout]
    y = fake_quantize(laid_out, 4)
    assert torch.equal(y, fake_quantize(laid_out.contiguous(), 4))
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1001)
    expected = fake_quantize(x, 4)
    monkeypatch.setattr("ghnq_quant.quantization.affine.PIECE", 10)
    assert torch.equal(fake_quantize(x, 4), expected)


@settings(max_examples=300)
@given(TENSORS, st.sampled_from(BITS))
@example(np.array([3.4028227e38, -3.4028227e38], np.float32), 8)
@example(np.array([1.478e-42], np.float32), 7)
def test_properties_of_any_tensor(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array)
    y = fake_quantize(x, bits)
    scale, zero_point = parameters(x, bits)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert y.unique().numel() <= 2**bits
    assert scale > 0
    assert scale.isfinite()
    assert zero_point == zero_point.round()
    assert 0 <= zero_point <= 2**bits - 1
    assert torch.all(y[x == 0] == 0)
    # within half a level; the rounded zero point may cut another half off one end
    error = (y.double() - x.double()).abs() / scale.double()
    # the smallest floats are multiples of 2^-149, so a scale among them is off by up to half of that
    of_scale = (2**bits - 1) * 2.0**-150 / scale.double()
    assert error.max() <= 1 + 1e-4 + of_scale


@given(TENSORS, st.sampled_from(BITS))
def test_idempotent_up_to_rounding(array: np.ndarray, bits: int) -> None:
    x = torch.from_numpy(array)
    y = fake_quantize(x, bits)
    scale, zero_point = parameters(x, bits)
    again = quantize_dequantize(y, scale, zero_point, bits)
    torch.testing.assert_close(again, y, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 3e38, -3e38, 1e-30, -1e-30])
def test_constant_tensor_keeps_its_value(value: float, bits: int) -> None:
    x = torch.full((5, 3), value)
    torch.testing.assert_close(fake_quantize(x, bits), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_range_of_more_than_the_largest_float(bits: int) -> None:
    x = torch.tensor([-3.4e38, -1.0, 0.0, 2e38, 3.4e38])
    y = fake_quantize(x, bits)
    assert y.isfinite().all()
    assert y[2] == 0
    level = 6.8e38 / (2**bits - 1)
    assert (y.double() - x.double()).abs().max() <= level * 1.01


@pytest.mark.parametrize("bits", BITS)
def test_range_of_denormals(bits: int) -> None:
    x = torch.tensor([-3e-45, 0.0, 1e-42, 5e-41])
    y = fake_quantize(x, bits)
    assert y.isfinite().all()
    assert y[1] == 0
    assert torch.all((y - x).abs() <= 5e-41)


def test_empty_and_single_element() -> None:
    assert fake_quantize(torch.empty(0, 3), 4).shape == (0, 3)
    torch.testing.assert_close(fake_quantize(torch.tensor([-2.5]), 4), torch.tensor([-2.5]))
    torch.testing.assert_close(fake_quantize(torch.tensor(1.25), 2), torch.tensor(1.25))


def test_32_bits_are_off() -> None:
    x = torch.randn(10)
    assert fake_quantize(x, 32) is x


def test_rounds_half_to_even() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0])
    assert fake_quantize(x, 2).tolist() == [0, 0, 2, 2, 3]


def test_nan_stays_visible() -> None:
    y = fake_quantize(torch.tensor([1.0, math.nan]), 4)
    assert y.isnan().any()


@pytest.mark.parametrize("bits", [1, 9, 16, 0, -4, 4.0, "four", True, None])
def test_no_such_bit_width(bits: object) -> None:
    with pytest.raises(SchemeError, match="bit width"):
        fake_quantize(torch.ones(2), bits)  # type: ignore[arg-type]


def test_double_precision_stays_double() -> None:
    x = torch.randn(100, dtype=torch.float64)
    assert fake_quantize(x, 4).dtype == torch.float64
