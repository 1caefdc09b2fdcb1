"""Graphs with layers of odd shapes to predict for, and a loss to compare predictions."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ghnq_quant.capture import capture


class OddShapes(nn.Module):
    """Kernels, channel counts and joins outside the shape tables and decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 2)
        self.b = nn.Conv2d(10, 10, 5, padding=2, groups=10, bias=False)
        self.c = nn.Conv2d(10, 70, (1, 7), dilation=2, bias=False)
        self.d = nn.Conv2d(70, 21, (7, 1), groups=7, dilation=(2, 2))
        self.norm = nn.BatchNorm2d(21)
        self.pool = nn.MaxPool2d(2)
        self.e = nn.Conv2d(21, 130, 11, padding=5)
        self.group_norm = nn.GroupNorm(2, 130)
        self.middle = nn.Linear(130, 33, bias=False)
        self.layer_norm = nn.LayerNorm(33)
        self.head = nn.Linear(33, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.d(torch.relu(self.c(x + self.b(x))))
        x = self.pool(self.norm(x))
        x = self.group_norm(self.e(torch.cat((x[:, :11], x[:, 11:]), 1))).mean((2, 3), keepdim=True)
        return self.head(self.layer_norm(self.middle(x.flatten(1))))


def without_head() -> nn.Module:
    """Its last layer is a convolution, so no layer is a classification layer."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 10, 1))


def four_classes() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4))


def resnet(**kwargs: Any) -> nn.Module:
    blocks = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=10, **kwargs)


class Recurrent(nn.Module):
    """A convolution and a linear layer, each called twice; the second linear call is the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(torch.relu(self.conv(x)))
        return self.head(torch.relu(self.head(x.mean((2, 3)))))


GRAPHS = {
    "layers called twice": lambda: capture(Recurrent()).arch_graph,
    "odd shapes": lambda: capture(OddShapes()).arch_graph,
    "no classifier": lambda: capture(without_head()).arch_graph,
    "other classes": lambda: capture(four_classes()).arch_graph,
    "resnet": lambda: capture(resnet()).arch_graph,
    "squeeze and excitation": lambda: (
        capture(torchvision.models.mobilenet_v3_small(num_classes=10)).arch_graph
    ),
}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, p in expected.items():
        assert actual[name].shape == p.shape, name
        error = (actual[name] - p).abs().max() / p.square().mean().sqrt()
        assert error <= rtol, (name, error.item())


def random_loss(networks: list[dict[str, Tensor]]) -> Tensor:
    """A random loss on a scale at which a difference in one parameter still shows."""
    generator = torch.Generator().manual_seed(1)
    return sum(
        (p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() / p.numel() ** 0.5
        for parameters in networks
        for _, p in sorted(parameters.items())
    )
