"""Networks of a few layers with everything that a quantized model must keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.research.networks import SPLITS, ConvNets250K


class SmallNetwork(nn.Module):
    """Batch norms, a residual, a functional dropout, a view, buffers and a frozen parameter."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.25) -> None:
        super().__init__()
        self.p = dropout
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8, momentum=0.3)
        self.plain = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, num_classes)
        self.register_buffer("gain", torch.tensor(1.5))
        self.register_buffer("hidden", torch.tensor(2.0), persistent=False)
        self.plain.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.relu(self.norm(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.plain(x)), 2) * self.gain
        x = F.dropout(x, self.p, self.training)
        return self.head(x.view(x.size(0), -1))


def small_network(num_classes: int = 10, steps: int = 0, dropout: float = 0.25) -> SmallNetwork:
    """The network for 8×8 images, in train mode, after ``steps`` batches."""
    torch.manual_seed(7)
    model = SmallNetwork(num_classes, dropout)
    for _ in range(steps):
        model(images())
    return model


def tiny_network(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )  # fmt: skip


def images(count: int = 6) -> Tensor:
    """(count, 3, 8, 8)"""
    return torch.randn(count, 3, 8, 8)


def network(name: str) -> nn.Module:
    """A small network, one of torchvision's, or one from a split of ConvNets-250K; without dropout."""
    import torchvision

    torch.manual_seed(1)
    if name == "small":
        return small_network(dropout=0.0)
    if name in SPLITS:
        return ConvNets250K(name)[3].build()
    model: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
