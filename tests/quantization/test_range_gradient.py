"""The gradient of a tensor's own range, against autograd of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ghnq_quant.quantization import fake_quantize
from ghnq_quant.quantization.range_gradient import fake_quantize_with_range_gradient


def formula(x: Tensor, bits: int) -> Tensor:
    """x̂ = step · (x / step + constant), with the step a function of the largest and smallest x."""
    step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / (2**bits - 1)
    rounding = (fake_quantize(x, bits) - x).detach() / step.detach()
    return x + step * rounding


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["two ends", "positive", "negative", "equal ends"])
def test_equals_the_formula(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    positive = x.abs() + 0.1  # its range begins at zero, which no element sets
    x = {"positive": positive, "negative": -positive, "equal ends": x.clamp(-1, 1)}.get(kind, x)
    weights, gradients = torch.randn_like(x), []
    for function in (fake_quantize_with_range_gradient, formula):
        leaf = x.clone().requires_grad_()
        y = function(leaf, bits)
        torch.testing.assert_close(y, fake_quantize(x, bits), rtol=1e-12, atol=1e-12)
        gradients.append(torch.autograd.grad((y * weights).sum(), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_constants_and_float() -> None:
    zeros = torch.zeros(3, requires_grad=True)
    fake_quantize_with_range_gradient(zeros, 4).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.tolist() == [1.0, 1.0, 1.0]
    assert fake_quantize_with_range_gradient(zeros, 32) is zeros
