"""The parts that a quantized network leaves in float are named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghnq_quant import GhnqWarning, quantize


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)
        self.mix, self.gain = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(x))).flatten(2)
        return torch.matmul(self.mix, x) * self.gain


def test_float_parts_are_named() -> None:
    with pytest.warns(GhnqWarning, match="2 parts stay float.*norm, mix") as caught:
        copied = quantize(Net(), bits=4, backend="reference")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert copied.float_parts == copy.deepcopy(copied).float_parts == ("norm", "mix")


def test_a_float_copy_and_a_wholly_quantized_one_are_silent() -> None:
    assert quantize(Net(), bits=32, backend="reference").float_parts == ("norm", "mix")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    assert quantize(model, bits=4, backend="reference").float_parts == ()


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        return (self.b(x), self.c(x)) if self.training else self.b(x)


def test_auxiliary_outputs_are_named() -> None:
    with pytest.warns(GhnqWarning, match="Auxiliary returns more values in training"):
        copied = quantize(Auxiliary(), bits=4, backend="reference")
    assert copied(torch.randn(2, 3, 4, 4)).shape == (2, 4, 4, 4)
