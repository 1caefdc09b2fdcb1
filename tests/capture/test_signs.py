"""Activations that the plan knows are never negative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_networks import small_network
from torch import Tensor, nn

from ghnq_quant.capture import capture


def signs(model: nn.Module) -> dict[str, bool]:
    return {point.name: point.never_negative for point in capture(model).quant_plan.points}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = torch.sigmoid(self.b(a))
        gated = F.avg_pool2d(F.max_pool2d(a * b, 2), 1)
        c = gated + self.c(gated)
        d = F.relu(self.d(c)) - 1
        e = F.relu6(self.e(d)) - gated
        return self.head((e + gated).mean((2, 3)))


def test_behind_relus_and_sigmoids_and_what_is_made_of_such() -> None:
    assert signs(Mixed()) == {
        "x": False,
        "a": True,
        "b": True,
        "mul": True,
        "avg_pool": True,
        "c": False,
        "add": False,
        "d": True,
        "e": True,
        "add_1": False,  # a difference
        "add_2": False,
        "mean": False,
    }


def test_a_factor_may_be_negative() -> None:
    found = signs(small_network())
    assert found["stem.0"]
    assert found["add"]  # of two ReLUs
    assert not found["mul"]  # by a buffer
    assert not found["x"]
